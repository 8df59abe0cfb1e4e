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
  const slots = total(metrics, "longhand_slots") ?? ready.slots ?? 0;
  const running = total(metrics, "longhand_slots_in_use");
  const waiting = total(metrics, "longhand_requests_waiting");
  const [ttft, between] = ["time_to_first_token", "inter_token_latency"].map((name) => quantile(metrics, `longhand_${name}_seconds`, 0.5));
  const latest = ready.model?.name.replace(".safetensors", "") ?? "none yet";
  box.replaceChildren(
    tile("model", latest, ready.model ? `fingerprint ${ready.model.fingerprint}` : "the first one is being trained", "wide"),
    tile("slots in use", `${count(running ?? Math.min(ready.in_flight ?? 0, slots))} of ${count(slots)}`, "texts that are written at this moment"),
    tile("waiting", count(waiting ?? Math.max(0, (ready.in_flight ?? 0) - slots)), "requests in the line before the slots"),
    tile("pace", pace(total(metrics, "longhand_generation_tokens_total")), "written since the last look"),
    tile("time to first character", duration(ttft), "half of the requests waited less (TTFT)"),
    tile("from character to character", duration(between), "half of the characters took less"),
    tile("written so far", count(total(metrics, "longhand_generation_tokens_total") ?? 0), "characters, since the service began"),
    tile("refused", count(total(metrics, "longhand_requests_refused_total") ?? 0), "requests: every slot and every place in the line was taken"),
    tile("session store", ready.sessions, ready.sessions === "ok" ? "sessions can be gone on with" : "texts are written but not kept"),
    tile("arithmetic", ready.stepper ?? "–", "the stepper that writes"),
    tile("swaps", count(ready.swaps), `models that came into service; ${count(ready.refusals)} were refused, ${count(ready.retiring)} still end their texts`),
    ready.refused ? tile("refused model", ready.refused.name, ready.refused.reason, "wide") : "",
  );
}

function pace(characters) {
  if (characters === null) return "–";
  const now = { at: performance.now(), characters };
  const told = before ? `${count(Math.round((1000 * (characters - before.characters)) / (now.at - before.at)))} characters/s` : "–";
  before = now;
  return told;
}

function duration(seconds) {
  if (seconds === null) return "–";
  const ms = 1000 * seconds;
  return ms < 10 ? `${ms.toFixed(2)} ms` : ms < 1000 ? `${ms.toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
}

const tile = (name, value, hint, kind = "") => h("div", { class: `tile ${kind}` }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "hint" }, hint));
