// Activations as colors: a heat map on a canvas, and a text with colors behind its characters.

import { h } from "./dom.js";

function colorScale() {
	const style = getComputedStyle(document.documentElement);
	const read = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
	return { low: read("--low"), zero: read("--zero"), high: read("--high") };
}

function colorOf(value, { low, zero, high }) {
	const end = value < 0 ? low : high;
	const share = Math.min(1, Math.abs(value)) ** 0.8; // most activations are small: make them visible
	return zero.map((z, i) => Math.round(z + (end[i] - z) * share));
}

/** Draw values[unit][character], from -1 to 1: a row per unit, a column per character. */
export function drawHeatmap(canvas, values) {
	const [height, width] = [values.length, values[0].length];
	canvas.width = width;
	canvas.height = height;
	const context = canvas.getContext("2d");
	const image = context.createImageData(width, height);
	const scale = colorScale();
	values.forEach((row, y) => {
		row.forEach((value, x) => {
			image.data.set([...colorOf(value, scale), 255], 4 * (y * width + x));
		});
	});
	context.putImageData(image, 0, 0);
}

export function coloredText(characters, values, label, onPoint) {
	const scale = colorScale();
	const spans = characters.map((character, i) => {
		const rgb = colorOf(values[i], scale);
		const isLight = rgb[0] * 0.299 + rgb[1] * 0.587 + rgb[2] * 0.114 > 140;
		const span = h("span", { class: isLight ? "dark" : "light" }, character === "\n" ? "↵\n" : character);
		span.style.backgroundColor = `rgb(${rgb.join(" ")})`;
		span.index = i;
		return span;
	});
	const box = h("div", { class: "strip", tabindex: 0, role: "group", "aria-label": label }, ...spans);
	box.addEventListener("pointerover", (event) => {
		if (event.target.index !== undefined) onPoint(event.target.index);
	});
	return box;
}
