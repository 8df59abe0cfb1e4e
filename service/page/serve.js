// The view Serve: what the service is doing, from /readyz and, where it is there, /metrics.

import { json } from "./api.js";
import { $, count, h } from "./dom.js";
import { quantile, read, total } from "./metrics.js";

const EVERY_MS = 2000;
let timer = null;
let before = null; // {at, characters}: for the pace since the last look

export function shown() {
  hidden();
  look();
  timer = setInterval(look, EVERY_MS);
}

export function hidden() {
  clearInterval(timer);
  before = null;
}

async function look() {
  const box = $("#tiles");
  let ready;
  try {
    ready = await json("GET", "/readyz", { ask: false });
  } catch (error) {
    box.replaceChildren(tile("service", "away", error.message));
    return;
  }
  const metrics = await read();
  const running = total(metrics, "longhand_slots_in_use");
  const waiting = total(metrics, "longhand_requests_waiting");
  const ttft = quantile(metrics, "longhand_time_to_first_token_seconds", 0.5);
  const latest = ready.model?.name.replace(".safetensors", "") ?? "none yet";
  box.replaceChildren(
    tile("model", latest, ready.model ? `fingerprint ${ready.model.fingerprint}` : "the first one is being trained", "wide"),
    tile("slots in use", `${count(running ?? Math.min(ready.in_flight ?? 0, ready.slots ?? 0))} of ${count(ready.slots ?? 0)}`, "texts that are written at this moment"),
    tile("waiting", count(waiting ?? Math.max(0, (ready.in_flight ?? 0) - (ready.slots ?? 0))), "requests in the line before the slots"),
    tile("pace", pace(total(metrics, "longhand_generated_characters_total")), "written by this process, since the last look"),
    tile("time to first character", ttft === null ? "–" : `${(1000 * ttft).toFixed(0)} ms`, "half of the requests waited less"),
    tile("session store", ready.sessions, ready.sessions === "ok" ? "sessions can be gone on with" : "texts are written but not kept"),
    tile("arithmetic", ready.stepper ?? "–", "the stepper that writes"),
    tile("swaps", count(ready.swaps), `models that came into service; ${count(ready.refusals)} were refused, ${count(ready.retiring)} still end their texts`),
    ready.refused ? tile("refused", ready.refused.name, ready.refused.reason, "wide") : null,
  );
}

function pace(characters) {
  if (characters === null) return "–";
  const now = { at: performance.now(), characters };
  const told = before ? `${count(Math.round((1000 * (characters - before.characters)) / (now.at - before.at)))} characters/s` : "–";
  before = now;
  return told;
}

const tile = (name, value, hint, kind = "") => h("div", { class: `tile ${kind}` }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "hint" }, hint));
