// A text with each character's log-probabilities and position in the session.

import { requestJson } from "./api.js";
import { TOP_LOGPROBS } from "./turn.js";

let scoring = Promise.resolve(); // the page scores one text at a time: the service does not score many at once

const SCORE_WINDOW = 5000; // characters that are scored at once to find the distribution of one

/** Characters and log-probabilities in a TextView. Small chunks are drawn once per frame. */
export class AnnotatedText {
	#queued = [];
	#frame = 0;

	/** `modelName` returns the name of the model that knows the log-probabilities. */
	constructor(view, modelName) {
		this.view = view;
		this.modelName = modelName;
		this.clear();
	}

	clear() {
		this.characters = [];
		this.logprobs = []; // for each character {logprob, probability, top} or null; see distribution.js
		this.start = 0; // position in the session of the first character
		this.#queued = [];
		this.view.clear();
	}

	get position() {
		return this.start + this.characters.length;
	}

	toString() {
		return this.characters.join("");
	}

	/** Append a text. kind "prompt" marks text that the model did not generate. */
	append(text, logprobs = [], kind = "") {
		const characters = Array.from(text); // by code points, as the service counts
		this.characters.push(...characters);
		this.logprobs.push(...characters.map((_, i) => logprobs[i] ?? null));
		this.#queued.push([characters, logprobs, kind]);
		this.#frame ||= requestAnimationFrame(() => this.flush());
	}

	flush() {
		cancelAnimationFrame(this.#frame);
		this.#frame = 0;
		for (const [characters, logprobs, kind] of this.#queued) this.view.append(characters, logprobs, kind);
		this.#queued = [];
	}

	truncate(length) {
		this.flush();
		this.characters.length = length;
		this.logprobs.length = length;
		this.view.truncate(length);
	}

	/** The log-probabilities at a character, if need be scored from the text around it: see `rescored`. */
	async logprobsAt(index) {
		if (!this.logprobs[index]?.top) {
			const turn = scoring.then(() => this.#scoreAround(index));
			scoring = turn.catch(() => {});
			await turn;
		}
		return this.logprobs[index] ?? null;
	}

	async #scoreAround(index) {
		if (!this.logprobs[index]?.top && index < this.characters.length) {
			const from = Math.max(0, Math.min(index - SCORE_WINDOW / 2, this.characters.length - SCORE_WINDOW));
			const window = this.characters.slice(from, from + SCORE_WINDOW);
			// "partial": the beginning of the session's text is not here
			const rescored = this.start + from === 0 ? "exact" : "partial";
			const model = this.modelName();
			const body = { text: window.join(""), logprobs: TOP_LOGPROBS, on_unknown: "skip", model };
			const scored = await requestJson("POST", "/score", { body });
			scored.logprobs.forEach((entry, i) => {
				const at = from + i;
				if (!entry || this.logprobs[at]?.top || this.characters[at] !== window[i]) return;
				this.logprobs[at] = { ...entry, rescored };
				if (at < this.view.length) this.view.setLogprobs(at, entry);
			});
		}
	}
}
