// One turn as it is written: asked for, read, and, when the connection is lost, gone on with where it was lost.

import { ServiceError, freshKey, request } from "./api.js";
import { sleep } from "./dom.js";
import { events } from "./sse.js";

export const TOP = 10;
const LONGEST_WAIT_MS = 5000;
const CONFLICT_TRIES = 8; // a turn that was just stopped ends at the service's next block, not at once

/**
 * Yields {name, data}: start and done as the service tells them, text {text, logprobs, position}, and of its own:
 * waiting (the service has no model or no place yet; it is asked again), lost and back.
 *
 * body: POST /generate's. With `resume` {session, after} no turn is begun, the session's last one is gone on with.
 * Thrown: ServiceError. Returns when `signal` is aborted.
 */
export async function* turn(body, signal, resume = null) {
  let key = freshKey(); // sent again before the first event, it is the same turn
  let session = resume?.session ?? null;
  let after = resume?.after ?? null;
  let begun = resume !== null;
  let isLost = false;
  for (let tries = 0; !signal.aborted; tries++) {
    let waitMs = tries > 1 ? Math.min(LONGEST_WAIT_MS, 125 * 2 ** tries) : 250;
    try {
      if (!begun && !(await hasModel(signal))) throw new ServiceError(503, { code: "no_model" }, 1);
      const response = await (begun ? again(session, after, signal) : ask(body, key, signal));
      if (isLost) yield { name: "back", data: { after } };
      isLost = false;
      tries = 0;
      for await (const event of events(response)) {
        if (event.name === "error") throw new ServiceError(0, event.data.error, 0);
        if (event.name === "start") {
          begun = true;
          session = event.data.session_id;
          after ??= event.data.position;
        }
        if (event.name === "message") after = Number(event.id);
        yield event.name === "message" ? { name: "text", data: { ...event.data, position: after } } : event;
        if (event.name === "done") return;
      }
      if (signal.aborted) return;
      isLost = true; // a stream that ends without its last event was cut
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServiceError) {
        if (error.code === "store_unavailable" && !begun && !body.session_id) key = ""; // it can be written, only not kept
        const ends = error.code === "session_conflict" && !begun && !error.details.rewindable && tries < CONFLICT_TRIES;
        if (!ends && !["no_model", "overloaded", "store_unavailable", "draining"].includes(error.code)) throw error;
        waitMs = Math.max(waitMs, 1000 * Math.min(error.retryAfterS, 5));
        if (error.code === "draining") isLost = true;
        else yield { name: "waiting", data: { after, error } };
      } else isLost = true;
    }
    if (isLost) yield { name: "lost", data: { after } };
    if (begun && session === null) throw new ServiceError(0, { message: "the connection was lost, and this text was not kept: the session store did not answer" });
    await sleep(waitMs, signal);
  }
}

/** A look that is no error: who comes while the first model is trained is not shown one. */
async function hasModel(signal) {
  const ready = await request("GET", "/readyz", { signal, ask: false });
  return (await ready.json()).model !== null;
}

function ask(body, key, signal) {
  const headers = key ? { "Idempotency-Key": key } : {};
  return request("POST", "/generate", { body: { ...body, stream: true, logprobs: TOP }, headers, signal });
}

function again(session, after, signal) {
  const headers = after === null ? {} : { "Last-Event-ID": String(after) };
  return request("GET", `/sessions/${session}/stream?logprobs=${TOP}`, { headers, signal });
}
