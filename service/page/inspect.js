// The view Look inside: the gates of one unit, one character at a time, while the network reads a text.

import { attempt, requestJson } from "./api.js";
import { $, button, formatCount, h, hint, onClick, onSubmit, setStatus, symbol, wordFor } from "./dom.js";
import { clearFieldErrors, parseNumber, readFields, showFieldError } from "./fields.js";
import { mainPane } from "./generate.js";
import { coloredText, drawHeatmap } from "./heatmap.js";
import { describeSkipped, showTextError } from "./unknown.js";

const QUANTITIES = {
	f: ["forget gate f", "1 keeps all of the old memory, 0 forgets it."],
	i: ["learn gate i (input gate)", "1 adds all of the candidate, 0 nothing."],
	g: ["candidate g", "What could be learned from this character: from -1 to 1."],
	c: ["long-term memory c (remember)", "The cell state. Only f, i and g change it. Colors show tanh(c)."],
	o: ["use gate o (output gate)", "1 puts out all of the memory, 0 nothing."],
	h: ["short-term memory h", "What the unit tells the next layer, and itself at the next character: from -1 to 1."],
};
const OTHER_CELLS = {
	gru: "This model is a GRU: it has one memory, h, and the gates r (reset), z (update) and n (candidate); h = (1 - z) × n + z × old h. It has no c to forget or to use.",
	rnn: "This model is a plain RNN: it has one memory, h, and no gates. At each character all of h is overwritten: h = tanh(W x + U old h + b). It has nothing to forget, learn or use.",
};
const COPIED_CHARS = 600;
const DIGITS = 3;
const STEP_MS = 700;
let result = null;
let unit = null; // null: the one with the strongest correlation
let isChosen = false; // whether the user has chosen the unit
let at = 0; // index of the character
let timer = 0;
let requests = 0;
let model = ""; // the name of the one whose gates are shown

export function setUp() {
	const form = $("#inspect");
	onSubmit(form, () => {
		if (!isChosen) unit = null;
		inspect();
	});
	form.addEventListener("change", ({ target }) => {
		if (target.name === "layer") unit = null;
		if (["map", "layer"].includes(target.name)) inspect("skip");
	});
	onClick("#inspect-copy", () => {
		form.elements.text.value = Array.from(mainPane().text.toString()).slice(-COPIED_CHARS).join("");
		inspect("skip");
	});
	const map = $("#map");
	map.addEventListener("click", (event) => {
		if (!result) return;
		const row = Math.floor((event.offsetY / map.clientHeight) * result.n_hidden);
		chooseUnit(sortedUnits()[Math.max(0, Math.min(result.n_hidden - 1, row))]);
	});
	$("#unit").addEventListener("change", (event) => chooseUnit(parseNumber(event.target.value)));
	onClick("#walk-back", () => step(-1));
	onClick("#walk-on", () => step(1));
	onClick("#walk-play", () => play(!timer));
	matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => result && draw());
}

/** Look at the text once with each model that is chosen, so that the view is not empty. */
export function onShow() {
	if (model === mainPane().chooser.name || !$("#notice").hidden) return;
	unit = null;
	$("#inspect").elements.layer.value = "0";
	inspect("skip");
}

export function onHide() {
	play(false);
}

function chooseUnit(number, layer = null) {
	unit = number;
	isChosen = true;
	if (layer !== null) $("#inspect").elements.layer.value = String(layer);
	inspect("skip");
}

async function inspect(onUnknown = "error") {
	const form = $("#inspect");
	const status = $("#inspect-status");
	const { chooser } = mainPane();
	const cell = chooser.model?.network.cell;
	model = chooser.name;
	requests += 1;
	const request = requests; // an answer that comes after a newer request is ignored
	clearFieldErrors(form);
	if (OTHER_CELLS[cell]) {
		setStatus(status, `${OTHER_CELLS[cell]} So there is nothing to walk through here.`);
		$("#inspect-result").hidden = true;
		return;
	}
	if (!form.elements.text.value) {
		showFieldError(form, { field: "text", message: "Write or paste a text of at least 1 character to look at." });
		return;
	}
	setStatus(status, "Computing…");
	const show = async () => {
		const { layer = 0, units: _, ...fields } = readFields(form);
		const body = { ...fields, layer: Number(layer), on_unknown: onUnknown, model };
		if (unit === null) {
			const { unit_correlations: units } = await requestJson("POST", "/inspect", { body: { ...body, map: undefined } });
			if (request !== requests) return;
			unit = byCorrelation(units, body.layer)[0]?.unit ?? 0;
		}
		const answer = await requestJson("POST", "/inspect", { body: { ...body, units: [unit] } });
		if (request !== requests) return;
		result = { ...answer, text: Array.from(answer.text), sent: Array.from(body.text).length };
		at = Math.min(at, result.characters - 1);
		draw();
	};
	await attempt(show, (error) => {
		if (request === requests) showTextError(form, status, error, () => inspect("skip"));
	});
}

/** The units of a layer that correlate with the text's features, the strongest first. */
function byCorrelation(correlations, layer) {
	const all = Object.entries(correlations).flatMap(([feature, { units }]) => units.map((u) => ({ ...u, feature })));
	return all.filter((u) => u.layer === layer).sort((a, b) => Math.abs(b.r) - Math.abs(a.r));
}

const toColorRange = (quantity, values) => ("fio".includes(quantity) ? values.map((v) => 2 * v - 1) : values);

function sortedUnits() {
	const means = result.map.values.map((row) => row.reduce((sum, v) => sum + v, 0));
	return means.map((_, i) => i).sort((a, b) => means[b] - means[a]);
}

function draw() {
	const { layer, n_layers: layers, n_hidden: hidden, characters, map } = result;
	const { layer: select } = $("#inspect").elements;
	const read = `${formatCount(characters)} characters; layer ${layer + 1} of ${layers}, ${hidden} units.`;
	setStatus($("#inspect-status"), [read, describeSkipped(result.sent - characters)].filter(Boolean).join(" "));
	$("#inspect-result").hidden = false;
	$("#unit").value = String(unit);
	const names = Array.from({ length: layers }, (_, i) => (i ? `${i + 1}` : "1, the lowest"));
	select.replaceChildren(...names.map((name, i) => h("option", { value: String(i) }, name)));
	select.value = String(layer);
	drawText();
	drawStep();
	const [name, meaning] = QUANTITIES[map.of];
	const order = sortedUnits();
	drawHeatmap(
		$("#map"),
		order.map((i) => toColorRange(map.of, map.values[i])),
	);
	$("#map-low").textContent = "fio".includes(map.of) ? "0" : "-1";
	$("#map").setAttribute("aria-label", `${name} of ${hidden} units (rows) by ${characters} characters (columns)`);
	$("#map-hint").textContent = `${name}: a row is a unit, a column a character, sorted by the mean. ${meaning}`;
	const correlations = Object.entries(result.unit_correlations);
	$("#unit-correlations").replaceChildren(...correlations.map(([feature, units]) => ranking(feature, units)));
}

function drawText() {
	const { of } = result.map;
	const values = result.units[0][of];
	const drawn = of === "c" ? values.map(Math.tanh) : values;
	const label = `${QUANTITIES[of][0]} of unit ${unit} by character`;
	const box = coloredText(result.text, toColorRange(of, drawn), label, goTo);
	box.dataset.gate = of;
	box.addEventListener("keydown", (event) => {
		const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
		if (by) step(by);
		if (by) event.preventDefault();
	});
	$("#strips").replaceChildren(hint(`Color: ${label}.`), box);
}

function goTo(index) {
	at = index;
	drawStep();
}

function step(by) {
	goTo((at + by + result.characters) % result.characters);
}

function play(isOn) {
	clearInterval(timer);
	timer = isOn ? setInterval(() => step(1), STEP_MS) : 0;
	$("#walk-play").textContent = isOn ? "Pause" : "Play";
}

function drawStep() {
	const { old_c: before, f, i, g, o, c, h: output } = result.units[0];
	const character = result.text[at];
	for (const [n, span] of [...$("#strips .strip").children].entries()) span.classList.toggle("selected", n === at);
	$("#walk-at").textContent = `Character ${at + 1} of ${result.characters}: ${symbol(character)}`;
	const equation = (...parts) => h("p", { class: "equation" }, ...parts);
	const sign = (text) => h("span", { class: "sign" }, text);
	$("#walk-step").replaceChildren(
		equation(
			...[term("forget f", f[at], "f"), sign("×"), term("old c", before[at], "old")],
			...[sign("+"), term("learn i", i[at], "i"), sign("×"), term("candidate g", g[at], "g")],
			...[sign("="), term("new c", c[at], "c", "remember")],
		),
		equation(
			...[term("use o", o[at], "o"), sign("×"), term("tanh(new c)", Math.tanh(c[at]), "tanh")],
			...[sign("="), term("h", output[at], "h", "short-term memory")],
		),
	);
	const kept = `It keeps ${percentOf(f[at])} of its memory, adds ${percentOf(i[at])} of the candidate`;
	const line = `At ${wordFor(character)}: ${kept} and uses ${percentOf(o[at])} of the result.`;
	$("#walk-voice").textContent = [line, describeStart()].filter(Boolean).join(" ");
}

/** Where the old memory comes from, if not from the character before. */
function describeStart() {
	if (result.item_starts.includes(at)) return "An item ends here: the memory begins again at 0.";
	if (at) return "";
	const text = mainPane().chooser.model?.is_list ? "A text of a list" : "Each text";
	return `${text} begins after an unseen line end, which is read with a memory of 0: old c is what it left.`;
}

const percentOf = (share) => `${(100 * share).toFixed(0)} %`;

function term(name, value, key, word = "") {
	const bar = h("i", { class: value < 0 ? "bar minus" : "bar" });
	bar.style.width = `${50 * Math.min(1, Math.abs(value))}%`;
	const number = h("b", { "data-term": key }, value.toFixed(DIGITS));
	return h(
		"span",
		{ class: "term" },
		h("span", {}, name),
		number,
		h("span", { class: "axis" }, bar),
		h("small", {}, word),
	);
}

function ranking(feature, { description, units: best }) {
	const rows = best.slice(0, 3).map(({ layer, unit: number, r }) => {
		const label = `layer ${layer + 1}, unit ${number}`;
		const onclick = () => chooseUnit(number, layer);
		return h("li", {}, button(label, onclick, { class: "link" }), ` r = ${r.toFixed(2)}`);
	});
	const list = rows.length ? h("ol", {}, ...rows) : hint("It does not vary in this text.");
	return h("section", { "data-feature": feature }, h("h3", {}, description), list);
}
