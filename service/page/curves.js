// Curves of runs: training and validation loss by time or step, in nats or bits per character.

import { bits, h, svg } from "./dom.js";

const [WIDEST, H, LEFT, BOTTOM, TOP, RIGHT] = [832, 280, 52, 36, 10, 12];

/**
 * Draw runs into an element. runs: [{name, looks: [{step, elapsed_s, train, val}]}]; by: "elapsed_s" or "step";
 * unit: "nats" or "bits".
 */
export function draw(element, runs, by, unit) {
  const W = Math.min(WIDEST, element.clientWidth || WIDEST); // as wide as its place, so that letters keep their size
  const of = unit === "bits" ? bits : (x) => x;
  const known = runs.filter((run) => run.looks.length);
  if (!known.length) {
    element.replaceChildren(h("p", { class: "hint" }, "The curve begins with the first look at the validation text."));
    return;
  }
  const all = known.flatMap((run) => run.looks);
  const xs = all.map((look) => look[by]);
  const ys = all.flatMap((look) => [look.train, look.val]).filter((y) => y !== null).map(of);
  const [x1, y0, y1] = [Math.max(...xs, 1e-9), Math.min(...ys), Math.max(...ys)];
  const pad = Math.max((y1 - y0) * 0.08, 0.02);
  const [low, high] = [Math.max(0, y0 - pad), y1 + pad];
  const x = (v) => LEFT + ((W - LEFT - RIGHT) * v) / x1;
  const y = (v) => TOP + ((H - TOP - BOTTOM) * (high - v)) / (high - low);
  const picture = svg("svg", { width: W, height: H, role: "img", "aria-label": spoken(known, by, unit, of) });
  for (const tick of ticks(low, high)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick) }));
    picture.append(svg("text", { class: "tick", x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(2)));
  }
  for (const tick of ticks(0, x1)) {
    picture.append(svg("text", { class: "tick", x: x(tick), y: H - BOTTOM + 16, "text-anchor": "middle" }, short(tick)));
  }
  picture.append(svg("text", { class: "tick", x: W - RIGHT, y: H - 4, "text-anchor": "end" }, by === "step" ? "steps" : "seconds"));
  picture.append(svg("text", { class: "tick", x: LEFT, y: H - 4 }, `${unit} per character`));
  known.forEach((run, n) => {
    for (const part of ["train", "val"]) {
      const points = run.looks.filter((look) => look[part] !== null).map((look) => `${x(look[by]).toFixed(1)},${y(of(look[part])).toFixed(1)}`);
      picture.append(svg("polyline", { class: `curve ${part} run${n % 6}`, points: points.join(" ") }));
      if (points.length === 1) {
        const [cx, cy] = points[0].split(",");
        picture.append(svg("circle", { class: `curve ${part} run${n % 6}`, cx, cy, r: 2.5 }));
      }
    }
  });
  const legend = known.map((run, n) => h("li", {}, h("i", { class: `swatch run${n % 6}` }), `${run.name}: ${best(run, of)} ${unit}`));
  element.replaceChildren(picture, h("ul", { class: "legend" }, ...legend, h("li", {}, "solid: validation, dashed: training")));
}

const best = (run, of) => of(Math.min(...run.looks.map((look) => look.val))).toFixed(3);

function spoken(runs, by, unit, of) {
  return `Loss by ${by === "step" ? "step" : "time"}. ${runs.map((run) => `${run.name}: best validation loss ${best(run, of)} ${unit} per character after ${run.looks.length} looks`).join(". ")}`;
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-12; t += step) found.push(t);
  return found;
}

const short = (n) => (n >= 10_000 ? `${+(n / 1000).toFixed(1)}k` : String(+n.toFixed(2)));
