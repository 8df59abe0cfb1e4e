// The view Inspect: gates and memories of the network's units by character, and units that correlate with text features.

import { requestJson, ServiceError } from "./api.js";
import { $, formatCount, h, onSubmit, setStatus, symbol } from "./dom.js";
import { clearFieldErrors, parseNumber, readFields, showFieldError } from "./fields.js";
import { mainPane } from "./generate.js";
import { coloredText, drawHeatmap } from "./heatmap.js";

const QUANTITIES = {
  c: [
    "long-term memory c",
    "The cell state, shown as tanh(c). It changes only through the forget gate and the input gate: c = f·c + i·g.",
  ],
  h: [
    "short-term memory h",
    "The output to the next layer, and to this layer at the next character: h = o·tanh(c). From -1 to 1.",
  ],
  f: ["forget gate f", "How much of the long-term memory stays: 1 keeps all of it, 0 forgets it at once."],
  i: [
    "input gate i",
    "How much of the candidate is added: 1 adds all of it, 0 leaves the memory as it is. Some courses call it the learn gate.",
  ],
  g: ["candidate g", "The new value, from -1 to 1; the input gate scales it."],
  o: [
    "output gate o",
    "How much of the memory is put out: 1 uses all of it, 0 nothing. Some courses call it the use gate.",
  ],
};
const FEATURES = {
  inside_quotes: "inside quotation marks",
  position_in_line: "position in the line",
  after_newline: "first character of a line",
  inside_word: "a letter, not a space or a mark",
  after_capital: "after a capital letter",
};
const COPIED_CHARS = 600;
const LISTED_UNITS = 5;
let result = null;
let unit = 0;
let requests = 0;

export function setUp() {
  const form = $("#inspect");
  onSubmit(form, () => inspect());
  form.addEventListener("change", (event) => {
    if (event.target.name !== "text") inspect();
  });
  $("#inspect-copy").addEventListener("click", () => {
    form.elements.text.value = Array.from(mainPane().text.toString()).slice(-COPIED_CHARS).join("");
    inspect();
  });
  const map = $("#map");
  map.addEventListener("click", (event) => {
    if (!result) return;
    const row = Math.floor((event.offsetY / map.clientHeight) * result.n_hidden);
    chooseUnit(Math.max(0, Math.min(result.n_hidden - 1, row)));
  });
  $("#unit").addEventListener("change", (event) => chooseUnit(parseNumber(event.target.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => result && draw());
}

/** Inspect the example once, so that the view is not empty; the model may lack some of its characters. */
export function onShow() {
  if (!result && $("#notice").hidden) inspect("skip");
}

/** Show another unit, of another layer if one is given. */
function chooseUnit(number, layer = null) {
  unit = number;
  if (layer !== null) $("#inspect").elements.layer.value = String(layer);
  inspect();
}

async function inspect(onUnknown = "error") {
  const form = $("#inspect");
  const status = $("#inspect-status");
  requests += 1;
  const request = requests; // an answer that comes after a newer request is ignored
  clearFieldErrors(form);
  setStatus(status, "Computing…");
  try {
    const body = { ...readFields(form), units: [unit], on_unknown: onUnknown };
    const answer = await requestJson("POST", "/inspect", { body });
    if (request !== requests) return;
    result = { ...answer, text: Array.from(answer.text) };
    draw();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    if (request !== requests) return;
    if (showFieldError(form, error)) setStatus(status, "");
    else setStatus(status, error.message, true);
  }
}

/** Values of a quantity as -1 to 1: a gate's range is 0 to 1, and its ends get the colors of -1 and 1. */
const toColorRange = (quantity, values) => ("fio".includes(quantity) ? values.map((v) => 2 * v - 1) : values);

function draw() {
  const { layer, n_layers: layers, n_hidden: hidden, characters, map, units } = result;
  const [name, meaning] = QUANTITIES[map.of];
  const read = `${formatCount(characters)} characters; layer ${layer} of ${layers} (0 is the lowest), ${hidden} units.`;
  setStatus($("#inspect-status"), read);
  $("#inspect-result").hidden = false;
  $("#unit").value = String(unit);
  drawHeatmap(
    $("#map"),
    map.values.map((row) => toColorRange(map.of, row)),
  );
  $("#map-low").textContent = "fio".includes(map.of) ? "0" : "-1";
  $("#map").setAttribute("aria-label", `${name} of ${hidden} units (rows) by ${characters} characters (columns)`);
  $("#map-hint").textContent = `${name}: a row is a unit, a column a character. ${meaning}`;
  $("#strips").replaceChildren(...Object.keys(QUANTITIES).map((quantity) => strip(quantity, units[0])));
  const correlations = Object.entries(result.unit_correlations);
  $("#unit-correlations").replaceChildren(...correlations.map(([feature, { units: best }]) => ranking(feature, best)));
}

/** One quantity of the chosen unit, as the text with a color behind each character. */
function strip(quantity, values) {
  const [title, meaning] = QUANTITIES[quantity];
  const shown = quantity === "c" ? values.c.map(Math.tanh) : values[quantity];
  const output = h("output", {}, "");
  const describe = (i) => {
    const number = shown[i].toFixed(2);
    const value = quantity === "c" ? `tanh(c) ${number}, c ${values.c[i].toFixed(2)}` : number;
    output.textContent = `${symbol(result.text[i])} ${value}`;
  };
  const label = `${title} of unit ${unit} by character`;
  const box = coloredText(result.text, toColorRange(quantity, shown), label, describe);
  const heading = h("h4", {}, title, output);
  return h("section", { class: "unit-strip", "data-gate": quantity }, heading, h("p", { class: "hint" }, meaning), box);
}

/** The units that correlate most with one feature of the text. */
function ranking(feature, best) {
  const rows = best.slice(0, LISTED_UNITS).map(({ layer, unit: number, r }) => {
    const label = `layer ${layer}, unit ${number}`;
    const onclick = () => chooseUnit(number, layer);
    return h("li", {}, h("button", { type: "button", class: "link", onclick }, label), ` r = ${r.toFixed(2)}`);
  });
  const list = rows.length ? h("ol", {}, ...rows) : h("p", { class: "hint" }, "It does not vary in this text.");
  return h("section", { "data-feature": feature }, h("h4", {}, FEATURES[feature] ?? feature), list);
}
