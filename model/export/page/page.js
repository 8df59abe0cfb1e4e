import { Arithmetic, createEngine } from "./engine.js";

// What the page does. It loads nothing and sends nothing; everything that a model brings is text, never markup.
const element = (id) => document.getElementById(id);
const model = JSON.parse(element("model").textContent);
const characters = [...model.characters];
const ids = new Map(characters.map((character, id) => [character, id]));
const view = element("text");
const SLICE_MS = 20; // of work between two moments in which the page can react
const LONGEST_SPAN = 400;
const names = ["i", "f", "g", "o", "c", "h"];

let engine;
let text = []; // {id, logprob}; what the prompt has is there, too
let promptLength = 0;
let read = 0; // characters of the text that the engine has read
let values = []; // of the chosen gate, by character
let spans = []; // [start, node]
let line; // the last one
let isNewLine = true;
let chosen = -1;

const pause = () => new Promise((resolve) => setTimeout(resolve, 0));
const say = (line) => {
	element("status").textContent = line;
};

// One task at a time; a new one ends the one before.
let latest = 0;
let stopped = -1; // what `latest` became when the button was pressed
let queue = Promise.resolve();
let isWriting = false;
let isRecolorDue = false; // a color was chosen that the text does not have yet
function begin(task) {
	const mine = ++latest;
	queue = queue.then(async () => {
		if (mine !== latest) return;
		element("stop").disabled = false;
		await task(() => mine === latest);
		element("stop").disabled = true;
		if (isRecolorDue && (mine === latest || latest === stopped)) recolor();
	});
}

// Work that pauses from time to time; `slice` is called until it returns false. `after` shows what is new.
async function inSlices(isCurrent, slice, after = () => {}) {
	for (let more = true; more && isCurrent(); ) {
		const end = performance.now() + SLICE_MS;
		do more = slice();
		while (more && performance.now() < end);
		after();
		await pause();
	}
}

// As model/text/normalization.py does.
function normalized(prompt) {
	if (model.normalization === "none") return prompt;
	const lines = prompt.replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");
	return model.normalization === "nfc" ? lines.normalize("NFC") : lines;
}

function level(index) {
	const color = element("color").value;
	if (color === "none") return "";
	if (color === "surprise") {
		const bits = -text[index].logprob / Math.LN2;
		return bits < 1 ? "" : `hot${Math.min(4, Math.ceil((bits - 1) / 2))}`;
	}
	const value = values[index];
	if (value === undefined || value === 0) return "";
	return `${value > 0 ? "hot" : "cold"}${Math.min(4, Math.ceil(Math.abs(value) * 4))}`;
}

// Characters of one color share an element. A line is a block, so that a browser lays out only what is new.
function show(from) {
	for (let index = from; index < text.length; index++) {
		const name = `${level(index)} ${index < promptLength ? "prompt" : ""}`.trim();
		const character = characters[text[index].id];
		if (isNewLine) {
			line = document.createElement("div");
			view.append(line);
		}
		const last = line.lastChild;
		if (last?.className === name && last.firstChild.data.length < LONGEST_SPAN) last.firstChild.data += character;
		else {
			const span = document.createElement("span");
			span.className = name;
			span.append(character);
			spans.push([index, span]);
			line.append(span);
		}
		isNewLine = character === "\n";
	}
}

function showAll() {
	view.replaceChildren();
	spans = [];
	isNewLine = true;
	show(0);
	mark();
}

function mark() {
	for (const [, span] of spans) span.classList.remove("chosen");
	if (chosen >= 0) spans[spans.findLastIndex(([start]) => start <= chosen)][1].classList.add("chosen");
}

const unitOf = () => [element("layer"), element("unit")].map((field) => field.valueAsNumber - 1);
const hasUnit = () => names[Number(element("color").value)] !== undefined;

function readFromStart() {
	engine.reset();
	engine.step(model.start);
	read = 0;
}

function readNext() {
	engine.step(text[read++].id);
}

function measure() {
	if (!hasUnit()) return;
	const [layer, unit] = unitOf();
	values[read - 1] = engine.unit(layer, unit)[Number(element("color").value)];
}

const describe = (c) => `${JSON.stringify(c)} (U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")})`;

function write(event) {
	event.preventDefault();
	const prompt = [...normalized(element("prompt").value)];
	const unknown = [...new Set(prompt.filter((character) => !ids.has(character)))];
	const listed = unknown.slice(0, 8).map(describe).join(", ");
	element("problem").textContent = unknown.length ? `The model does not know ${listed}.` : "";
	if (unknown.length) return;
	const given = prompt.map((character) => ids.get(character));
	const temperature = element("temperature").valueAsNumber;
	const seed = BigInt(element("seed").value);
	const length = given.length + element("count").valueAsNumber;
	begin(async (isCurrent) => {
		say("Writing");
		[text, values, promptLength, chosen] = [[], [], given.length, -1];
		[isWriting, isRecolorDue] = [true, false];
		showAll();
		readFromStart();
		const began = performance.now();
		let visible = 0;
		let worked = 0;
		const slice = () => {
			if (read < promptLength) text.push({ id: given[read], logprob: engine.score(given[read]) });
			else {
				const [id, logprob] = engine.draw(temperature, Arithmetic.randomValue(seed, read));
				text.push({ id, logprob });
			}
			readNext();
			measure();
			return read < length;
		};
		await inSlices(isCurrent, slice, () => {
			show(visible);
			visible = text.length;
			worked = performance.now() - began;
		});
		isWriting = false;
		const n = Math.max(0, text.length - promptLength);
		const nats = text.slice(promptLength).reduce((sum, { logprob }) => sum - logprob, 0);
		const rate = Math.round((1000 * text.length) / worked).toLocaleString("en");
		const bits = (nats / Math.LN2 / Math.max(1, n)).toFixed(3);
		const end = read < length ? "Stopped: " : "";
		say(`${end}${n.toLocaleString("en")} characters, ${rate} a second; ${bits} bits a character; ${engine.name}.`);
	});
}

// The color is of a gate: the text is read again, after it has been written.
function recolor() {
	if (!element("form").reportValidity()) return;
	isRecolorDue = true;
	if (isWriting) return;
	begin(async (isCurrent) => {
		values = [];
		readFromStart();
		if (hasUnit() && text.length)
			await inSlices(isCurrent, () => {
				readNext();
				measure();
				return read < text.length;
			});
		if (!isCurrent() && latest !== stopped) return; // what came between is done first
		isRecolorDue = false;
		showAll();
	});
}

function choose(index) {
	if (!text.length || !element("form").reportValidity()) return;
	chosen = Math.min(Math.max(index, 0), text.length - 1); // now: the next key counts from it
	mark();
	begin(async (isCurrent) => {
		if (chosen < 0) return; // another text has begun
		if (read > chosen + 1) readFromStart();
		if (read <= chosen)
			await inSlices(isCurrent, () => {
				readNext();
				return read <= chosen;
			});
		if (read !== chosen + 1) return;
		const [layer, unit] = unitOf();
		const gates = engine
			.unit(layer, unit)
			.map((value, n) => `${names[n]} ${value.toFixed(3)}`)
			.join(", ");
		const { id, logprob } = text[chosen];
		const surprise = `probability ${Math.exp(logprob).toPrecision(3)}, ${(-logprob / Math.LN2).toFixed(2)} bits`;
		element("details").textContent =
			`Character ${chosen + 1}, ${describe(characters[id])}: ${surprise}. Unit ${unit + 1} of layer ${layer + 1} after it: ${gates}.`;
	});
}

function choosePoint(event) {
	const place = document.caretPositionFromPoint?.(event.clientX, event.clientY);
	const range = place ? null : document.caretRangeFromPoint?.(event.clientX, event.clientY);
	const [node, offset] = place ? [place.offsetNode, place.offset] : [range?.startContainer, range?.startOffset];
	const match = spans.find(([, span]) => span.firstChild === node);
	if (match) choose(match[0] + [...node.data.slice(0, offset)].length);
}

view.addEventListener("click", choosePoint);
view.addEventListener("keydown", (event) => {
	const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
	if (by === undefined) return;
	event.preventDefault();
	choose(chosen + by);
});
element("form").addEventListener("submit", write);
element("stop").addEventListener("click", () => {
	stopped = ++latest;
});
for (const id of ["color", "layer", "unit"]) element(id).addEventListener("change", recolor);

createEngine(model, element("weights").textContent).then(
	(created) => {
		engine = created;
		element("start").disabled = false;
		say(`Ready: ${engine.name}. Nothing is loaded from anywhere, and nothing is sent.`);
	},
	(error) => say(`This browser cannot run the page: ${error.message}`),
);
