// The panel beside a text: the character that is pointed at, and what it was drawn from.

import { $, h, visible } from "./dom.js";
import { say, show } from "./distribution.js";

const NOTES = {
  exact: "Read again from the text, at temperature 1: “drawn from” and “model” are the same.",
  part: "Read again from the part of the text that is here, at temperature 1: what stood before it is not known.",
};

/** A function of an index that shows the look at text's character there; `panel` is told of by `voice` (aria-live). */
export function lookup(text, panel, voice) {
  let last = -1;
  return async (index) => {
    last = index;
    const character = text.characters[index];
    try {
      if (!text.looks[index]?.top) panel.setAttribute("aria-busy", "true");
      const look = await text.lookAt(index);
      if (last !== index) return; // another character has been pointed at meanwhile
      if (look) {
        show(panel, character, look, NOTES[look.anew] ?? "");
        voice.textContent = say(character, look);
      } else {
        panel.replaceChildren(h("p", { class: "hint" }, `${visible(character)}: the model does not know this character.`));
      }
    } catch (error) {
      if (last === index) panel.replaceChildren(h("p", { class: "error" }, error.message));
    } finally {
      panel.removeAttribute("aria-busy");
    }
  };
}

/** A pane's parts by their names: the elements with data-part. */
export function parts(root) {
  return Object.fromEntries([...root.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));
}

/** A template's content with its own ids: every @ in an attribute becomes the name. */
export function stamp(template, name) {
  const root = $(template).content.firstElementChild.cloneNode(true);
  for (const element of [root, ...root.querySelectorAll("*")]) {
    for (const attribute of element.attributes) {
      if (attribute.value.includes("@")) attribute.value = attribute.value.replaceAll("@", name);
    }
  }
  return root;
}
