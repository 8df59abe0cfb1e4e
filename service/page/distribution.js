// What a character was sampled from: the most probable characters and the remaining probability.

import { bits, h, hint, percent, symbol, wordFor } from "./dom.js";

export function showDistribution(element, character, entry, note = "") {
	const inTop = entry.top.some(([c]) => c === character);
	const largest = entry.top[0]?.[2] || 1;
	const rows = entry.top.map(([c, logprob, p]) => row(c, p, largest, Math.exp(logprob), c === character));
	if (!inTop) rows.push(row(character, entry.probability, largest, Math.exp(entry.logprob), true));
	const sampledRest = 1 - sum(entry.top.map(([, , p]) => p)) - (inTop ? 0 : entry.probability);
	const modelRest = 1 - sum(entry.top.map(([, logprob]) => Math.exp(logprob))) - (inTop ? 0 : Math.exp(entry.logprob));
	rows.push(row(null, Math.max(0, sampledRest), largest, Math.max(0, modelRest), false));
	const surprise = ` ${bits(-entry.logprob).toFixed(2)} bits of surprise`;
	const header = h("tr", {}, h("th", {}, "next"), h("th", { colspan: "2" }, "sampled from"), h("th", {}, "model"));
	element.replaceChildren(
		h("p", { class: "sampled" }, h("b", { class: "character" }, symbol(character)), surprise),
		h("table", {}, h("caption", {}, "Distribution of this character"), h("thead", {}, header), h("tbody", {}, ...rows)),
		note && hint(note),
	);
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function row(character, probability, largest, modelProbability, isSampled) {
	const name =
		character === null
			? h("th", { scope: "row" }, "all others")
			: h("th", { scope: "row", class: "character", title: wordFor(character) }, symbol(character));
	const isExcluded = character !== null && probability === 0; // by the pattern or by a filter
	const bar = h("i", { class: "bar" });
	bar.style.width = `${Math.min(100, (100 * probability) / largest)}%`;
	const data = {
		class: [isSampled && "is-sampled", isExcluded && "is-excluded"].filter(Boolean).join(" "),
		"data-character": character ?? "",
		"data-probability": String(probability),
		"data-model": String(modelProbability),
	};
	const cells = [percent(probability), percent(modelProbability)].map((text) => h("td", { class: "n" }, text));
	return h("tr", data, name, h("td", { class: "bars" }, bar), ...cells);
}

export function describeDistribution(character, entry) {
	const others = entry.top.filter(([c]) => c !== character).slice(0, 3);
	const alternatives = others.map(([c, , p]) => `${wordFor(c)} ${percent(p)}`).join(", ");
	const surprise = `${bits(-entry.logprob).toFixed(1)} bits of surprise`;
	return `${wordFor(character)}, ${percent(entry.probability)}, ${surprise}. Alternatives: ${alternatives}.`;
}
