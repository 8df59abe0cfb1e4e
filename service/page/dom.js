// Helpers to build elements and to format values. Text is only ever set as text, so no text can become markup.

/** An element: h("p", {class: "note", onclick: f}, "text", child). A property that is null or false is left out. */
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

export const button = (label, onclick, properties = {}) =>
	h("button", { type: "button", onclick, ...properties }, label);

export const hint = (text) => h("p", { class: "hint" }, text);

export function svg(tag, attributes = {}, ...children) {
	const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
	for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
	element.append(...children);
	return element;
}

export const $ = (selector, within = document) => within.querySelector(selector);

export function partsOf(root) {
	return Object.fromEntries([...root.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));
}

/** A copy of a template's content; every @ in an attribute becomes `name`, so that ids stay unique. */
export function cloneTemplate(template, name) {
	const root = $(template).content.firstElementChild.cloneNode(true);
	for (const element of [root, ...root.querySelectorAll("*")]) {
		for (const attribute of element.attributes) {
			if (attribute.value.includes("@")) attribute.value = attribute.value.replaceAll("@", name);
		}
	}
	return root;
}

export const onClick = (selector, handler) => $(selector).addEventListener("click", handler);

export function onSubmit(form, handler) {
	form.addEventListener("submit", (event) => {
		event.preventDefault();
		handler();
	});
}

export function setStatus(element, message, isError = false) {
	element.textContent = message;
	element.classList.toggle("error", isError);
}

export function saveAs(name, text) {
	const url = URL.createObjectURL(new Blob([text]));
	h("a", { href: url, download: name }).click();
	setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export const symbol = (character) => ({ " ": "␣", "\n": "↵", "\t": "⇥" })[character] ?? character;

export const wordFor = (character) => ({ " ": "space", "\n": "new line", "\t": "tab" })[character] ?? character;

/** Resolve after a time, or at once when the signal is aborted. */
export const sleep = (ms, signal) =>
	new Promise((resolve) => {
		const timer = setTimeout(resolve, ms);
		const stop = () => {
			clearTimeout(timer);
			resolve();
		};
		signal?.addEventListener("abort", stop, { once: true });
	});

export const formatCount = (n) => Number(n).toLocaleString("en");

export const bits = (nats) => nats / Math.LN2;

/** A loss in nats per character, in both units. */
export const formatLoss = (nats) =>
	nats === null || nats === undefined ? "–" : `${nats.toFixed(3)} nats = ${bits(nats).toFixed(3)} bits`;

export function percent(p) {
	if (p >= 0.0995) return `${(100 * p).toFixed(0)} %`;
	if (p >= 0.001) return `${(100 * p).toFixed(1)} %`;
	return p > 0 ? "< 0.1 %" : "0 %";
}

export function formatDuration(seconds) {
	const s = Math.round(seconds);
	if (s < 60) return `${s} s`;
	return s < 3600
		? `${Math.floor(s / 60)} min ${s % 60} s`
		: `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}
