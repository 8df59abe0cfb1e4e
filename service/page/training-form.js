// The form for a new training: a file is uploaded as a corpus, then a training job is queued.

import { requestJson, ServiceError } from "./api.js";
import { $, formatCount, h, onSubmit, setStatus } from "./dom.js";
import { clearFieldErrors, readFields, showFieldError } from "./fields.js";

const MAX_NAME_CHARS = 64;
const DEFAULT_CORPUS = "shakespeare";
let file = null;

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
    if (event.dataTransfer.files.length) chooseFile(event.dataTransfer.files[0]);
  });
  // A file that is dropped beside the field must not replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  input.addEventListener("change", () => input.files.length && chooseFile(input.files[0]));
  onSubmit(form, () => train(form, onQueued));
  form.elements.corpus.addEventListener("change", () => toggleName(form));
}

function chooseFile(chosen) {
  const form = $("#retrain");
  file = chosen;
  $("#drop-hint").textContent = `${chosen.name}, ${formatCount(chosen.size)} bytes`;
  form.elements.name.value = corpusName(chosen.name);
  form.elements.corpus.value = "";
  toggleName(form);
}

/** A valid corpus name made from a file's name. */
function corpusName(fileName) {
  const stem = fileName.toLowerCase().replace(/\.[a-z0-9]+$/, "");
  const name = stem.replace(/[^a-z0-9._-]+/g, "-").replace(/^[-._]+|[-._]+$/g, "");
  return name.slice(0, MAX_NAME_CHARS) || "text";
}

/** A new file needs a name; a stored corpus has one. */
function toggleName(form) {
  form.elements.name.closest(".field").hidden = form.elements.corpus.value !== "";
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
  select.replaceChildren(h("option", { value: "" }, "the file above"), ...options);
  if (file && previous === "") select.value = "";
  else select.value = corpora.some(({ name }) => name === previous) ? previous : DEFAULT_CORPUS;
  toggleName(form);
}

async function train(form, onQueued) {
  const status = $("#retrain-status");
  clearFieldErrors(form);
  setStatus(status, "");
  const { name = "text", corpus, ...settings } = readFields(form);
  try {
    if (corpus === undefined) {
      setStatus(status, "Uploading the text…");
      await requestJson("PUT", `/corpora/${encodeURIComponent(name)}`, { body: file ?? new Blob([]) });
    }
    const job = await requestJson("POST", "/retrain", { body: { ...settings, corpus: corpus ?? name } });
    setStatus(status, job.position ? `Queued behind ${job.position} other trainings.` : "Queued; it starts now.");
    await refreshCorpora();
    form.elements.corpus.value = corpus ?? name;
    toggleName(form);
    onQueued(job.job_id);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    setStatus(status, "");
    const field = error.field === "body" ? "file" : error.field; // the body of PUT /corpora is the file
    if (!showFieldError(form, { field, message: error.message })) setStatus(status, error.message, true);
  }
}
