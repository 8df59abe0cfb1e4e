// The texts and lists of this visit: what leads to each, and first words, kept until the tab is closed.

const KEY = "longhand.recent";
const MAX_RECENT = 20;
const TITLE_CHARS = 48;

/** The recent texts, the newest first: [{session or list, title, at}]. */
export function entries() {
	try {
		const stored = JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
		return Array.isArray(stored) ? stored.filter((entry) => entry.session || entry.list) : [];
	} catch {
		return [];
	}
}

/** Remember a session; or, where it is null, the request that wrote a list. */
export function remember(session, text, list = null) {
	const title = text.trim().replace(/\s+/g, " ").slice(0, TITLE_CHARS);
	const id = session ?? list;
	if (!id || !title) return;
	const others = entries().filter((entry) => (entry.session ?? entry.list) !== id);
	const kept = [{ session, list, title, at: Date.now() }, ...others].slice(0, MAX_RECENT);
	try {
		sessionStorage.setItem(KEY, JSON.stringify(kept));
	} catch {
		// The browser allows no storage: then this visit has no list.
	}
}
