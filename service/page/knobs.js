// The settings of a text that are numbers: their names in the API, what they are called, defaults and help.

import { h } from "./dom.js";

const KNOBS = [
  ["max_chars", "Characters", "200", "numeric", "How long the text becomes."],
  [
    "temperature",
    "Temperature",
    "1",
    "decimal",
    "How daring: 1 draws from the model’s own probabilities, 0.7 is safer, 0 always takes the most probable character.",
  ],
  ["top_k", "top_k", "0", "numeric", "Draw from the k most probable characters only; 0 is off."],
  ["top_p", "top_p", "1", "decimal", "Draw from the most probable characters that together have this share; 1 is off."],
  ["min_p", "min_p", "0", "decimal", "Leave out what is less probable than this times the most probable; 0 is off."],
  [
    "typical_p",
    "typical_p",
    "1",
    "decimal",
    "Draw from characters about as surprising as the model expects; 1 is off.",
  ],
  ["repetition_penalty", "repetition_penalty", "1", "decimal", "Above 1, the last 64 characters become less probable."],
  ["seed", "Seed", "", "numeric", "The same seed gives the same text. Empty: a new one each time."],
];

/** Put the fields into a form; `pane` is part of their ids. */
export function addKnobs(fields, pane) {
  const all = KNOBS.map(([name, label, value, inputmode, help]) => {
    const id = `${pane}-${name}`;
    const about = `${id}-help`;
    const placeholder = value ? null : "random";
    const properties = { id, name, value, inputmode, placeholder, "data-help": about, "aria-describedby": about };
    return h(
      "div",
      { class: "field" },
      h("label", { for: id }, label),
      h("input", properties),
      h("p", { class: "hint", id: about }, help),
    );
  });
  fields.prepend(...all);
}
