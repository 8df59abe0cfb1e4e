// The view Write: a text, beside it a fork of it, and the recent texts of this visit.

import * as address from "./address.js";
import { requestJson, ServiceError } from "./api.js";
import { $, h } from "./dom.js";
import { Pane } from "./pane.js";
import * as recent from "./recent.js";
import { formatTime } from "./served.js";

let main;
let fork;
const panes = () => $("#panes");

export function setUp() {
  main = new Pane("main", "s", { onFork: openFork, onClose: () => {} });
  main.parts.close.hidden = true;
  panes().append(main.root);
  $("#recent").addEventListener("toggle", drawRecent);
}

/** The main pane, whose text and session other views use. */
export const mainPane = () => main;

/** Show which model writes, in every pane. */
export function showModel() {
  main.showModel();
  fork?.showModel();
}

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
  fork.showModel();
  return fork;
}

/** Open a text beside a pane's, from its selected character or its end. */
async function openFork(pane) {
  const position = pane.text.start + pane.kept;
  try {
    let [session, seed] = [null, pane.seed];
    if (pane.session && position >= pane.rewindFrom && !pane.chooser.chosen) {
      const body = position ? { position } : {};
      ({ session_id: session, seed } = await requestJson("POST", `/sessions/${pane.session}/fork`, { body }));
    }
    fork?.root.remove();
    addForkPane().copyFrom(pane, session, seed);
    for (const field of pane.parts.form.elements) {
      const isSetting = field.name && field.name !== "prompt" && field.type !== "checkbox";
      if (isSetting) fork.parts.form.elements[field.name].value = field.value;
    }
    pane.text.view.setCut(null);
    pane.showModel();
    fork.showModel();
    fork.root.scrollIntoView({ block: "nearest" });
    fork.parts.generate.focus();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    pane.setStatus(error.message, true);
  }
}

export function writeWith(model) {
  location.hash = address.format("generate", address.read().parameters);
  main.chooser.use(model);
  main.reset();
}

/** Have the served model and another one write side by side, from the same beginning and seed. */
export async function compareWith(model) {
  location.hash = address.format("generate", address.read().parameters);
  main.chooser.use(null);
  main.reset();
  fork?.root.remove();
  addForkPane().chooser.use(model);
  const seed = String(crypto.getRandomValues(new Uint16Array(1))[0]);
  for (const pane of [main, fork]) pane.parts.form.elements.seed.value = seed;
  await Promise.all([main.generate(), fork.generate()]);
}

function closeFork() {
  fork.stop();
  fork.root.remove();
  fork = undefined;
  panes().classList.remove("two");
  address.update({ f: null });
  main.parts.fork.focus();
}

function drawRecent() {
  const rows = recent.list().map(({ session, title, at }) => {
    const onclick = () => {
      address.push({ s: session });
      onShow();
    };
    const button = h("button", { type: "button", class: "link", onclick }, title);
    return h("li", {}, button, h("span", { class: "hint" }, ` ${formatTime(at / 1000)}`));
  });
  const empty = h("li", { class: "hint" }, "No texts yet.");
  $("#recent-list").replaceChildren(...(rows.length ? rows : [empty]));
}
