// What a character was drawn from: the ten most probable ones and the rest.

import { bits, h, percent, spoken, visible } from "./dom.js";

/**
 * Show a look at a character in an element.
 * look: {logprob, probability, top: [[character, logprob, probability], ...]}, as POST /generate and POST /score tell it.
 */
export function show(element, character, look, note = "") {
  const surprise = bits(-look.logprob);
  const best = look.top[0]?.[2] || 1;
  const isTop = look.top.some(([c]) => c === character);
  const rest = 1 - look.top.reduce((sum, [, , p]) => sum + p, 0) - (isTop ? 0 : look.probability);
  const rows = look.top.map(([c, logprob, p]) => row(c, p, best, Math.exp(logprob), c === character));
  if (!isTop) rows.push(row(character, look.probability, best, Math.exp(look.logprob), true));
  const left = look.top.reduce((sum, [, logprob]) => sum - Math.exp(logprob), 1) - (isTop ? 0 : Math.exp(look.logprob));
  rows.push(row(null, Math.max(0, rest), best, Math.max(0, left), false));
  element.replaceChildren(
    h("p", { class: "drawn" }, h("b", { class: "letter" }, visible(character)), ` ${surprise.toFixed(2)} bits of surprise`),
    h(
      "table",
      {},
      h("caption", {}, "What it was drawn from"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "next"), h("th", { scope: "col", colspan: "2" }, "drawn from"), h("th", { scope: "col" }, "model"))),
      h("tbody", {}, ...rows),
    ),
    note && h("p", { class: "hint" }, note),
  );
}

function row(character, p, best, own, isDrawn) {
  const name = character === null ? h("th", { scope: "row" }, "the rest") : h("th", { scope: "row", class: "letter", title: spoken(character) }, visible(character));
  const bar = h("i", { class: "bar" });
  bar.style.width = `${Math.min(100, (100 * p) / best)}%`;
  const cells = [name, h("td", { class: "bars" }, bar), h("td", { class: "n" }, percent(p)), h("td", { class: "n" }, percent(own))];
  return h("tr", { class: isDrawn ? "is-drawn" : "", "data-character": character ?? "", "data-probability": String(p), "data-model": String(own) }, ...cells);
}

/** The same in a sentence, for those who hear the page. */
export function say(character, look) {
  const others = look.top.filter(([c]) => c !== character).slice(0, 3);
  const told = others.map(([c, , p]) => `${spoken(c)} ${percent(p)}`).join(", ");
  return `${spoken(character)}, ${percent(look.probability)}, ${bits(-look.logprob).toFixed(1)} bits of surprise. Else: ${told}.`;
}
