// Loss curves of training runs: training and validation loss by time or step, in nats or bits per character.

import { bits, h, svg } from "./dom.js";

const [MAX_WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [832, 280, 52, 36, 10, 12];
const SERIES = { train: "train_loss", val: "val_loss" }; // class in style.css -> field
const COLORS = 6; // .run0 to .run5 in style.css

/**
 * Draw the curves of runs into an element.
 *
 * @param runs [{name, validations: [{step, elapsed_s, train_loss, val_loss}]}]
 * @param by "elapsed_s" or "step"
 * @param unit "nats" or "bits"
 */
export function drawCurves(element, runs, by, unit) {
  const width = Math.min(MAX_WIDTH, element.clientWidth || MAX_WIDTH); // no scaling, so that text keeps its size
  const convert = unit === "bits" ? bits : (x) => x;
  const drawn = runs.filter((run) => run.validations.length);
  if (!drawn.length) {
    element.replaceChildren(h("p", { class: "hint" }, "The curve starts with the first validation."));
    return;
  }
  const all = drawn.flatMap((run) => run.validations);
  const xs = all.map((validation) => validation[by]);
  const losses = all.flatMap((validation) => Object.values(SERIES).map((field) => validation[field]));
  const ys = losses.filter((loss) => loss !== null).map(convert);
  const [xMax, yMin, yMax] = [Math.max(...xs, 1e-9), Math.min(...ys), Math.max(...ys)];
  const padding = Math.max((yMax - yMin) * 0.08, 0.02);
  const [low, high] = [Math.max(0, yMin - padding), yMax + padding];
  const x = (value) => LEFT + ((width - LEFT - RIGHT) * value) / xMax;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
  const label = describe(drawn, by, unit, convert);
  const picture = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": label });
  const text = (xAt, yAt, anchor, content) =>
    svg("text", { class: "tick", x: xAt, y: yAt, "text-anchor": anchor }, content);
  for (const tick of ticks(low, high)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
    picture.append(text(LEFT - 6, y(tick) + 4, "end", tick.toFixed(2)));
  }
  for (const tick of ticks(0, xMax)) picture.append(text(x(tick), HEIGHT - BOTTOM + 16, "middle", abbreviate(tick)));
  picture.append(text(width - RIGHT, HEIGHT - 4, "end", by === "step" ? "steps" : "seconds"));
  picture.append(text(LEFT, HEIGHT - 4, "start", `${unit} per character`));
  drawn.forEach((run, n) => {
    for (const [series, field] of Object.entries(SERIES)) {
      const known = run.validations.filter((validation) => validation[field] !== null);
      const points = known.map((validation) => [x(validation[by]), y(convert(validation[field]))]);
      const style = `curve ${series} run${n % COLORS}`;
      const coordinates = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
      picture.append(svg("polyline", { class: style, points: coordinates }));
      if (points.length === 1)
        picture.append(svg("circle", { class: style, cx: points[0][0], cy: points[0][1], r: 2.5 }));
    }
  });
  const legend = drawn.map((run, n) =>
    h("li", {}, h("i", { class: `swatch run${n % COLORS}` }), `${run.name}: ${best(run, convert)} ${unit}`),
  );
  const key = h("li", {}, "solid: validation loss, dashed: training loss");
  element.replaceChildren(picture, h("ul", { class: "legend" }, ...legend, key));
}

const best = (run, convert) => convert(Math.min(...run.validations.map(({ val_loss: loss }) => loss))).toFixed(3);

/** The curves in words, for screen readers. */
function describe(runs, by, unit, convert) {
  const sentences = runs.map((run) => {
    const n = run.validations.length;
    return `${run.name}: best validation loss ${best(run, convert)} ${unit} per character in ${n} validations`;
  });
  return `Loss by ${by === "step" ? "step" : "time"}. ${sentences.join(". ")}`;
}

/** About five round numbers between low and high. */
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const values = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-12; t += step) values.push(t);
  return values;
}

const abbreviate = (n) => (n >= 10_000 ? `${+(n / 1000).toFixed(1)}k` : String(+n.toFixed(2)));
