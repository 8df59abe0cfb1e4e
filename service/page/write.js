// The view Write: a text, and beside it a fork of it that goes its own way.

import { ServiceError, json } from "./api.js";
import * as address from "./address.js";
import { $ } from "./dom.js";
import { Pane } from "./pane.js";

let main, fork;
const grid = () => $("#panes");

export function setUp() {
  main = new Pane("main", "s", { onfork: forked, onclose: () => {} });
  main.parts.close.hidden = true;
  grid().append(main.root);
}

/** What is in Write, for the other views. */
export const written = () => main;

/** Follow the address: another session in it is another text. */
export function shown() {
  const { parameters } = address.read();
  const [s, f] = [parameters.get("s"), parameters.get("f")];
  if (s !== main.session && !main.running) s ? main.load(s) : main.session && main.fresh();
  if (f && !fork) open().load(f);
}

function open() {
  fork = new Pane("fork", "f", { onfork: forked, onclose: close });
  fork.parts.fork.hidden = true;
  grid().append(fork.root);
  grid().classList.add("two");
  return fork;
}

async function forked(pane) {
  const position = pane.text.base + pane.kept;
  try {
    if (position < pane.rewindFrom) {
      pane.say("A fork can begin within the last turn; go on from here instead, which reads the text again.", true);
      return;
    }
    const made = await json("POST", `/sessions/${pane.session}/fork`, { body: position ? { position } : {} });
    fork?.root.remove();
    open().take(pane, made.session_id, made.seed);
    for (const field of pane.parts.form.elements) {
      if (field.name && field.name !== "prompt") fork.parts.form.elements[field.name].value = field.value;
    }
    fork.root.scrollIntoView({ block: "nearest" });
    fork.parts.form.elements.temperature.focus();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    pane.say(error.message, true);
  }
}

function close() {
  fork.stop();
  fork.root.remove();
  fork = undefined;
  grid().classList.remove("two");
  address.put({ f: null });
  main.parts.fork.focus();
}
