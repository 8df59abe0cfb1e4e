// Characters that a model has never seen: what is said of them, and how they are skipped.

import { button, h, setStatus, symbol } from "./dom.js";
import { showFieldError } from "./fields.js";

const LISTED = 8;

export function unknownCharacters(error) {
	const { value } = error.details ?? {};
	const isAboutThem = Array.isArray(value) && value.length > 0 && value.every((v) => v?.character !== undefined);
	return isAboutThem ? [...new Set(value.map(({ character }) => character))] : null;
}

/** Show unknown characters at a field, with a button that skips them: onSkip() sends the request again. */
export function offerToSkip(field, characters, onSkip) {
	const listed = characters.slice(0, LISTED).map(symbol).join(", ");
	const more = characters.length > LISTED ? ` and ${characters.length - LISTED} others` : "";
	const text = `This model has never seen ${listed}${more}. `;
	const note = h("p", { class: "error", id: `${field.id}-error` }, text, button("Skip them", onSkip));
	field.closest(".field").append(note);
	field.setAttribute("aria-invalid", "true");
	field.setAttribute("aria-describedby", note.id);
	note.lastChild.focus();
}

export function showTextError(form, status, error, onSkip) {
	const unknown = error.field === "text" ? unknownCharacters(error) : null;
	setStatus(status, "");
	if (unknown) offerToSkip(form.elements.text, unknown, onSkip);
	else if (!showFieldError(form, error)) setStatus(status, error.message, true);
}

export function describeSkipped(n) {
	if (!n) return "";
	return n === 1
		? "1 character that the model has never seen was skipped."
		: `${n.toLocaleString("en")} characters that the model has never seen were skipped.`;
}
