// Characters that a model has never seen: what is said of them, and how they are skipped.

import { h, symbol } from "./dom.js";

const LISTED = 8;

/** The different characters of an error about unknown ones, or null for an error about something else. */
export function unknownCharacters(error) {
  const { value } = error.details ?? {};
  const isAboutThem = Array.isArray(value) && value.length > 0 && value.every((v) => v?.character !== undefined);
  return isAboutThem ? [...new Set(value.map(({ character }) => character))] : null;
}

export function describeUnknown(characters) {
  const listed = characters.slice(0, LISTED).map(symbol).join(", ");
  const more = characters.length > LISTED ? ` and ${characters.length - LISTED} others` : "";
  return `This model has never seen ${listed}${more}.`;
}

/** Show unknown characters at a field, with a button that skips them: onSkip() sends the request again. */
export function offerToSkip(field, characters, onSkip) {
  const note = h("p", { class: "error", id: `${field.id}-error` }, `${describeUnknown(characters)} `);
  note.append(h("button", { type: "button", onclick: onSkip }, "Skip them"));
  field.closest(".field").append(note);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", note.id);
  note.lastChild.focus();
}

export function describeSkipped(n) {
  if (!n) return "";
  return n === 1
    ? "1 character that the model has never seen was skipped."
    : `${n.toLocaleString("en")} characters that the model has never seen were skipped.`;
}
