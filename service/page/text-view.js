// A text in which every character can be selected: by mouse, touch or the arrow keys.

import { $, bits, h } from "./dom.js";

const SURPRISE_STEPS = [0.5, 1, 2, 3, 4.5, 6, 8]; // bits: lower bounds of the colors s1 to s7 in style.css

export function drawScale(root) {
	const names = ["< 0.5", ...SURPRISE_STEPS.slice(0, -1), "8 bits and more"];
	$(".scale", root).replaceChildren(...names.map((name, i) => h("li", { class: `s${i}` }, String(name))));
}

function surpriseClass(entry) {
	if (!entry) return "";
	const surprise = bits(-entry.logprob);
	return `s${SURPRISE_STEPS.filter((step) => surprise >= step).length}`;
}

/** A span per character and a block per line, so that lines out of sight cost no layout. */
export class TextView {
	constructor(element, { onSelect, onActivate = () => {} }) {
		this.element = element;
		this.onSelect = onSelect;
		this.onActivate = onActivate;
		this.clear();
		element.addEventListener("pointerover", (event) => this.#withIndex(event, (i) => this.select(i)));
		element.addEventListener("click", (event) =>
			this.#withIndex(event, (i) => {
				this.select(i);
				this.onActivate(i);
			}),
		);
		element.addEventListener("keydown", (event) => this.#onKey(event));
		element.addEventListener("focus", () => {
			if (this.spans.length) this.select(this.cursor < 0 ? this.spans.length - 1 : this.cursor, true);
		});
	}

	get length() {
		return this.spans.length;
	}

	clear() {
		this.element.replaceChildren();
		this.spans = [];
		this.line = null;
		this.cursor = -1; // index of the selected character
		this.cut = null; // number of characters that stay when the text is continued; null: all
	}

	append(characters, logprobs, kind = "") {
		const box = this.element;
		const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
		characters.forEach((character, i) => {
			if (!this.line || this.line.isComplete) this.#addLine();
			const span = document.createElement("span");
			span.textContent = character;
			span.index = this.spans.length;
			span.className = `${surpriseClass(logprobs[i])} ${kind} ${character === "\n" ? "newline" : ""}`;
			this.line.append(span);
			this.line.isComplete = character === "\n";
			this.spans.push(span);
		});
		if (isAtEnd) box.scrollTop = box.scrollHeight;
	}

	setLogprobs(index, entry) {
		const span = this.spans[index];
		span.className = `${surpriseClass(entry)} ${span.className.replace(/\bs\d\b/, "")}`;
	}

	/** Strike out the characters after the first `kept`; null: none. */
	setCut(kept) {
		const from = Math.min(this.cut ?? Infinity, kept ?? Infinity);
		for (let i = from; i < this.spans.length; i++) {
			this.spans[i].classList.toggle("removed", kept !== null && i >= kept);
		}
		this.cut = kept;
	}

	truncate(length) {
		this.setCut(null);
		for (const span of this.spans.splice(length)) span.remove();
		for (const line of [...this.element.querySelectorAll(".line:empty")]) line.remove();
		this.line = this.element.lastElementChild?.matches(".line") ? this.element.lastElementChild : null;
		if (this.line) this.line.isComplete = this.spans.at(-1)?.classList.contains("newline") ?? false;
		this.cursor = Math.min(this.cursor, length - 1);
	}

	select(index, scroll = false) {
		this.spans[this.cursor]?.classList.remove("selected");
		this.cursor = index;
		const span = this.spans[index];
		if (!span) return;
		span.classList.add("selected");
		if (scroll) span.scrollIntoView({ block: "nearest" });
		this.onSelect(index);
	}

	#addLine() {
		this.line = h("div", { class: "line" });
		this.element.append(this.line);
	}

	#withIndex(event, action) {
		const index = event.target.index;
		if (index !== undefined) action(index);
	}

	#onKey(event) {
		const last = this.spans.length - 1;
		const line = this.spans[this.cursor]?.parentElement;
		const target = {
			ArrowLeft: () => this.cursor - 1,
			ArrowRight: () => this.cursor + 1,
			ArrowUp: () => line?.previousElementSibling?.lastElementChild?.index ?? 0,
			ArrowDown: () => line?.nextElementSibling?.firstElementChild?.index ?? last,
			Home: () => 0,
			End: () => last,
		}[event.key];
		if (last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
		if (target) this.select(Math.max(0, Math.min(last, target())), true);
		else if (event.key === "Enter" && this.cursor >= 0) this.onActivate(this.cursor);
		else return;
		event.preventDefault();
	}
}
