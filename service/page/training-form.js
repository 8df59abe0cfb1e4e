// The form for a new training: files are uploaded as corpora, then a training job on all of them is queued.

import { requestJson, ServiceError } from "./api.js";
import { $, formatCount, h, onSubmit, setStatus } from "./dom.js";
import { clearFieldErrors, readFields, showFieldError } from "./fields.js";

const MAX_NAME_CHARS = 64;
const DEFAULT_CORPUS = "shakespeare";
let files = [];

/** Set up the form; onQueued(job id) is called when a training has been queued. */
export function setUp(onQueued) {
  const form = $("#retrain");
  const drop = $("#drop");
  const input = $("#retrain-file");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) chooseFiles(event.dataTransfer.files);
  });
  // A file that is dropped beside the field must not replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  input.addEventListener("change", () => input.files.length && chooseFiles(input.files));
  onSubmit(form, () => train(form, onQueued));
  form.elements.corpus.addEventListener("change", () => toggleName(form));
}

function chooseFiles(chosen) {
  const form = $("#retrain");
  files = [...chosen];
  $("#drop-hint").textContent = files.map(({ name, size }) => `${name}, ${formatCount(size)} bytes`).join("; ");
  form.elements.name.value = corpusNames(files)[0];
  form.elements.corpus.value = "";
  toggleName(form);
}

/** A valid corpus name made from a file's name. */
function corpusName(fileName) {
  const stem = fileName.toLowerCase().replace(/\.[a-z0-9]+$/, "");
  const name = stem.replace(/[^a-z0-9._-]+/g, "-").replace(/^[-._]+|[-._]+$/g, "");
  return name.slice(0, MAX_NAME_CHARS) || "text";
}

/** A name for each file, no two of them the same. */
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
function toggleName(form) {
  form.elements.name.closest(".field").hidden = form.elements.corpus.value !== "" || files.length > 1;
}

/** Load the list of stored corpora into the select box. @throws {ServiceError} */
export async function refreshCorpora() {
  const form = $("#retrain");
  const select = form.elements.corpus;
  const previous = select.value;
  const { corpora } = await requestJson("GET", "/corpora");
  const options = corpora.map(({ name, characters }) =>
    h("option", { value: name }, `${name} (${formatCount(characters ?? 0)} characters)`),
  );
  select.replaceChildren(h("option", { value: "" }, "the files above"), ...options);
  if (files.length && previous === "") select.value = "";
  else select.value = corpora.some(({ name }) => name === previous) ? previous : DEFAULT_CORPUS;
  toggleName(form);
}

async function train(form, onQueued) {
  const status = $("#retrain-status");
  clearFieldErrors(form);
  setStatus(status, "");
  const { name = "text", corpus, ...settings } = readFields(form);
  try {
    const names = corpus === undefined ? await upload(name, settings.items, status) : [corpus];
    const body = { ...settings, corpus: names.length > 1 ? names : names[0] };
    const job = await requestJson("POST", "/retrain", { body });
    setStatus(status, job.position ? `Queued behind ${job.position} other trainings.` : "Queued; it starts now.");
    await refreshCorpora();
    form.elements.corpus.value = names.length > 1 ? "" : names[0];
    toggleName(form);
    onQueued(job.job_id);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    setStatus(status, "");
    const field = error.field === "body" ? "file" : error.field; // the body of PUT /corpora is the file
    if (!showFieldError(form, { field, message: error.message })) setStatus(status, error.message, true);
  }
}

/**
 * Upload the chosen files, the only one under this name, and return the names.
 * @param {string} items how their items lie, if they are lists; "auto" is detected @throws {ServiceError}
 */
async function upload(name, items, status) {
  const query = items && items !== "auto" ? `?items=${encodeURIComponent(items)}` : "";
  const names = files.length > 1 ? corpusNames(files) : [name];
  for (const [i, each] of names.entries()) {
    setStatus(status, names.length > 1 ? `Uploading text ${i + 1} of ${names.length}…` : "Uploading the text…");
    await requestJson("PUT", `/corpora/${encodeURIComponent(each)}${query}`, { body: files[i] ?? new Blob([]) });
  }
  return names;
}
