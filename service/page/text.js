// A text and what is known of each of its characters: what is shown, and where in its session that is.

import { json } from "./api.js";
import { TOP } from "./turn.js";

const WINDOW = 5000; // characters that are read at once to look at one that nothing is known of

/** Characters with their looks, drawn by Letters a frame at a time: many small pieces cost one layout. */
export class Text {
  constructor(letters) {
    this.letters = letters;
    this.clear();
  }

  clear() {
    this.characters = [];
    this.looks = [];
    this.base = 0; // the session's position before the first of them
    this.#waiting = [];
    this.letters.clear();
  }

  #waiting = [];
  #frame = 0;

  get position() {
    return this.base + this.characters.length;
  }

  toString() {
    return this.characters.join("");
  }

  /** logprobs: the looks at them, where they are known. */
  append(text, logprobs = [], kind = "") {
    const characters = Array.from(text); // by code points, as the service counts
    this.characters.push(...characters);
    this.looks.push(...characters.map((_, i) => logprobs[i] ?? null));
    this.#waiting.push([characters, logprobs, kind]);
    this.#frame ||= requestAnimationFrame(() => this.draw());
  }

  /** Put on the screen what waits for it, at once. */
  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    for (const [characters, logprobs, kind] of this.#waiting) this.letters.append(characters, logprobs, kind);
    this.#waiting = [];
  }

  truncate(kept) {
    this.draw();
    this.characters.length = kept;
    this.looks.length = kept;
    this.letters.truncate(kept);
  }

  /**
   * The look at a character, read anew by the service where none is known; and whether it is exact: the text before it
   * may be known in part only. Thrown: ServiceError.
   */
  async lookAt(index) {
    let isExact = true;
    if (!this.looks[index]?.top) {
      const from = Math.max(0, Math.min(index - WINDOW / 2, this.characters.length - WINDOW));
      const part = this.characters.slice(from, from + WINDOW);
      isExact = this.base + from === 0;
      const scored = await json("POST", "/score", { body: { text: part.join(""), logprobs: TOP, on_unknown: "skip" } });
      scored.logprobs.forEach((look, i) => {
        const at = from + i;
        if (!look || this.looks[at]?.top || this.characters[at] !== part[i]) return;
        this.looks[at] = { ...look, anew: isExact ? "exact" : "part" };
        if (at < this.letters.length) this.letters.learn(at, look);
      });
    }
    return this.looks[index] ?? null;
  }
}
