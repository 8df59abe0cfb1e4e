// The form for a new training: a text is previewed, stored as a corpus, then a training job on it is queued.

import { attempt, request, requestJson } from "./api.js";
import { $, formatCount, h, hint, onSubmit, setStatus } from "./dom.js";
import { clearFieldErrors, readFields, showFieldError } from "./fields.js";
import { mainPane } from "./generate.js";
import { corpusOf } from "./served.js";

const MAX_NAME_CHARS = 64;
const DEFAULT_CORPUS = "shakespeare";
const PREVIEWED_BYTES = 2 ** 20; // the beginning of a file: what the service looks at to tell lists from texts
const PREVIEW_MS = 300;
const SHOWN_LINES = 5;
const PRESETS = {
	quick: ["3", "A small network: for lists, and a first look at a text."],
	standard: ["20", "Two large layers."],
	best: ["15", "The lowest loss."],
};
const form = $("#retrain");
const { elements } = form;
let files = [];
let previews = 0;
let timer = 0;
let hasOwnModel = false; // whether the user has chosen the model's name

export function setUp(onQueued) {
	const drop = $("#drop");
	const input = $("#retrain-file");
	for (const name of ["dragenter", "dragover"]) {
		drop.addEventListener(name, () => drop.classList.add("over"));
	}
	for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
	drop.addEventListener("drop", (event) => {
		if (event.dataTransfer.files.length) chooseFiles(event.dataTransfer.files);
	});
	// A file that is dropped beside the field must not replace the page.
	for (const name of ["dragenter", "dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
	input.addEventListener("change", () => input.files.length && chooseFiles(input.files));
	$("#retrain-paste").addEventListener("input", ({ target }) => {
		chooseFiles(target.value ? [new File([target.value], "pasted.txt")] : []);
	});
	onSubmit(form, () => train(onQueued));
	elements.corpus.addEventListener("change", () => toggleName());
	elements.model.addEventListener("input", () => {
		hasOwnModel = true;
	});
	for (const name of ["items", "column"]) elements[name].addEventListener("change", () => preview());
	const explain = () => {
		const [minutes, help] = PRESETS[elements.preset.value];
		$("#preset-help").textContent = help;
		elements.minutes.value = minutes;
	};
	elements.preset.addEventListener("change", explain);
	explain();
}

function chooseFiles(chosen) {
	files = [...chosen];
	$("#drop-hint").textContent = files.map(({ name, size }) => `${name}, ${formatCount(size)} bytes`).join("; ");
	elements.name.value = files.length ? corpusNames(files)[0] : "";
	elements.corpus.value = "";
	toggleName();
	clearTimeout(timer);
	timer = setTimeout(() => preview(), PREVIEW_MS);
}

async function preview() {
	const box = $("#preview");
	clearFieldErrors(form);
	previews += 1;
	const current = previews;
	box.hidden = !files.length;
	if (!files.length) return;
	const [file] = files;
	const isWhole = file.size <= PREVIEWED_BYTES;
	const bytes = new Uint8Array(await file.slice(0, PREVIEWED_BYTES).arrayBuffer());
	const end = isWhole ? bytes.length : bytes.lastIndexOf(10) + 1 || bytes.length;
	const path = `/preview?name=${corpusNames([file])[0]}${layoutQuery().replace("?", "&")}`;
	const show = async () => {
		const info = await requestJson("POST", path, { body: new Blob([bytes.slice(0, end)]) });
		if (current !== previews) return;
		const lines = new TextDecoder().decode(bytes.slice(0, end)).split(/\r\n?|\n/);
		const n = lines.length - (lines.at(-1) ? 0 : 1);
		const size = `${formatCount(info.characters)} characters, ${formatCount(info.distinct_characters)} different ones`;
		const kind = info.layout.items === "text" ? "Read as one text." : `Read as a list (${info.layout.items}).`;
		proposeModel(info.layout.items !== "text");
		const part = isWhole ? "" : "The beginning of it: ";
		box.replaceChildren(
			h("p", {}, h("b", {}, `${part}${formatCount(n)} lines, ${size}. ${kind}`)),
			...info.notes.map((note) => hint(note)),
			h("pre", {}, lines.slice(0, SHOWN_LINES).join("\n")),
		);
	};
	await attempt(show, (error) => {
		if (current !== previews) return;
		box.hidden = true;
		showError(error);
	});
}

/** A text unlike that of the model that serves makes a model of its own, unless the user says otherwise. */
function proposeModel(isList) {
	const { model } = mainPane().chooser;
	if (hasOwnModel || !model) return;
	const name = elements.name.value;
	const isAlike = model.is_list === isList && corpusOf(model) === name;
	elements.model.value = isAlike ? "" : name.replace(/[^a-z0-9-]/g, "-").slice(0, 63);
}

function corpusName(fileName) {
	const stem = fileName.toLowerCase().replace(/\.[a-z0-9]+$/, "");
	const name = stem.replace(/[^a-z0-9._-]+/g, "-").replace(/^[-._]+|[-._]+$/g, "");
	return name.slice(0, MAX_NAME_CHARS) || "text";
}

function corpusNames(files) {
	const names = [];
	for (const file of files) {
		const stem = corpusName(file.name);
		let name = stem;
		for (let n = 2; names.includes(name); n++) name = `${stem.slice(0, MAX_NAME_CHARS - 1 - String(n).length)}-${n}`;
		names.push(name);
	}
	return names;
}

/** A new file needs a name; several have their own, and so has a stored corpus. */
function toggleName() {
	elements.name.closest(".field").hidden = elements.corpus.value !== "" || files.length > 1;
}

export async function refreshCorpora() {
	const select = elements.corpus;
	const previous = select.value;
	const { corpora } = await requestJson("GET", "/corpora");
	const options = corpora.map(({ name, characters }) =>
		h("option", { value: name }, `${name} (${formatCount(characters ?? 0)} characters)`),
	);
	select.replaceChildren(h("option", { value: "" }, "the text above"), ...options);
	if (files.length && previous === "") select.value = "";
	else select.value = corpora.some(({ name }) => name === previous) ? previous : DEFAULT_CORPUS;
	toggleName();
}

function showError(error) {
	const field = error.field === "body" ? "file" : error.field; // the body of PUT /corpora is the file
	const details = error.details ?? {};
	if (!showFieldError(form, { field, message: error.message, details })) {
		setStatus($("#retrain-status"), error.message, true);
	}
}

async function train(onQueued) {
	const status = $("#retrain-status");
	clearFieldErrors(form);
	setStatus(status, "");
	const { name = "text", corpus, paste: _, ...settings } = readFields(form);
	if (corpus === undefined && !files.length) {
		showError({ field: "file", message: "Choose a file, drop one here, or paste a text." });
		return;
	}
	const stored = [];
	const queue = async () => {
		const names = corpus === undefined ? await upload(name, status, stored) : [corpus];
		const body = { ...settings, corpus: names.length > 1 ? names : names[0] };
		const job = await requestJson("POST", "/retrain", { body });
		await refreshCorpora();
		elements.corpus.value = names.length > 1 ? "" : names[0];
		toggleName();
		setStatus(status, "");
		onQueued(job.job_id);
	};
	await attempt(queue, async (error) => {
		setStatus(status, "");
		showError(error);
		// A text that cannot be trained on is not kept.
		for (const entry of stored) await requestJson("DELETE", `/corpora/${entry}`).catch(() => {});
	});
}

function layoutQuery() {
	const { items, column } = elements;
	if (items.value === "auto") return "";
	return `?${new URLSearchParams({ items: items.value, ...(column.value ? { column: column.value } : {}) })}`;
}

/** Upload the chosen files, one alone under this name. Return the names; new ones are appended to `stored`. */
async function upload(name, status, stored) {
	const names = files.length > 1 ? corpusNames(files) : [name];
	for (const [i, entry] of names.entries()) {
		setStatus(status, names.length > 1 ? `Uploading text ${i + 1} of ${names.length}…` : "Uploading the text…");
		const path = `/corpora/${encodeURIComponent(entry)}${layoutQuery()}`;
		const response = await request("PUT", path, { body: files[i] });
		if (response.status === 201) stored.push(entry);
	}
	return names;
}
