// A text of which every character can be pointed at: by mouse, by touch, by the arrow keys.

import { bits, h } from "./dom.js";

const STEPS = [0.5, 1, 2, 3, 4.5, 6, 8]; // bits: from which surprise on a character has the next colour

/** How surprising a look says its character was: a class from s0 to s7; none where nothing is known. */
function shade(look) {
  if (!look) return "";
  const surprise = bits(-look.logprob);
  return `s${STEPS.filter((step) => surprise >= step).length}`;
}

/** Characters in an element, a line a block: what is out of sight costs nothing to lay out. */
export class Letters {
  /** onlook(index) when a character is pointed at, onpick(index) when it is clicked or Enter is pressed on it. */
  constructor(element, { onlook, onpick = () => {} }) {
    this.element = element;
    this.onlook = onlook;
    this.onpick = onpick;
    this.spans = [];
    this.cursor = -1;
    this.cut = null; // characters that are kept, where the others are to go
    element.addEventListener("pointerover", (event) => this.#at(event, (i) => this.look(i)));
    element.addEventListener("click", (event) => this.#at(event, (i) => (this.look(i), this.onpick(i))));
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("focus", () => this.spans.length && this.look(this.cursor < 0 ? this.spans.length - 1 : this.cursor, true));
  }

  get length() {
    return this.spans.length;
  }

  /** Add characters; looks[i] is what is known of characters[i], kind "prompt" for what was not written by the model. */
  append(characters, looks, kind = "") {
    const box = this.element;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    characters.forEach((character, i) => {
      if (!this.line || this.line.ended) this.#newLine();
      const span = document.createElement("span");
      span.textContent = character;
      span.index = this.spans.length;
      span.className = `${shade(looks[i])} ${kind} ${character === "\n" ? "nl" : ""}`;
      this.line.append(span);
      this.line.ended = character === "\n";
      this.spans.push(span);
    });
    if (follows) box.scrollTop = box.scrollHeight;
  }

  /** What is known of a character now. */
  learn(index, look) {
    const span = this.spans[index];
    span.className = `${shade(look)} ${span.className.replace(/\bs\d\b/, "")}`;
  }

  /** Show the characters from this one on as those that will go; null: none. */
  setCut(kept) {
    const from = Math.min(this.cut ?? Infinity, kept ?? Infinity);
    for (let i = from; i < this.spans.length; i++) this.spans[i].classList.toggle("gone", kept !== null && i >= kept);
    this.cut = kept;
  }

  truncate(kept) {
    this.setCut(null);
    for (const span of this.spans.splice(kept)) span.remove();
    for (const line of [...this.element.querySelectorAll(".line:empty")]) line.remove();
    this.line = this.element.lastElementChild?.matches(".line") ? this.element.lastElementChild : null;
    if (this.line) this.line.ended = this.spans.at(-1)?.classList.contains("nl") ?? false;
    this.cursor = Math.min(this.cursor, kept - 1);
  }

  clear() {
    this.element.replaceChildren();
    this.spans = [];
    this.line = null;
    this.cursor = -1;
    this.cut = null;
  }

  look(index, scroll = false) {
    this.spans[this.cursor]?.classList.remove("at");
    this.cursor = index;
    const span = this.spans[index];
    if (!span) return;
    span.classList.add("at");
    if (scroll) span.scrollIntoView({ block: "nearest" });
    this.onlook(index);
  }

  #newLine() {
    this.line = h("div", { class: "line" });
    this.element.append(this.line);
  }

  #at(event, act) {
    const index = event.target.index;
    if (index !== undefined) act(index);
  }

  #key(event) {
    const last = this.spans.length - 1;
    const line = this.spans[this.cursor]?.parentElement;
    const to = {
      ArrowLeft: () => this.cursor - 1,
      ArrowRight: () => this.cursor + 1,
      ArrowUp: () => (line?.previousElementSibling?.lastElementChild?.index ?? 0),
      ArrowDown: () => (line?.nextElementSibling?.firstElementChild?.index ?? last),
      Home: () => 0,
      End: () => last,
    }[event.key];
    if (last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (to) this.look(Math.max(0, Math.min(last, to())), true);
    else if (event.key === "Enter" && this.cursor >= 0) this.onpick(this.cursor);
    else return;
    event.preventDefault();
  }
}
