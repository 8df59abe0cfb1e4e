// The view Generate: a text, and beside it a fork of it.

import * as address from "./address.js";
import { requestJson, ServiceError } from "./api.js";
import { $ } from "./dom.js";
import { Pane } from "./pane.js";

let main;
let fork;
const panes = () => $("#panes");

export function setUp() {
  main = new Pane("main", "s", { onFork: openFork, onClose: () => {} });
  main.parts.close.hidden = true;
  panes().append(main.root);
}

/** The main pane, whose text and session other views use. */
export const mainPane = () => main;

/** Follow the address: it may name other sessions than those that are shown. */
export function onShow() {
  const { parameters } = address.read();
  const [mainSession, forkSession] = [parameters.get("s"), parameters.get("f")];
  if (mainSession !== main.session && !main.running) {
    if (mainSession) main.load(mainSession);
    else if (main.session) main.reset();
  }
  if (forkSession && !fork) addForkPane().load(forkSession);
}

function addForkPane() {
  fork = new Pane("fork", "f", { onFork: openFork, onClose: closeFork });
  fork.parts.fork.hidden = true;
  panes().append(fork.root);
  panes().classList.add("two");
  return fork;
}

async function openFork(pane) {
  const position = pane.text.start + pane.kept;
  if (position < pane.rewindFrom) {
    pane.setStatus("A fork can only start within the last turn. “Continue from here” works anywhere.", true);
    return;
  }
  try {
    const forked = await requestJson("POST", `/sessions/${pane.session}/fork`, { body: position ? { position } : {} });
    fork?.root.remove();
    addForkPane().copyFrom(pane, forked.session_id, forked.seed);
    for (const field of pane.parts.form.elements) {
      if (field.name && field.name !== "prompt") fork.parts.form.elements[field.name].value = field.value;
    }
    fork.root.scrollIntoView({ block: "nearest" });
    fork.parts.form.elements.temperature.focus();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    pane.setStatus(error.message, true);
  }
}

function closeFork() {
  fork.stop();
  fork.root.remove();
  fork = undefined;
  panes().classList.remove("two");
  address.update({ f: null });
  main.parts.fork.focus();
}
