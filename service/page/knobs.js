// The settings of a text: their names in the API, what they are called, defaults and help.

import { h } from "./dom.js";

const KNOBS = [
	["max_chars", "Characters", "200", "How long the text becomes."],
	[
		"temperature",
		"Temperature",
		"1",
		"How daring: 1 draws from the model’s own probabilities, 0.7 is safer, 0 always takes the most probable character.",
	],
	["top_k", "top_k", "0", "Draw from the k most probable characters only; 0 is off."],
	["top_p", "top_p", "1", "Draw from the most probable characters that together have this share; 1 is off."],
	["min_p", "min_p", "0", "Leave out what is less probable than this times the most probable; 0 is off."],
	["typical_p", "typical_p", "1", "Draw from characters about as surprising as the model expects; 1 is off."],
	["repetition_penalty", "repetition_penalty", "1", "Above 1, the last 64 characters become less probable."],
	["seed", "Seed", "", "The same seed gives the same text. Empty: a new one each time.", "random"],
	["stop", "Stop strings", null, "The text ends before one of these; \\n is a line break.", "one per line"],
	[
		"structured_outputs",
		"Pattern",
		null,
		"A regular expression that the new characters match as a whole.",
		"[A-Z][a-z]+\\.",
	],
];

/** Put the fields into a form; `pane` is part of their ids. A setting that is no number has no default. */
export function addKnobs(fields, pane) {
	const all = KNOBS.map(([name, label, value, help, placeholder]) => {
		const id = `${pane}-${name}`;
		const about = `${id}-help`;
		const properties = { id, name, value, placeholder, "data-help": about, "aria-describedby": about };
		if (value !== null) properties.inputmode = "decimal";
		const isLong = name === "stop";
		return h(
			"div",
			{ class: "field" },
			h("label", { for: id }, label),
			isLong ? h("textarea", { ...properties, rows: "1" }) : h("input", properties),
			h("p", { class: "hint", id: about }, help),
		);
	});
	fields.append(...all);
}
