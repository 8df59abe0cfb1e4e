// Whole items of a list, as they are generated: one a row, with how probable each is.

import { request, ServiceError } from "./api.js";
import { bits, formatCount, h } from "./dom.js";
import { readEvents } from "./sse.js";

const REASONS = {
	exhausted: " The model has no more of them: 1,000 in a row were repeated or known.",
	timeout: " The time was over.",
};

/** Write items into an element and return a sentence about them. */
export async function writeItems(element, body, signal, onStart) {
	const rows = h("ol", {});
	element.replaceChildren(rows);
	try {
		const response = await request("POST", "/generate", { body: { ...body, stream: true }, signal });
		for await (const { name, data } of readEvents(response)) {
			if (name === "error") throw new ServiceError(0, data.error, 0);
			if (name === "start") onStart();
			if (name === "item") rows.append(row(data));
			if (name === "done") return describe(data);
		}
	} catch (error) {
		if (!signal.aborted) throw error;
	}
	return "The connection was lost. “Write a list” starts again.";
}

function row({ text, logprob, seen_in_training: isSeen }) {
	const known = isSeen ? ", in the training list" : "";
	const detail = h("span", { class: "hint" }, ` ${bits(-logprob).toFixed(1)} bits${known}`);
	return h("li", {}, h("span", { class: "item" }, text), detail);
}

function describe({ generated, requested, rejected, seed, finish_reason: reason }) {
	const left = Object.values(rejected ?? {}).reduce((sum, n) => sum + n, 0);
	const others = left ? `, ${formatCount(left)} others left out (repeated, or in the training list)` : "";
	return `${formatCount(generated)} of ${formatCount(requested)} items${others}; seed ${seed}.${REASONS[reason] ?? ""}`;
}
