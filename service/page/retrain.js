// A new training: a file is dropped, stored as a corpus, and a model of it is asked for.

import { ServiceError, json } from "./api.js";
import { $, count, h } from "./dom.js";
import { complain, forgive, values } from "./fields.js";

let file = null;

/** onbegun(job id) when a training has been put in the line. */
export function setUp(onbegun) {
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
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  // A file that misses the field must not replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  input.addEventListener("change", () => input.files.length && take(input.files[0]));
  form.addEventListener("submit", (event) => (event.preventDefault(), begin(form, onbegun)));
  form.elements.corpus.addEventListener("change", () => toggle(form));
}

function take(chosen) {
  const form = $("#retrain");
  file = chosen;
  $("#drop-what").textContent = `${chosen.name}, ${count(chosen.size)} bytes`;
  const name = chosen.name.toLowerCase().replace(/\.[a-z0-9]+$/, "").replace(/[^a-z0-9._-]+/g, "-").replace(/^[-._]+|[-._]+$/g, "").slice(0, 64);
  form.elements.name.value = name || "text";
  form.elements.corpus.value = "";
  toggle(form);
}

function toggle(form) {
  form.elements.name.closest(".field").hidden = form.elements.corpus.value !== "";
}

/** The texts that are there already. Thrown: ServiceError. */
export async function corpora() {
  const select = $("#retrain").elements.corpus;
  const before = select.value;
  const found = (await json("GET", "/corpora")).corpora;
  const options = found.map((c) => h("option", { value: c.name }, `${c.name} (${count(c.characters ?? 0)} characters)`));
  select.replaceChildren(h("option", { value: "" }, "the file above"), ...options);
  select.value = file && before === "" ? "" : found.some((c) => c.name === before) ? before : "shakespeare";
  toggle($("#retrain"));
}

async function begin(form, onbegun) {
  const status = $("#retrain-status");
  forgive(form);
  status.classList.remove("error");
  const { name = "text", corpus, ...wanted } = values(form);
  try {
    if (corpus === undefined) {
      status.textContent = "Storing the text…";
      await json("PUT", `/corpora/${encodeURIComponent(name)}`, { body: file ?? new Blob([]) });
    }
    const job = await json("POST", "/retrain", { body: { ...wanted, corpus: corpus ?? name } });
    status.textContent = job.position ? `In the line, ${job.position} before it.` : "It begins.";
    await corpora();
    form.elements.corpus.value = corpus ?? name;
    toggle(form);
    onbegun(job.job_id);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    status.textContent = "";
    const field = error.field === "body" ? "file" : error.field; // a corpus's body is the file
    if (!complain(form, { field, message: error.message })) {
      status.textContent = error.message;
      status.classList.add("error");
    }
  }
}
