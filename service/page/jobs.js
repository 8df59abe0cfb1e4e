// Training jobs: their state, and the events of the one that is followed.

import { request, requestJson, ServiceError } from "./api.js";
import { sleep } from "./dom.js";
import { readEvents } from "./sse.js";

const POLL_MS = 2000;
const ADVICE_MS = 3000; // advice is no event: it is fetched after a validation, but not more often than this

export const isLive = (job) => job.state === "queued" || job.state === "running";

export const fetchJob = (id) => requestJson("GET", `/jobs/${id}`);

/** Follow a job and call onChange(job) for every change. Where no event stream is free, the job is polled. */
export async function followJob(id, signal, onChange) {
	let lastEventId = null;
	let adviceDue = 0;
	let job = await fetchJob(id);
	onChange(job);
	while (!signal.aborted && isLive(job)) {
		try {
			const headers = lastEventId === null ? {} : { "Last-Event-ID": lastEventId };
			const response = await request("GET", `/jobs/${id}/events`, { headers, signal });
			if (response.status === 204) break;
			for await (const event of readEvents(response)) {
				lastEventId = event.id ?? lastEventId;
				job = applyEvent(job, event);
				if (event.name === "validation" && performance.now() > adviceDue) {
					adviceDue = performance.now() + ADVICE_MS;
					job = { ...job, advice: (await fetchJob(id)).advice };
				}
				onChange(job);
			}
			if (!isLive(job)) break;
		} catch (error) {
			if (signal.aborted) return;
			if (error instanceof ServiceError && [401, 403, 404].includes(error.status)) throw error;
			await sleep(POLL_MS, signal);
			try {
				job = await fetchJob(id);
				onChange(job);
			} catch {
				// The service is unavailable: try again after POLL_MS.
			}
		}
	}
	if (!signal.aborted) onChange(await fetchJob(id));
}

function applyEvent(job, { name, data }) {
	if (name === "done") return data;
	if (name === "error") throw new ServiceError(0, data.error);
	if (name === "progress") return { ...job, state: "running", progress: data };
	if (name === "validation") return { ...job, validations: upsertByStep(job.validations, data) };
	if (name === "sample") return { ...job, samples: upsertByStep(job.samples, data) };
	if (name === "note") return { ...job, notes: [...new Set([...job.notes, data.text])] };
	return job;
}

/** A list with an item in its place; it replaces one of the same step, because events can come twice. */
function upsertByStep(items, item) {
	return [...items.filter((other) => other.step !== item.step), item].sort((a, b) => a.step - b.step);
}
