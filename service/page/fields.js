// Form fields as the body of a request. A field is named as in the API; the service validates it and its message is
// shown at the field. A number field has an inputmode (not type=number, which would hide what was typed).

import { $ } from "./dom.js";

/** A form's named fields as a request body, without empty ones; text in a number field is sent as it is. */
export function readFields(form) {
	const body = {};
	for (const field of form.elements) {
		if (!field.name || field.disabled || field.type === "file") continue;
		if (field.type === "checkbox") body[field.name] = field.checked;
		else if (field.name === "stop") body.stop = parseStopStrings(field.value);
		else if (field.name === "structured_outputs") {
			if (field.value) body.structured_outputs = { regex: field.value };
		} else if (field.inputMode) {
			const text = field.value.trim();
			if (text) body[field.name] = parseNumber(text);
		} else if (field.value || field.name === "text") body[field.name] = field.value;
	}
	if (body.stop?.length === 0) delete body.stop;
	return body;
}

/** A number, or the text itself where it is none, so that the service reports it. */
export function parseNumber(text) {
	const value = Number(text);
	// An integer beyond 2^53 would be rounded here: it is sent as text, and the service reports it.
	return text.trim() && Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value))
		? value
		: text;
}

/** One stop string per line; \n in it is a line break, \\ a backslash. */
function parseStopStrings(text) {
	return text
		.split("\n")
		.filter((line) => line)
		.map((line) => line.replace(/\\(n|\\)/g, (_, c) => (c === "n" ? "\n" : "\\")));
}

export function showFieldError(form, error) {
	const field = form.elements.namedItem(error.field.split(".")[0]);
	if (!error.field || !field || !("setAttribute" in field)) return false;
	for (const other of error.details?.more ?? []) mark(form, other.field, other.message);
	mark(form, error.field, error.message);
	field.closest("details")?.setAttribute("open", "");
	field.focus();
	return true;
}

function mark(form, name, message) {
	const field = form.elements.namedItem(name.split(".")[0]);
	if (field && "setAttribute" in field) markField(field, message);
}

export function markField(field, message) {
	let note = $(`#${field.id}-error`);
	if (!note) {
		note = document.createElement("p");
		note.id = `${field.id}-error`;
		note.className = "error";
		field.closest(".field").append(note);
	}
	note.textContent = message;
	field.setAttribute("aria-invalid", "true");
	field.setAttribute("aria-describedby", [note.id, field.dataset.help].filter(Boolean).join(" "));
	field.closest("details")?.setAttribute("open", "");
}

export function clearFieldErrors(form) {
	for (const field of form.querySelectorAll("[aria-invalid]")) unmarkField(field);
}

export function unmarkField(field) {
	$(`#${field.id}-error`)?.remove();
	field.removeAttribute("aria-invalid");
	if (field.dataset.help) field.setAttribute("aria-describedby", field.dataset.help);
	else field.removeAttribute("aria-describedby");
}
