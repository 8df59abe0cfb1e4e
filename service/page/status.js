// The view Status: what the service is doing, from /readyz and /metrics.

import { requestJson } from "./api.js";
import { $, formatCount, formatDuration, h, hint, svg } from "./dom.js";
import { mainPane } from "./generate.js";
import { quantile, readMetrics, total } from "./metrics.js";
import { describeNetwork } from "./served.js";

const POLL_MS = 2000;
const HISTORY_S = 300;
const history = []; // {time, pace}: characters per second at each poll, of the last minutes
let isPolling = false;
let served = ""; // the fingerprint of the default model
let previous = null; // {time, characters} of the last poll, for the throughput

export function onShow() {
	poll();
	if (!isPolling) setInterval(() => !document.hidden && poll(), POLL_MS);
	isPolling = true;
}

async function poll() {
	const box = $("#tiles");
	let ready;
	try {
		ready = await requestJson("GET", "/readyz", { mayPrompt: false });
	} catch (error) {
		box.replaceChildren(tile("service", "unavailable", error.message));
		return;
	}
	const metrics = await readMetrics();
	const sum = (name) => total(metrics, `longhand_${name}`);
	const median = (name) => formatLatency(quantile(metrics, `longhand_${name}_seconds`, 0.5));
	const slots = sum("slots") ?? ready.slots ?? 0;
	const inFlight = ready.in_flight ?? 0;
	const running = sum("slots_in_use") ?? Math.min(inFlight, slots);
	const waiting = sum("requests_waiting") ?? Math.max(0, inFlight - slots);
	const generated = sum("generation_tokens_total");
	const { chooser } = mainPane();
	if (ready.model && ready.model.fingerprint !== served) {
		served = ready.model.fingerprint;
		await chooser.refresh();
	}
	const { model, name } = chooser;
	const pace = throughput(generated);
	const isIdle = !running && !waiting && !pace;
	const refused = ready.refused_checkpoint;
	const swaps = `since the service started; models refused: ${formatCount(ready.model_swaps_refused)}, still finishing their texts: ${formatCount(ready.retired_models)}`;
	drawHistory();
	box.replaceChildren(
		tile(
			`model ${name}`,
			model ? describeNetwork(model.network) : "–",
			model ? `fingerprint ${model.id}` : "not known: it is being trained, or needs a key",
			"wide",
		),
		tile("slots in use", `${formatCount(running)} of ${formatCount(slots)} texts`, "that are being written now"),
		tile("queue", `${formatCount(waiting)} requests`, "that wait for a slot"),
		tile("throughput", isIdle ? "idle" : formatPace(pace), isIdle ? "no text is being written: 0 characters/s" : "now"),
		tile("time to first character", median("time_to_first_token"), "median (TTFT)"),
		tile("time per character", median("inter_token_latency"), "median (inter-token latency)"),
		tile("generated", `${formatCount(generated ?? 0)} characters`, "since the service started"),
		tile("refused", `${formatCount(sum("requests_refused_total") ?? 0)} requests`, "because the queue was full"),
		tile(
			"session store",
			ready.session_store,
			ready.session_store === "ok" ? "sessions can be continued" : "texts are generated but not saved",
		),
		tile("stepper", ready.stepper ?? "–", "the implementation that computes the network"),
		tile("model swaps", ready.model_swaps === 1 ? "1 swap" : `${formatCount(ready.model_swaps)} swaps`, swaps),
		refused ? tile("refused model", refused.name, refused.reason, "wide") : "",
	);
}

function throughput(characters) {
	if (characters === null) return "–";
	const now = { time: performance.now(), characters };
	const pace = previous && Math.max(0, (1000 * (characters - previous.characters)) / (now.time - previous.time));
	previous = now;
	if (pace !== null) history.push({ time: now.time / 1000, pace });
	while (history.length && history[0].time < history.at(-1).time - HISTORY_S) history.shift();
	return pace;
}

const formatPace = (pace) => (pace === null ? "–" : `${formatCount(Math.round(pace))} characters/s`);

function drawHistory() {
	const box = $("#history");
	if (history.length < 2) return;
	const [width, height] = [Math.max(280, box.clientWidth), 90];
	const [from, to, most] = [history[0].time, history.at(-1).time, Math.max(...history.map(({ pace }) => pace), 1)];
	const points = history.map(({ time, pace }) => [
		(width * (time - from)) / (to - from),
		height - 2 - (height - 4) * (pace / most),
	]);
	const span = formatDuration(to - from);
	const label = `Throughput of the last ${span}: at most ${formatPace(most)}, now ${formatPace(history.at(-1).pace)}`;
	const line = svg("polyline", { class: "curve run0", points: points.map((p) => p.map(Math.round).join()).join(" ") });
	box.replaceChildren(hint(`${label}.`), svg("svg", { width, height, role: "img", "aria-label": label }, line));
}

function formatLatency(seconds) {
	if (seconds === null) return "–";
	const ms = 1000 * seconds;
	if (ms < 10) return `${ms.toFixed(2)} ms`;
	return ms < 1000 ? `${ms.toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
}

const tile = (name, value, about, kind = "") =>
	h("div", { class: `tile ${kind}` }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "hint" }, about));
