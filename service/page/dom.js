// Elements in a line each. Text is only ever set as text, so no text can become markup.

/** An element: h("p", {class: "note", onclick: f}, "text", other). A property with a null value is left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const $ = (selector, within = document) => within.querySelector(selector);

/** What is seen of a character that is not seen. */
export function visible(character) {
  const names = { " ": "␣", "\n": "↵", "\t": "⇥" };
  return names[character] ?? character;
}

/** What is said of a character, for those who hear the page. */
export function spoken(character) {
  const names = { " ": "space", "\n": "new line", "\t": "tab" };
  return names[character] ?? character;
}

export const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

export const count = (n) => Number(n).toLocaleString("en");
export const bits = (nats) => nats / Math.LN2;
export const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0 %");

/** A span of time in words: 75 -> "1 min 15 s". */
export function span(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}
