// The view Learn: trainings with their curves, samples and advice; a new one from a text file; cancel, compare.

import { ServiceError, json } from "./api.js";
import { draw } from "./curves.js";
import { $, bits, count, h, span } from "./dom.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as retrain from "./retrain.js";

const KEPT_SAMPLES = 6;
let known = []; // as GET /jobs lists them
let details = new Map(); // by id: with losses
let chosen = null;
const compared = new Set();
let following = null;
let isShown = false;

export function setUp() {
  retrain.setUp(async (id) => {
    await list();
    choose(id);
  });
  models.setUp();
  for (const name of ["by", "unit"]) $(`#curve-${name}`).addEventListener("change", curve);
  addEventListener("resize", () => isShown && curve());
  $("#learn-again").addEventListener("click", shown);
}

export async function shown() {
  isShown = true;
  try {
    await list();
    $("#learn-locked").hidden = true;
    await Promise.all([models.list(), retrain.corpora()]);
    const first = known.find((job) => job.job_id === chosen) ?? known.find(jobs.isLive) ?? known[0];
    if (first) choose(first.job_id);
  } catch (error) {
    locked(error);
  }
}

export function hidden() {
  isShown = false;
  following?.abort();
}

function locked(error) {
  if (!(error instanceof ServiceError)) throw error;
  $("#learn-locked").hidden = false;
  $("#learn-why").textContent = error.message;
}

async function list() {
  known = (await json("GET", "/jobs")).jobs;
  rows();
}

/** Follow this one, and show what it does. */
async function choose(id) {
  following?.abort();
  const mine = (following = new AbortController());
  chosen = id;
  rows();
  try {
    let state = "";
    await jobs.follow(id, mine.signal, (job) => {
      if (mine.signal.aborted) return;
      details.set(id, job);
      show(job);
      if (state && state !== job.state) {
        list().catch(locked);
        models.list().catch(locked);
      }
      state = job.state;
    });
  } catch (error) {
    if (!mine.signal.aborted) locked(error);
  }
}

async function compare(id, isOn) {
  if (isOn) {
    compared.add(id);
    if (!details.has(id)) details.set(id, await jobs.get(id));
  } else compared.delete(id);
  curve();
}

function rows() {
  $("#jobs").replaceChildren(
    ...(known.length ? known.map(row) : [h("tr", {}, h("td", { colspan: 5 }, "No training has been asked for yet."))]),
  );
}

function row(job) {
  const name = nameOf(job);
  const best = job.result?.checkpoint?.val_loss ?? job.progress?.best_val_loss;
  const cancel = h("button", { type: "button", onclick: () => stop(job.job_id), disabled: job.cancelling }, job.cancelling ? "Cancelling" : "Cancel");
  cancel.setAttribute("aria-label", `Cancel ${name}`);
  const look = h("button", { type: "button", class: "link", onclick: () => choose(job.job_id) }, name);
  if (job.job_id === chosen) look.setAttribute("aria-current", "true");
  const box = h("input", { type: "checkbox", "aria-label": `Compare ${name}`, checked: compared.has(job.job_id), onchange: (e) => compare(job.job_id, e.target.checked) });
  return h(
    "tr",
    { class: job.job_id === chosen ? "is-chosen" : "", "data-job": job.job_id },
    h("td", {}, box),
    h("th", { scope: "row" }, look),
    h("td", { class: `state ${job.state}` }, job.state),
    h("td", { class: "n" }, loss(best)),
    h("td", {}, jobs.isLive(job) ? cancel : null),
  );
}

async function stop(id) {
  try {
    await json("DELETE", `/jobs/${id}`);
    await list();
  } catch (error) {
    locked(error);
  }
}

function show(job) {
  if (!isShown) return;
  const p = job.progress;
  const at = p && p.total_steps ? ` Step ${count(p.step)} of ${count(p.total_steps)}, ${count(p.chars_per_s)} characters/s${p.left_s ? `, ${span(p.left_s)} left` : ""}.` : "";
  const queue = job.state === "queued" && job.position !== null ? ` ${job.position} before it in the line.` : "";
  $("#job-title").textContent = nameOf(job);
  $("#job-state").textContent = `${job.state}.${at}${queue}${told(job)}`;
  const bar = $("#job-bar");
  bar.hidden = !jobs.isLive(job);
  bar.value = p?.total_steps ? p.step / p.total_steps : 0;
  $("#advice").replaceChildren(...(job.advice.length ? job.advice.map(({ text }) => h("li", {}, text)) : [h("li", { class: "hint" }, "Nothing to advise so far.")]));
  $("#samples").replaceChildren(
    ...job.samples.slice(-KEPT_SAMPLES).reverse().map(({ step, text }) => h("figure", {}, h("figcaption", {}, `after step ${count(step)}`), h("pre", {}, text))),
  );
  $("#notes").replaceChildren(...job.notes.map((text) => h("li", {}, text)));
  $("#job").hidden = false;
  curve();
}

function told(job) {
  if (job.error) return ` ${job.error}`;
  const decision = job.result?.decision;
  return decision ? ` ${decision.promoted ? "Promoted" : "Not promoted"}: ${decision.reason}.` : "";
}

function curve() {
  const ids = [...new Set([chosen, ...compared])].filter((id) => details.has(id));
  const runs = ids.map((id) => ({ name: nameOf(details.get(id)), looks: details.get(id).losses }));
  draw($("#curve"), runs, $("#curve-by").value, $("#curve-unit").value);
}

export const loss = (nats) => (nats === null || nats === undefined ? "–" : `${nats.toFixed(3)} nats = ${bits(nats).toFixed(3)} bits`);

const nameOf = (job) => `${[job.request.corpus].flat().join(" + ")}, ${job.request.preset} (${job.job_id.slice(0, 4)})`;
