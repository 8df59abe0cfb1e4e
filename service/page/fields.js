// Form fields by the service's own names. The service judges what is in them: its message is shown at the field.

import { $ } from "./dom.js";

const NUMBERS = new Set(["max_chars", "temperature", "top_k", "top_p", "min_p", "seed", "layer", "minutes", "position"]);

/** The form's fields as a body. Empty ones are left out; what is no number is sent as it is, to be told so. */
export function values(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.type === "file") continue;
    if (field.type === "checkbox") found[field.name] = field.checked;
    else if (field.name === "stop") found.stop = stops(field.value);
    else if (NUMBERS.has(field.name)) {
      const text = field.value.trim();
      if (text) found[field.name] = number(text);
    } else if (field.value || field.name === "text") found[field.name] = field.value;
  }
  if (found.stop?.length === 0) delete found.stop;
  return found;
}

function number(text) {
  const value = Number(text);
  // A seed may be larger than a number here can hold exactly; then it is sent as text, and the service says so.
  return Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value)) ? value : text;
}

/** One stop string a line; \n in it is a line's end, \\ a backslash. */
function stops(text) {
  return text
    .split("\n")
    .filter((line) => line)
    .map((line) => line.replace(/\\(n|\\)/g, (_, c) => (c === "n" ? "\n" : "\\")));
}

/** Show the service's message at the field that it names; false when the form has no such field. */
export function complain(form, error) {
  const field = form.elements.namedItem(error.field.split(".")[0]);
  if (!error.field || !field || !("setAttribute" in field)) return false;
  let note = $(`#${field.id}-error`);
  if (!note) {
    note = document.createElement("p");
    note.id = `${field.id}-error`;
    note.className = "error";
    field.closest(".field").append(note);
  }
  note.textContent = error.message;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", note.id);
  const details = field.closest("details");
  if (details) details.open = true;
  field.focus();
  return true;
}

export function forgive(form) {
  for (const note of form.querySelectorAll(".field .error")) note.remove();
  for (const field of form.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}
