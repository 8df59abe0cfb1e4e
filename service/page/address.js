// What the page shows, in the address: #VIEW?s=SESSION&f=FORK. Behind the #, so that no server ever sees or logs it.

const VIEWS = ["write", "why", "inside", "learn", "serve"];

export function read() {
  const [view, rest = ""] = location.hash.slice(1).split("?");
  return { view: VIEWS.includes(view) ? view : "write", parameters: new URLSearchParams(rest) };
}

export function hash(view, parameters) {
  const rest = parameters.toString();
  return `#${view}${rest ? `?${rest}` : ""}`;
}

/** Change parameters in place: no entry in the history for each of them; a null takes one out. */
export function put(changes) {
  const { view, parameters } = read();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") parameters.delete(name);
    else parameters.set(name, value);
  }
  history.replaceState(null, "", hash(view, parameters));
  link();
}

/** Let the links to the views keep the session that is open. */
export function link() {
  const { view, parameters } = read();
  for (const name of VIEWS) {
    const a = document.querySelector(`nav a[data-view="${name}"]`);
    a.setAttribute("href", hash(name, parameters));
    if (name === view) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
}
