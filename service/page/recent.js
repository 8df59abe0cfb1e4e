// The texts of this visit: ids and first words, kept until the tab is closed, so that New and Back lose none.

const KEY = "longhand.recent";
const MAX_RECENT = 20;
const TITLE_CHARS = 48;

/** The recent texts, the newest first: [{session, title, at}]. */
export function list() {
	try {
		const stored = JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
		return Array.isArray(stored) ? stored.filter(({ session }) => typeof session === "string") : [];
	} catch {
		return [];
	}
}

export function remember(session, text) {
	const title = text.trim().replace(/\s+/g, " ").slice(0, TITLE_CHARS);
	if (!session || !title) return;
	const others = list().filter((entry) => entry.session !== session);
	const entries = [{ session, title, at: Date.now() }, ...others].slice(0, MAX_RECENT);
	try {
		sessionStorage.setItem(KEY, JSON.stringify(entries));
	} catch {
		// The browser allows no storage: then this visit has no list.
	}
}
