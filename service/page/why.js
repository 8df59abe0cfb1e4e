// The view Why this letter: any text, by how much each of its characters surprises the model.

import { ServiceError, json } from "./api.js";
import { $, count } from "./dom.js";
import { complain, forgive } from "./fields.js";
import { Letters } from "./letters.js";
import { lookup } from "./lookup.js";
import { Text } from "./text.js";
import { TOP } from "./turn.js";
import { written } from "./write.js";

let text;
let isBegun = false;

export function shown() {
  if (!isBegun && $("#notice").hidden) score("skip"); // something to see at once, whatever the model can read
}

export function setUp() {
  const form = $("#score");
  text = new Text(new Letters($("#score-letters"), { onlook: (i) => look(i) }));
  const look = lookup(text, $("#score-panel"), $("#score-voice"));
  form.addEventListener("submit", (event) => (event.preventDefault(), score()));
  $("#score-take").addEventListener("click", () => {
    form.elements.text.value = written().text.toString();
    form.requestSubmit();
  });
  $("#score-coloured").addEventListener("change", (event) => $("#score-letters").classList.toggle("coloured", event.target.checked));
}

async function score(onUnknown = "error") {
  const form = $("#score");
  isBegun = true;
  forgive(form);
  const status = $("#score-status");
  const session = form.elements.after.checked ? written().session : null;
  const body = { text: form.elements.text.value, logprobs: TOP, on_unknown: onUnknown, ...(session ? { session_id: session } : {}) };
  status.textContent = "Reading…";
  status.classList.remove("error");
  try {
    const found = await json("POST", "/score", { body });
    text.clear();
    text.append(body.text, found.logprobs);
    text.draw();
    const b = found.bits_per_character;
    status.textContent =
      `${b.toFixed(3)} bits per character (${found.nats_per_character.toFixed(3)} nats), ${count(found.characters)} characters` +
      `${session ? `, read after position ${count(found.position)} of the session` : ""}. ` +
      `That is like choosing from ${(2 ** b).toFixed(1)} equally likely characters each time.`;
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    status.textContent = "";
    if (!complain(form, error)) {
      status.textContent = error.message;
      status.classList.add("error");
    }
  }
}
