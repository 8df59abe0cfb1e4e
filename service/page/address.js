// The page's state in the URL fragment, #VIEW?s=SESSION&f=FORK, which is never sent to a server or logged.

const VIEWS = ["generate", "score", "inspect", "train", "status"];

/** The view and the parameters in the address; an unknown view is "generate". */
export function read() {
	const [view, query = ""] = location.hash.slice(1).split("?");
	return { view: VIEWS.includes(view) ? view : "generate", parameters: new URLSearchParams(query) };
}

export function format(view, parameters) {
	const query = parameters.toString();
	return `#${view}${query ? `?${query}` : ""}`;
}

/** Change parameters without an entry in the browser's history; null or "" removes one. */
export const update = (changes) => change(changes, "replaceState");

/** The same with an entry, so that Back leads to what was there. */
export const push = (changes) => change(changes, "pushState");

function change(changes, method) {
	const { view, parameters } = read();
	for (const [name, value] of Object.entries(changes)) {
		if (value === null || value === "") parameters.delete(name);
		else parameters.set(name, value);
	}
	history[method](null, "", format(view, parameters));
	updateLinks();
}

/** Keep the open session in the links of the navigation, and mark the current view. */
export function updateLinks() {
	const { view, parameters } = read();
	for (const name of VIEWS) {
		const link = document.querySelector(`nav a[data-view="${name}"]`);
		link.setAttribute("href", format(name, parameters));
		if (name === view) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
}
