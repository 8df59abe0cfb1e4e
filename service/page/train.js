// The view Train: training jobs with their curves, samples and advice; start, cancel and compare them.

import { requestJson, ServiceError } from "./api.js";
import { drawCurves } from "./curves.js";
import { $, formatCount, formatDuration, formatLoss, h } from "./dom.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as trainingForm from "./training-form.js";

const SHOWN_SAMPLES = 6;
let jobList = []; // as in GET /jobs
const jobDetails = new Map(); // id -> job with its validations
const compared = new Set();
let chosen = null;
let following = null; // AbortController
let isShown = false;

export function setUp() {
  trainingForm.setUp(async (id) => {
    await refreshJobs();
    chooseJob(id);
  });
  models.setUp();
  for (const name of ["by", "unit"]) $(`#curve-${name}`).addEventListener("change", drawChosenCurves);
  addEventListener("resize", () => isShown && drawChosenCurves());
  $("#train-retry").addEventListener("click", onShow);
}

export async function onShow() {
  isShown = true;
  try {
    await refreshJobs();
    $("#train-locked").hidden = true;
    await Promise.all([models.refresh(), trainingForm.refreshCorpora()]);
    const job = jobList.find(({ job_id }) => job_id === chosen) ?? jobList.find(jobs.isLive) ?? jobList[0];
    if (job) chooseJob(job.job_id);
  } catch (error) {
    showLocked(error);
  }
}

export function onHide() {
  isShown = false;
  following?.abort();
}

/** Show why the view cannot be used: most often a key is missing. */
function showLocked(error) {
  if (!(error instanceof ServiceError)) throw error;
  $("#train-locked").hidden = false;
  $("#train-locked-reason").textContent = error.message;
}

async function refreshJobs() {
  jobList = (await requestJson("GET", "/jobs")).jobs;
  drawJobs();
}

/** Follow a job and show it. */
async function chooseJob(id) {
  following?.abort();
  following = new AbortController();
  const { signal } = following;
  chosen = id;
  drawJobs();
  try {
    let state = "";
    await jobs.followJob(id, signal, (job) => {
      if (signal.aborted) return;
      jobDetails.set(id, job);
      drawJob(job);
      if (state && state !== job.state) {
        refreshJobs().catch(showLocked);
        models.refresh().catch(showLocked);
      }
      state = job.state;
    });
  } catch (error) {
    if (!signal.aborted) showLocked(error);
  }
}

async function compare(id, isOn) {
  if (isOn) {
    compared.add(id);
    if (!jobDetails.has(id)) jobDetails.set(id, await jobs.fetchJob(id));
  } else compared.delete(id);
  drawChosenCurves();
}

async function cancel(id) {
  try {
    await requestJson("DELETE", `/jobs/${id}`);
    await refreshJobs();
  } catch (error) {
    showLocked(error);
  }
}

function drawJobs() {
  const empty = h("tr", {}, h("td", { colspan: 5 }, "No trainings yet."));
  $("#jobs").replaceChildren(...(jobList.length ? jobList.map(jobRow) : [empty]));
}

function jobRow(job) {
  const { job_id: id, state, cancelling } = job;
  const name = nameOf(job);
  const best = job.result?.checkpoint?.val_loss ?? job.progress?.best_val_loss;
  const cancelLabel = cancelling ? "Cancelling" : "Cancel";
  const cancelButton = h("button", { type: "button", onclick: () => cancel(id), disabled: cancelling }, cancelLabel);
  cancelButton.setAttribute("aria-label", `Cancel ${name}`);
  const link = h("button", { type: "button", class: "link", onclick: () => chooseJob(id) }, name);
  if (id === chosen) link.setAttribute("aria-current", "true");
  const onchange = (event) => compare(id, event.target.checked);
  const box = h("input", { type: "checkbox", "aria-label": `Compare ${name}`, checked: compared.has(id), onchange });
  return h(
    "tr",
    { class: id === chosen ? "is-chosen" : "", "data-job": id },
    h("td", {}, box),
    h("th", { scope: "row" }, link),
    h("td", { class: `state ${state}` }, state),
    h("td", { class: "n" }, formatLoss(best)),
    h("td", {}, jobs.isLive(job) ? cancelButton : null),
  );
}

function drawJob(job) {
  if (!isShown) return;
  const { progress } = job;
  const bar = $("#job-bar");
  $("#job-title").textContent = nameOf(job);
  $("#job-state").textContent = [`${job.state}.`, describeProgress(job), describeOutcome(job)]
    .filter(Boolean)
    .join(" ");
  bar.hidden = !jobs.isLive(job);
  bar.value = progress?.total_steps ? progress.step / progress.total_steps : 0;
  const advice = job.advice.map(({ text }) => h("li", {}, text));
  $("#advice").replaceChildren(...(advice.length ? advice : [h("li", { class: "hint" }, "No advice so far.")]));
  const samples = job.samples.slice(-SHOWN_SAMPLES).reverse();
  const figures = samples.map(({ step, text }) =>
    h("figure", {}, h("figcaption", {}, `after step ${formatCount(step)}`), h("pre", {}, text)),
  );
  $("#samples").replaceChildren(...figures);
  $("#notes").replaceChildren(...job.notes.map((text) => h("li", {}, text)));
  $("#job").hidden = false;
  drawChosenCurves();
}

function describeProgress({ state, position, progress }) {
  if (state === "queued" && position !== null) return `${position} trainings are ahead of it in the queue.`;
  if (!progress?.total_steps) return "";
  const left = progress.remaining_s ? `, ${formatDuration(progress.remaining_s)} left` : "";
  const steps = `Step ${formatCount(progress.step)} of ${formatCount(progress.total_steps)}`;
  return `${steps}, ${formatCount(progress.chars_per_s)} characters/s${left}.`;
}

function describeOutcome({ error, result }) {
  if (error) return error;
  const decision = result?.decision;
  return decision ? `${decision.promoted ? "Promoted" : "Not promoted"}: ${decision.reason}.` : "";
}

function drawChosenCurves() {
  const ids = [...new Set([chosen, ...compared])].filter((id) => jobDetails.has(id));
  const details = ids.map((id) => jobDetails.get(id));
  const runs = details.map((job) => ({ name: nameOf(job), validations: job.validations }));
  drawCurves($("#curve"), runs, $("#curve-by").value, $("#curve-unit").value);
}

const nameOf = ({ job_id: id, request }) =>
  `${[request.corpus].flat().join(" + ")}, ${request.preset} (${id.slice(0, 4)})`;
