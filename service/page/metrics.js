// GET /metrics, Prometheus's text, as numbers.

import { request } from "./api.js";

let isThere = true; // a service without metrics is asked once

/** name -> [{labels, value}], or null where the service has no metrics. */
export async function read() {
  if (!isThere) return null;
  try {
    return parse(await (await request("GET", "/metrics", { ask: false })).text());
  } catch (error) {
    isThere = error.status !== 404;
    return null;
  }
}

export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, k, v]) => [k, v]));
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

/** The sum of all of a name's values, or null where there is no such name. */
export function total(metrics, name) {
  const values = metrics?.get(name);
  return values ? values.reduce((sum, { value }) => sum + value, 0) : null;
}

/** A quantile of a histogram in seconds, between the bounds of its buckets; null where nothing was counted. */
export function quantile(metrics, name, q) {
  const bounds = new Map();
  for (const { labels, value } of metrics?.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    bounds.set(bound, (bounds.get(bound) ?? 0) + value);
  }
  const buckets = [...bounds].sort(([a], [b]) => a - b);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (!all) return null;
  let [before, low] = [0, 0];
  for (const [bound, upTo] of buckets) {
    if (upTo >= q * all) return bound === Infinity ? low : low + ((bound - low) * (q * all - before)) / (upTo - before || 1);
    [before, low] = [upTo, bound];
  }
  return null;
}
