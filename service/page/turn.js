// One turn: POST /generate as a stream, resumed where it stopped when the connection is lost.

import { newIdempotencyKey, request, requestJson, ServiceError } from "./api.js";
import { sleep } from "./dom.js";
import { DEFAULT } from "./served.js";
import { readEvents } from "./sse.js";

export const TOP_LOGPROBS = 10;
const MAX_WAIT_MS = 5000;
const CONFLICT_TRIES = 8; // a turn that was just stopped ends at the service's next block, not at once
const RETRY_CODES = ["no_model", "queue_full", "overloaded", "store_unavailable", "draining"];

/**
 * Run a turn and yield its events {name, data}.
 *
 * From the service: start, text {text, logprobs, position} and done. From this function: waiting (the service has no model
 * or no free slot yet; the request is repeated), disconnected and reconnected. Returns when `signal` is aborted.
 */
export async function* streamTurn(body, signal, resume = null) {
	let key = newIdempotencyKey(); // a repetition with the same key is the same turn
	let session = resume?.session ?? null;
	let after = resume?.after ?? null;
	let hasStarted = resume !== null;
	let isConnected = true;
	for (let tries = 0; !signal.aborted; tries++) {
		let waitMs = tries > 1 ? Math.min(MAX_WAIT_MS, 125 * 2 ** tries) : 250;
		try {
			const isDefault = (body.model ?? DEFAULT) === DEFAULT;
			if (!hasStarted && isDefault && !(await hasModel(signal))) throw new ServiceError(503, { code: "no_model" }, 1);
			const response = await (hasStarted ? resumeTurn(session, after, signal) : startTurn(body, key, signal));
			if (!isConnected) yield { name: "reconnected", data: { after } };
			isConnected = true;
			tries = 0;
			if (response.status === 204) {
				// All of the text has arrived; only the stream's last event was lost.
				const { turn, seed, position } = await requestJson("GET", `/sessions/${session}`);
				const usage = { generated_chars: position - turn.start_position };
				const finish_reason = turn.status;
				yield { name: "done", data: { session_id: session, finish_reason, seed, position, usage, saved: true } };
				return;
			}
			for await (const event of readEvents(response)) {
				if (event.name === "error") throw new ServiceError(0, event.data.error, 0);
				if (event.name === "start") {
					hasStarted = true;
					session = event.data.session_id;
					after ??= event.data.position;
				}
				if (event.name === "message") after = Number(event.id);
				yield event.name === "message" ? { name: "text", data: { ...event.data, position: after } } : event;
				if (event.name === "done") return;
			}
			if (signal.aborted) return;
			isConnected = false; // a stream that ends without `done` was cut off
		} catch (error) {
			if (signal.aborted) return;
			if (error instanceof ServiceError) {
				// Without its store the service generates texts, but cannot look up an Idempotency-Key.
				if (error.code === "store_unavailable" && !hasStarted && !body.session_id) key = "";
				const isEnding = error.code === "session_conflict" && !hasStarted && !error.details.rewindable;
				if (!(isEnding && tries < CONFLICT_TRIES) && !RETRY_CODES.includes(error.code)) throw error;
				waitMs = Math.max(waitMs, Math.min(1000 * error.retryAfterS, MAX_WAIT_MS));
				if (error.code === "draining") isConnected = false;
				else yield { name: "waiting", data: { after, error } };
			} else isConnected = false;
		}
		if (!isConnected) yield { name: "disconnected", data: { after } };
		if (hasStarted && session === null) {
			const message = "The connection was lost. This text was not saved, because the session store is unavailable.";
			throw new ServiceError(0, { message });
		}
		await sleep(waitMs, signal);
	}
}

/** Whether a model is loaded: asked first, so that waiting for one logs no 503 in the console. */
async function hasModel(signal) {
	const ready = await request("GET", "/readyz", { signal, mayPrompt: false });
	return (await ready.json()).model !== null;
}

function startTurn(body, key, signal) {
	const headers = key ? { "Idempotency-Key": key } : {};
	return request("POST", "/generate", { body: { ...body, stream: true, logprobs: TOP_LOGPROBS }, headers, signal });
}

function resumeTurn(session, after, signal) {
	const headers = after === null ? {} : { "Last-Event-ID": String(after) };
	return request("GET", `/sessions/${session}/stream?logprobs=${TOP_LOGPROBS}`, { headers, signal });
}
