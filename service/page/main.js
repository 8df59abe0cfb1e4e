// The page: which view is shown, and what is said while there is no model.

import * as address from "./address.js";
import { json } from "./api.js";
import { $, h } from "./dom.js";
import * as inside from "./inside.js";
import * as keys from "./keys.js";
import * as learn from "./learn.js";
import * as serve from "./serve.js";
import * as why from "./why.js";
import * as write from "./write.js";

const VIEWS = { write, why, inside, learn, serve };
const LOOK_MS = 3000;
let current = null;

function route() {
  const { view } = address.read();
  address.link();
  if (view !== current) {
    VIEWS[current]?.hidden?.();
    for (const name of Object.keys(VIEWS)) $(`#view-${name}`).hidden = name !== view;
    document.title = `${$(`nav a[data-view="${view}"]`).textContent} · Longhand`;
    current = view;
  }
  VIEWS[view].shown?.();
}

/** While the first model is being trained, say so everywhere. */
async function first() {
  const notice = $("#notice");
  try {
    const ready = await json("GET", "/readyz", { ask: false });
    if (ready.model) {
      notice.hidden = true;
      return;
    }
    const learnHere = h("a", { href: address.hash("learn", address.read().parameters) }, "watch it learn");
    notice.replaceChildren("A first model is being trained. Ask for a text already: it begins as soon as there is one. Or ", learnHere, ".");
    notice.hidden = false;
  } catch (error) {
    notice.textContent = `The service cannot write now: ${error.message}`;
    notice.hidden = false;
  }
  setTimeout(first, LOOK_MS);
}

keys.setUp();
for (const each of Object.values(VIEWS)) each.setUp?.();
addEventListener("hashchange", route);
route();
first();
