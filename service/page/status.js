// The view Status: what the service is doing, from /readyz and /metrics.

import { requestJson } from "./api.js";
import { $, formatCount, h } from "./dom.js";
import { quantile, readMetrics, total } from "./metrics.js";

const POLL_MS = 2000;
let timer = null;
let previous = null; // {time, characters} of the last poll, for the throughput

export function onShow() {
  onHide();
  poll();
  timer = setInterval(poll, POLL_MS);
}

export function onHide() {
  clearInterval(timer);
  previous = null;
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
  const model = ready.model?.name.replace(".safetensors", "") ?? "none yet";
  const refused = ready.refused_checkpoint;
  const swaps = `model swaps since the start; ${formatCount(ready.model_swaps_refused)} models were refused, ${formatCount(ready.retired_models)} still finish their texts`;
  box.replaceChildren(
    tile(
      "model",
      model,
      ready.model ? `fingerprint ${ready.model.fingerprint}` : "the first one is being trained",
      "wide",
    ),
    tile("slots in use", `${formatCount(running)} of ${formatCount(slots)}`, "texts that are being generated now"),
    tile("queue", formatCount(waiting), "requests that wait for a slot"),
    tile("throughput", throughput(generated), "since the last update"),
    tile("time to first character", median("time_to_first_token"), "median (TTFT)"),
    tile("time per character", median("inter_token_latency"), "median (inter-token latency)"),
    tile("generated", formatCount(generated ?? 0), "characters, since the service started"),
    tile("refused", formatCount(sum("requests_refused_total") ?? 0), "requests, because the queue was full"),
    tile(
      "session store",
      ready.session_store,
      ready.session_store === "ok" ? "sessions can be continued" : "texts are generated but not saved",
    ),
    tile("stepper", ready.stepper ?? "–", "the implementation that computes the network"),
    tile("model swaps", formatCount(ready.model_swaps), swaps),
    refused ? tile("refused model", refused.name, refused.reason, "wide") : "",
  );
}

/** Characters per second since the last poll. */
function throughput(characters) {
  if (characters === null) return "–";
  const now = { time: performance.now(), characters };
  const pace = previous && (1000 * (characters - previous.characters)) / (now.time - previous.time);
  previous = now;
  return pace === null ? "–" : `${formatCount(Math.round(pace))} characters/s`;
}

function formatLatency(seconds) {
  if (seconds === null) return "–";
  const ms = 1000 * seconds;
  if (ms < 10) return `${ms.toFixed(2)} ms`;
  return ms < 1000 ? `${ms.toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
}

const tile = (name, value, hint, kind = "") =>
  h("div", { class: `tile ${kind}` }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "hint" }, hint));
