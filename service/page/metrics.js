// GET /metrics, in the Prometheus text format, as numbers.

import { request } from "./api.js";

let isAvailable = true; // false after a 404, so that a service without metrics is asked only once

/** Map of name -> [{value, bound}], or null where there are no metrics; buckets have a bound. */
export async function readMetrics() {
	if (!isAvailable) return null;
	try {
		return parseMetrics(await (await request("GET", "/metrics", { mayPrompt: false })).text());
	} catch (error) {
		isAvailable = error.status !== 404;
		return null;
	}
}

function parseMetrics(text) {
	const metrics = new Map();
	for (const line of text.split("\n")) {
		const match = /^([a-zA-Z_:][\w:]*)(\{.*\})?\s+(\S+)/.exec(line);
		if (!match) continue;
		const [, name, labels = "", value] = match;
		if (!metrics.has(name)) metrics.set(name, []);
		metrics.get(name).push({ bound: /\ble="([^"]*)"/.exec(labels)?.[1], value: Number(value) });
	}
	return metrics;
}

export function total(metrics, name) {
	const values = metrics?.get(name);
	return values ? values.reduce((sum, { value }) => sum + value, 0) : null;
}

export function quantile(metrics, name, q) {
	const counts = new Map();
	for (const { bound: le, value } of metrics?.get(`${name}_bucket`) ?? []) {
		const bound = le === "+Inf" ? Infinity : Number(le);
		counts.set(bound, (counts.get(bound) ?? 0) + value);
	}
	const buckets = [...counts].sort(([a], [b]) => a - b);
	const rank = q * (buckets.at(-1)?.[1] ?? 0);
	if (!rank) return null;
	let [below, lower] = [0, 0];
	for (const [upper, count] of buckets) {
		if (count >= rank) {
			return upper === Infinity ? lower : lower + ((upper - lower) * (rank - below)) / (count - below || 1);
		}
		[below, lower] = [count, upper];
	}
	return null;
}
