// The view Look inside: the gates, c and h of any unit, all units at once, and which of them tell something simple.

import { ServiceError, json } from "./api.js";
import { $, count, h, visible } from "./dom.js";
import { complain, forgive, values } from "./fields.js";
import { heat, strip } from "./picture.js";
import { written } from "./write.js";

const PARTS = {
  c: ["long-term memory c", "What the unit holds on to, shown as tanh(c). It changes only by what the forget gate lets go and the input gate lets in: c = f·c + i·g."],
  h: ["short-term memory h", "What the unit shows to the next layer and to itself one character later: h = o·tanh(c). From -1 to 1."],
  f: ["forget gate f", "How much of the long-term memory stays: 1 keeps all of it, 0 forgets it at once."],
  i: ["input gate i", "How much of the new is let in: 1 writes it down, 0 leaves the memory as it is. Courses call it the learn gate."],
  g: ["candidate g", "What the new is, from -1 to 1; the input gate says how much of it counts."],
  o: ["output gate o", "How much of the memory shows: 1 uses it now, 0 keeps it to itself. Courses call it the use gate."],
};
const NAMES = {
  inside_quotes: "inside quotation marks",
  position_in_line: "the position in the line",
  after_newline: "a line has just begun",
  inside_word: "a letter, not a space or a mark",
  after_capital: "a capital letter",
};
let found = null;
let unit = 0;
let asked = 0;

export function setUp() {
  const form = $("#inspect");
  form.addEventListener("submit", (event) => (event.preventDefault(), inspect()));
  form.addEventListener("change", (event) => event.target.name !== "text" && inspect());
  $("#inspect-take").addEventListener("click", () => {
    form.elements.text.value = Array.from(written().text.toString()).slice(-600).join("");
    inspect();
  });
  const map = $("#map");
  map.addEventListener("click", (event) => {
    if (!found) return;
    const row = Math.floor((event.offsetY / map.clientHeight) * found.hidden);
    choose(Math.max(0, Math.min(found.hidden - 1, row)));
  });
  $("#unit").addEventListener("change", (event) => choose(number(event.target.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => found && draw());
}

/** What was typed, as a number if it is one: else the service says what is wrong with it. */
const number = (text) => (text.trim() && Number.isFinite(Number(text)) ? Number(text) : text);

export function shown() {
  if (!found && $("#notice").hidden) inspect("skip"); // something to see at once, whatever the model can read
}

/** Another unit, and another layer if one is named. */
function choose(number, layer = null) {
  unit = number;
  if (layer !== null) $("#inspect").elements.layer.value = String(layer);
  inspect();
}

async function inspect(onUnknown = "error") {
  const form = $("#inspect");
  const status = $("#inspect-status");
  const mine = ++asked;
  forgive(form);
  status.textContent = "Reading…";
  status.classList.remove("error");
  try {
    const body = values(form);
    const answer = await json("POST", "/inspect", { body: { ...body, units: [unit], on_unknown: onUnknown } });
    if (mine !== asked) return;
    found = { ...answer, text: Array.from(answer.text) };
    draw();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    if (mine !== asked) return;
    status.textContent = "";
    const about = error.field.startsWith("units") ? { ...error, field: "units", message: error.message } : error;
    if (!complain(form, about)) {
      status.textContent = error.message;
      status.classList.add("error");
    }
  }
}

function draw() {
  const { layer, layers, hidden, characters, map, units } = found;
  $("#inspect-status").textContent = `${count(characters)} characters read; layer ${layer} of ${layers} (0 is the lowest), ${hidden} units.`;
  $("#inside-found").hidden = false;
  $("#unit").value = String(unit);
  const [name, meaning] = PARTS[map.of];
  const isGate = "fio".includes(map.of); // from 0 to 1: closed and open have the colours of -1 and 1
  heat($("#map"), isGate ? map.values.map((row) => row.map((v) => 2 * v - 1)) : map.values);
  $("#map-low").textContent = isGate ? "0" : "-1";
  $("#map").setAttribute("aria-label", `${name} of ${hidden} units (rows) by ${characters} characters (columns)`);
  $("#map-what").textContent = `${name}: a row is a unit, a column a character. ${meaning}`;
  const one = units[0];
  $("#strips").replaceChildren(
    ...Object.entries(PARTS).map(([part, [title, text]]) => {
      const readings = part === "c" ? one.c.map(Math.tanh) : one[part];
      const told = h("output", {}, "");
      const box = strip(found.text, "fio".includes(part) ? readings.map((v) => 2 * v - 1) : readings, `${title} of unit ${unit} by character`, (i) => {
        told.textContent = `${visible(found.text[i])} ${part === "c" ? `tanh(c) ${readings[i].toFixed(2)}, c ${one.c[i].toFixed(2)}` : readings[i].toFixed(2)}`;
      });
      return h("section", { class: "one-strip", "data-gate": part }, h("h4", {}, title, told), h("p", { class: "hint" }, text), box);
    }),
  );
  $("#telling").replaceChildren(...Object.entries(found.telling).map(([feature, { units: best }]) => ranking(feature, best)));
}

function ranking(feature, best) {
  const rows = best.slice(0, 5).map(({ layer, unit: u, r }) =>
    h("li", {}, h("button", { type: "button", class: "link", onclick: () => choose(u, layer) }, `layer ${layer}, unit ${u}`), ` r = ${r.toFixed(2)}`),
  );
  const list = rows.length ? h("ol", {}, ...rows) : h("p", { class: "hint" }, "It does not vary in this text.");
  return h("section", { "data-feature": feature }, h("h4", {}, NAMES[feature] ?? feature), list);
}
