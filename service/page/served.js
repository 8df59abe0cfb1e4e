// Which models there are, how they are described, and examples of what one writes.

import { attempt, requestJson } from "./api.js";
import { $, bits, formatCount, h } from "./dom.js";

export const DEFAULT = "default"; // the model that writes where a request names none

const EXAMPLE_CHARS = 28;
const EXAMPLES = 4;
const examples = new Map(); // id -> promise of a list of prompts

/** Offer the names of the models that this key may use in every field for them. Returns them; none without a key. */
export async function offerNames() {
	const { data } = await attempt(
		() => requestJson("GET", "/v1/models", { mayPrompt: false }),
		() => ({ data: [] }),
	);
	const names = data.map(({ id }) => (id === "longhand" ? DEFAULT : id)).filter((name) => !isId(name));
	$("#model-names").replaceChildren(...names.map((name) => h("option", { value: name })));
	return names;
}

export const isId = (name) => /^[0-9a-f]{16}$/.test(name);

export function describeModel(model) {
	const loss = `${bits(model.val_loss).toFixed(2)} bits per character`;
	return [corpusOf(model), model.preset, loss, formatTime(model.created)].filter(Boolean).join(" · ");
}

export const describeNetwork = ({ cell, n_layers: layers, n_hidden: hidden, n_parameters: parameters }) =>
	`${cell} ${layers} × ${hidden}, ${formatCount(parameters)} parameters`;

/** The name of the text that a model was trained on; older checkpoints do not know it. */
export const corpusOf = (model) => model.corpus || model.name.replace(".safetensors", "");

export function formatTime(iso) {
	const time = new Date(typeof iso === "number" ? 1000 * iso : iso);
	if (!iso || Number.isNaN(time.getTime())) return "";
	const hour = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
	if (time.toDateString() === new Date().toDateString()) return `today ${hour}`;
	return `${time.toLocaleDateString([], { day: "numeric", month: "short" })} ${hour}`;
}

/** Beginnings that a model wrote itself, the same each time; none where it cannot be asked. */
export function examplesOf(model) {
	if (!examples.has(model.id))
		examples.set(
			model.id,
			write(model).catch(() => []),
		);
	return examples.get(model.id);
}

async function write({ id: model, is_list: isList }) {
	const settings = isList ? { items: EXAMPLES } : { n: EXAMPLES + 2, max_chars: 120, temperature: 0.7 };
	const body = { model, seed: 1, ...settings };
	const { items, results } = await requestJson("POST", "/generate", { body, mayPrompt: false });
	if (items) return distinct(items.map(({ text }) => Array.from(text).slice(0, 3).join("").trimEnd()));
	return distinct(results.map(({ text }) => beginning(text)));
}

const distinct = (prompts) => [...new Set(prompts.filter(Boolean))].slice(0, EXAMPLES);

function beginning(text) {
	const lines = text.split("\n");
	const line = lines.slice(0, -1).find((l) => l.trim().length > 2) ?? lines.find((l) => l.trim()) ?? "";
	const characters = Array.from(line.trim());
	if (characters.length <= EXAMPLE_CHARS) return `${characters.join("")}${lines.length > 1 ? "\n" : ""}`;
	const cut = characters.slice(0, EXAMPLE_CHARS).join("");
	return cut.includes(" ") ? cut.slice(0, cut.lastIndexOf(" ")) : cut;
}
