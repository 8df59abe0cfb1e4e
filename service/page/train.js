// The view Learn: training jobs with curves, samples and advice; start, cancel, compare them.

import { attempt, requestJson, ServiceError } from "./api.js";
import { drawCurves } from "./curves.js";
import { $, button, formatCount, formatDuration, formatLoss, h, onClick } from "./dom.js";
import * as generate from "./generate.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import { DEFAULT, formatTime } from "./served.js";
import * as trainingForm from "./training-form.js";

const REMEDIES = {
	overfitting: () => ["dropout 0.4", { dropout: 0.4 }],
	memorization: () => ["dropout 0.4", { dropout: 0.4 }],
	many_parameters: () => ["dropout 0.4", { dropout: 0.4 }],
	few_parameters: () => ["the preset standard", { preset: "standard" }],
	small_validation_part: () => ["a fifth for validation", { val_fraction: 0.2 }],
	underfitting: longer,
	still_improving: longer,
};
let jobList = []; // as in GET /jobs
const jobDetails = new Map(); // id -> job with its validations
const compared = new Set();
let chosen = null;
let queued = null; // the training that the form has queued
let following = null; // AbortController
let isShown = false;

export function setUp() {
	trainingForm.setUp(async (id) => {
		queued = id;
		await refreshJobs();
		chooseJob(id);
	});
	models.setUp();
	for (const name of ["by", "unit", "scale"]) $(`#curve-${name}`).addEventListener("change", drawChosenCurves);
	addEventListener("resize", () => isShown && drawChosenCurves());
	onClick("#train-retry", onShow);
}

export async function onShow() {
	isShown = true;
	await attempt(async () => {
		await refreshJobs();
		$("#train-locked").hidden = true;
		await Promise.all([models.refresh(), trainingForm.refreshCorpora()]);
		const job = jobList.find(({ job_id }) => job_id === chosen) ?? jobList.find(jobs.isLive) ?? jobList[0];
		if (job) chooseJob(job.job_id);
	}, showLocked);
}

export function onHide() {
	isShown = false;
	following?.abort();
}

function showLocked(error) {
	if (!(error instanceof ServiceError)) throw error;
	$("#train-locked").hidden = false;
	$("#train-locked-reason").textContent = error.message;
}

async function refreshJobs() {
	jobList = (await requestJson("GET", "/jobs")).jobs;
	drawJobs();
}

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
				models.refreshTwice().catch(showLocked);
			}
			state = job.state;
			if (jobs.isLive(job)) return;
			jobList = jobList.map((old) => (old.job_id === id ? { ...old, ...job } : old));
			drawJobs();
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

const cancel = (id) =>
	attempt(async () => {
		await requestJson("DELETE", `/jobs/${id}`);
		await refreshJobs();
	}, showLocked);

function drawJobs() {
	const empty = h("tr", {}, h("td", { colspan: 7 }, "No trainings yet."));
	const job = jobList.find((job) => job.job_id === queued);
	const isQueued = job?.state === "queued";
	const about = [isQueued ? "Queued." : "It is running.", isQueued ? describeProgress(job) : ""].join(" ");
	$("#retrain-status").textContent = job && jobs.isLive(job) ? about.trim() : "";
	$("#jobs").replaceChildren(...(jobList.length ? jobList.map(jobRow) : [empty]));
}

function jobRow(job) {
	const { job_id: id, state, cancelling } = job;
	const name = nameOf(job);
	const best = job.result?.checkpoint?.val_loss ?? job.progress?.best_val_loss;
	const cancelLabel = cancelling ? "Cancelling" : "Cancel";
	const about = { disabled: cancelling, "aria-label": `Cancel ${name}` };
	const cancelButton = button(cancelLabel, () => cancel(id), about);
	const link = button(name, () => chooseJob(id), { class: "link" });
	if (id === chosen) link.setAttribute("aria-current", "true");
	const onchange = (event) => compare(id, event.target.checked);
	const box = h("input", { type: "checkbox", "aria-label": `Compare ${name}`, checked: compared.has(id), onchange });
	return h(
		"tr",
		{ class: id === chosen ? "is-chosen" : "", "data-job": id },
		h("td", {}, box),
		h("th", { scope: "row" }, link),
		h("td", {}, formatTime(job.started_at)),
		h("td", { class: "n" }, duration(job)),
		h("td", { class: `state ${state}` }, state, job.error ? h("span", { class: "error" }, `: ${job.error}`) : null),
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
	bar.value = progress ? progress.elapsed_s / (progress.elapsed_s + (progress.remaining_s ?? 0) || 1) : 0;
	const advice = job.advice.map(({ rule, text }) => h("li", {}, `${text} `, remedyButton(job, rule)));
	$("#advice").replaceChildren(...(advice.length ? advice : [h("li", { class: "hint" }, "No advice so far.")]));
	const n = job.samples.length - 1;
	const figures = [...new Set([n, Math.floor(n / 2), 0])]
		.filter((i) => job.samples[i])
		.map((i) => {
			const caption = `${i === n ? "latest" : i ? "halfway" : "first"}, after step ${formatCount(job.samples[i].step)}`;
			return h("figure", {}, h("figcaption", {}, caption), h("pre", {}, job.samples[i].text));
		});
	drawActions(job);
	$("#samples").replaceChildren(...figures);
	$("#notes").replaceChildren(...job.notes.map((text) => h("li", {}, text)));
	$("#job").hidden = false;
	drawChosenCurves();
}

function drawActions({ request, result }) {
	const model = result?.checkpoint;
	$("#job-actions").replaceChildren();
	if (!model) return;
	const name = request.model ?? DEFAULT;
	const disabled = result.decision?.promoted;
	$("#job-actions").append(
		button("Write with it", () => generate.writeWith(disabled ? name : model.id)),
		button("Compare with the one that serves", () => generate.compareWith(name, model.id), { disabled }),
		button("What it learned", () => models.openReport(model).catch(showLocked)),
	);
}

function remedyButton(job, rule) {
	if (jobs.isLive(job) || !REMEDIES[rule]) return null;
	const [label, settings] = REMEDIES[rule](job);
	const again = async () => {
		const body = { ...job.request, ...settings };
		const { job_id: id } = await requestJson("POST", "/retrain", { body });
		await refreshJobs();
		chooseJob(id);
	};
	return button(`Train again with ${label}`, () => attempt(again, showLocked));
}

function longer({ request, progress }) {
	const minutes = +(3 * (request.minutes ?? (progress?.elapsed_s ?? 60) / 60)).toFixed(1);
	return [`${minutes} minutes`, { minutes }];
}

function duration({ started_at: from, ended_at: to }) {
	return from ? formatDuration((to ?? Date.now() / 1000) - from) : "–";
}

function describeProgress({ state, position, progress }) {
	if (state === "queued") return [describeQueue(position), describeRunning(jobList)].filter(Boolean).join(" ");
	if (!progress?.total_steps) return "";
	const left = progress.remaining_s ? `, ${formatDuration(progress.remaining_s)} left` : "";
	const steps = `step ${formatCount(progress.step)} of ${formatCount(progress.total_steps)}`;
	const pace = `${formatCount(progress.chars_per_s)} characters/s`;
	return `After ${formatDuration(progress.elapsed_s)}: ${steps}, ${pace}${left}.`;
}

const describeQueue = (n) => (n ? `${n} queued ${n === 1 ? "training is" : "trainings are"} ahead of it.` : "");

function describeRunning(jobs) {
	const running = jobs.filter(({ state }) => state === "running");
	return running
		.map((job) => {
			const left = job.progress?.remaining_s;
			return `${nameOf(job)} is running${left ? `: about ${formatDuration(left)} left` : ""}.`;
		})
		.join(" ");
}

function describeOutcome({ error, result }) {
	if (error) return error;
	const decision = result?.decision;
	return decision ? `${decision.promoted ? "Promoted" : "Not promoted"}: ${decision.reason}.` : "";
}

function drawChosenCurves() {
	const ids = [...new Set([chosen, ...compared])].filter((id) => jobDetails.has(id));
	const details = ids.map((id) => jobDetails.get(id));
	const runs = details.map((job) => ({ id: job.job_id, name: nameOf(job), validations: job.validations }));
	drawCurves($("#curve"), runs, $("#curve-by").value, $("#curve-unit").value, $("#curve-scale").value === "log");
}

function nameOf({ job_id: id, request }) {
	const model = (request.model ?? DEFAULT) === DEFAULT ? "" : ` for ${request.model}`;
	return `${[request.corpus].flat().join(" + ")}, ${request.preset}${model} (${id.slice(0, 4)})`;
}
