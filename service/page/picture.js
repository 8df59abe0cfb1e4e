// Activations as colours: a heat map on a canvas, and a text as a coloured strip.

import { h } from "./dom.js";

/** The page's colours, as they are in light or dark. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
  return { low: read("--low"), zero: read("--zero"), high: read("--high") };
}

/** A value from -1 to 1 -> [r, g, b]: from `low` by `zero` to `high`. */
function mix(value, { low, zero, high }) {
  const to = value < 0 ? low : high;
  const share = Math.min(1, Math.abs(value)) ** 0.8; // small activations are the many: let them be seen
  return zero.map((z, i) => Math.round(z + (to[i] - z) * share));
}

/** values[unit][character] from -1 to 1 as a picture: a row a unit, a column a character. */
export function heat(canvas, values) {
  const [height, width] = [values.length, values[0].length];
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const scale = colours();
  values.forEach((row, y) =>
    row.forEach((value, x) => image.data.set([...mix(value, scale), 255], 4 * (y * width + x))),
  );
  context.putImageData(image, 0, 0);
}

/** A text whose characters lie on the colours of their values (-1 to 1); shown(index) is told where one points. */
export function strip(characters, values, title, ontell) {
  const scale = colours();
  const spans = characters.map((character, i) => {
    const rgb = mix(values[i], scale);
    const isLight = rgb[0] * 0.299 + rgb[1] * 0.587 + rgb[2] * 0.114 > 140;
    const span = h("span", { class: isLight ? "dark" : "light" }, character === "\n" ? "↵\n" : character);
    span.style.backgroundColor = `rgb(${rgb.join(" ")})`;
    span.index = i;
    return span;
  });
  const box = h("div", { class: "strip", tabindex: 0, role: "group", "aria-label": title }, ...spans);
  box.addEventListener("pointerover", (event) => event.target.index !== undefined && ontell(event.target.index));
  return box;
}
