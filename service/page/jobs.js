// The trainings: what is known of each, and the events of the one that is followed.

import { ServiceError, json, request } from "./api.js";
import { sleep } from "./dom.js";
import { events } from "./sse.js";

export const isLive = (job) => job.state === "queued" || job.state === "running";

/** A job with all that grows while it runs. */
export const get = (id) => json("GET", `/jobs/${id}`);

/**
 * Follow a job until it ends: onchange(job) whenever something is new. A lost connection is taken up again after the
 * last event; where no place to follow is free, the job is asked for every two seconds instead.
 */
export async function follow(id, signal, onchange) {
  let last = null;
  let adviseAt = 0;
  let job = await get(id);
  onchange(job);
  while (!signal.aborted && isLive(job)) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const response = await request("GET", `/jobs/${id}/events`, { headers, signal });
      if (response.status === 204) break;
      for await (const event of events(response)) {
        last = event.id ?? last;
        if (event.name === "done") job = event.data;
        else if (event.name === "error") throw new ServiceError(0, event.data.error);
        else if (event.name === "progress") job = { ...job, state: "running", progress: event.data };
        else if (event.name === "look") job = { ...job, losses: added(job.losses, event.data) };
        else if (event.name === "sample") job = { ...job, samples: added(job.samples, event.data) };
        else if (event.name === "note") job = { ...job, notes: [...new Set([...job.notes, event.data.text])] };
        if (event.name === "look" && performance.now() > adviseAt) {
          adviseAt = performance.now() + 3000; // what the losses say is no event; earlier looks come all at once
          job = { ...job, advice: (await get(id)).advice };
        }
        onchange(job);
      }
      if (!isLive(job)) break;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServiceError && [401, 403, 404].includes(error.status)) throw error;
      await sleep(2000, signal);
      try {
        job = await get(id);
        onchange(job);
      } catch {
        // the service is away: asked again in two seconds
      }
    }
  }
  if (!signal.aborted) onchange(await get(id));
}

/** Events are told again from the start: what is known of a step replaces what was. */
function added(known, one) {
  return [...known.filter((each) => each.step !== one.step), one].sort((a, b) => a.step - b.step);
}
