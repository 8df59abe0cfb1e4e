// Loss curves of training runs, by time or step, in nats or bits per character.

import { bits, formatCount, formatDuration, h, hint, svg } from "./dom.js";

const [HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [300, 56, 36, 26, 12];
const SERIES = { train: "train_loss", val: "val_loss" }; // class in style.css -> field
const COLORS = 6; // .run0 to .run5 in style.css
const colors = new Map(); // id of a run -> its color, which it keeps

function colorOf(id) {
	if (!colors.has(id)) colors.set(id, colors.size % COLORS);
	return colors.get(id);
}

export function drawCurves(element, runs, by, unit, isLog) {
	const width = Math.max(280, element.clientWidth || 832); // no scaling, so that text keeps its size
	const convert = unit === "bits" ? bits : (x) => x;
	const drawn = runs.filter((run) => run.validations.length);
	if (!drawn.length) {
		element.replaceChildren(hint("The curve starts with the first validation."));
		return;
	}
	const all = drawn.flatMap((run) => run.validations);
	const losses = all.flatMap((validation) => Object.values(SERIES).map((field) => validation[field]));
	const ys = losses.filter((loss) => loss !== null).map(convert);
	const [xMax, yMin, yMax] = [Math.max(...all.map((v) => v[by]), 1e-9), Math.min(...ys), Math.max(...ys)];
	const padding = Math.max((yMax - yMin) * 0.08, 0.02);
	const [low, high] = [Math.max(isLog ? yMin / 1.05 : 0, yMin - padding), yMax + padding];
	const scale = isLog ? Math.log : (value) => value;
	const x = (value) => LEFT + ((width - LEFT - RIGHT) * value) / xMax;
	const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (scale(high) - scale(value))) / (scale(high) - scale(low));
	const label = describe(drawn, by, unit, convert);
	const picture = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": label });
	const text = (xAt, yAt, anchor, content) =>
		picture.append(svg("text", { class: "tick", x: xAt, y: yAt, "text-anchor": anchor }, content));
	for (const tick of ticks(low, high)) {
		picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
		text(LEFT - 6, y(tick) + 4, "end", tick.toFixed(2));
	}
	for (const tick of ticks(0, xMax)) text(x(tick), HEIGHT - BOTTOM + 16, "middle", abbreviate(tick));
	text(width - RIGHT, HEIGHT - 4, "end", by === "step" ? "steps" : "seconds");
	text(0, 12, "start", `${unit} per character${isLog ? ", logarithmic" : ""}`);
	for (const run of drawn) {
		for (const [series, field] of Object.entries(SERIES)) {
			const known = run.validations.filter((validation) => validation[field] !== null);
			const points = known.map((validation) => [x(validation[by]), y(convert(validation[field]))]);
			const style = `curve ${series} run${colorOf(run.id)}`;
			const coordinates = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
			picture.append(svg("polyline", { class: style, points: coordinates }));
			if (points.length === 1)
				picture.append(svg("circle", { class: style, cx: points[0][0], cy: points[0][1], r: 2.5 }));
		}
	}
	const at = h("p", { class: "hint", role: "status" }, "Point at the curves to read their values.");
	const line = svg("line", { class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
	picture.append(line);
	picture.addEventListener("pointermove", (event) => {
		const value = ((event.offsetX - LEFT) / (width - LEFT - RIGHT)) * xMax;
		const nearest = drawn.map((run) => closest(run.validations, by, value));
		const px = x(nearest[0][by]);
		for (const [name, to] of Object.entries({ x1: px, x2: px, visibility: "visible" })) line.setAttribute(name, to);
		at.textContent = nearest
			.map((v, n) => {
				const [val, train] = [v.val_loss, v.train_loss].map((l) => (l === null ? "–" : convert(l).toFixed(3)));
				const when = `${formatDuration(v.elapsed_s)}, step ${formatCount(v.step)}`;
				return `${drawn[n].name}, ${when}: validation ${val}, training ${train} ${unit} per character.`;
			})
			.join(" ");
	});
	const legend = drawn.map((run) =>
		h("li", {}, h("i", { class: `swatch run${colorOf(run.id)}` }), `${run.name}: ${best(run, convert)} ${unit}`),
	);
	const key = h("li", {}, "solid: validation loss, dashed: training loss");
	element.replaceChildren(picture, at, h("ul", { class: "legend" }, ...legend, key));
}

const closest = (validations, by, value) =>
	validations.reduce((a, b) => (Math.abs(b[by] - value) < Math.abs(a[by] - value) ? b : a));

const best = (run, convert) => convert(Math.min(...run.validations.map(({ val_loss: loss }) => loss))).toFixed(3);

function describe(runs, by, unit, convert) {
	const sentences = runs.map((run) => {
		const n = run.validations.length;
		return `${run.name}: best validation loss ${best(run, convert)} ${unit} per character in ${n} validations`;
	});
	return `Loss by ${by === "step" ? "step" : "time"}. ${sentences.join(". ")}`;
}

function ticks(low, high) {
	const rough = (high - low) / 5;
	const power = 10 ** Math.floor(Math.log10(rough));
	const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
	const values = [];
	for (let t = Math.ceil(low / step) * step; t <= high + 1e-12; t += step) values.push(t);
	return values;
}

const abbreviate = (n) => (n >= 10_000 ? `${+(n / 1000).toFixed(1)}k` : String(+n.toFixed(2)));
