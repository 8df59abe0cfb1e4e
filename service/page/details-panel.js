// The panel beside a text: the selected character and its distribution.

import { describeDistribution, showDistribution } from "./distribution.js";
import { h, hint, symbol } from "./dom.js";

const NOTES = {
	exact: "Scored again from the text at temperature 1, so “sampled from” and “model” are the same.",
	partial: "Scored again at temperature 1 from the text that is shown; what was before it is not known here.",
};

/** A function that shows the details of the character at an index; `liveRegion` gets a sentence. */
export function detailsPanel(text, panel, liveRegion) {
	let requested = -1;
	return async (index) => {
		requested = index;
		const character = text.characters[index];
		try {
			if (!text.logprobs[index]?.top) panel.setAttribute("aria-busy", "true");
			const entry = await text.logprobsAt(index);
			if (requested !== index) return; // another character has been selected meanwhile
			if (entry) {
				showDistribution(panel, character, entry, NOTES[entry.rescored] ?? "");
				liveRegion.textContent = describeDistribution(character, entry);
			} else {
				const message = `${symbol(character)}: this character is not in the model's vocabulary.`;
				panel.replaceChildren(hint(message));
			}
		} catch (error) {
			if (requested === index) panel.replaceChildren(h("p", { class: "error" }, error.message));
		} finally {
			panel.removeAttribute("aria-busy");
		}
	};
}
