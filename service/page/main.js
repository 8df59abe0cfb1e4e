// The page's start: shows the view that the address names, and a notice while there is no model.

import * as address from "./address.js";
import { requestJson } from "./api.js";
import { $, h } from "./dom.js";
import * as generate from "./generate.js";
import * as inspect from "./inspect.js";
import * as keys from "./keys.js";
import * as score from "./score.js";
import { DEFAULT, offerNames } from "./served.js";
import * as status from "./status.js";
import * as train from "./train.js";

const VIEWS = { generate, score, inspect, train, status };
const POLL_MS = 3000;
let current = null;

function showView() {
	const { view } = address.read();
	address.updateLinks();
	if (view !== current) {
		VIEWS[current]?.onHide?.();
		for (const name of Object.keys(VIEWS)) $(`#view-${name}`).hidden = name !== view;
		document.title = `${$(`nav a[data-view="${view}"]`).textContent} · Longhand`;
		if (current !== null) scrollTo({ top: 0, behavior: "instant" });
		current = view;
	}
	// One line says and chooses the model of all views.
	($(`#view-${view} .of-model`) ?? generate.mainPane().root).prepend(generate.mainPane().chooser.root);
	VIEWS[view].onShow?.();
}

async function showModels() {
	const names = await offerNames();
	const { chooser } = generate.mainPane();
	if (names.length && chooser.name === DEFAULT && !names.includes(DEFAULT)) await chooser.choose(names[0]);
	generate.showModels();
}

async function waitForModel() {
	const notice = $("#notice");
	try {
		const ready = await requestJson("GET", "/readyz", { mayPrompt: false });
		if (ready.model) {
			notice.hidden = true;
			await showModels();
			return;
		}
		const link = h("a", { href: address.format("train", address.read().parameters) }, "follow the training");
		notice.replaceChildren(
			"The first model is being trained. You can press Write now: the text starts as soon as a model is ready. Or ",
			link,
			".",
		);
	} catch (error) {
		notice.textContent = `The service cannot generate text: ${error.message}`;
	}
	notice.hidden = false;
	setTimeout(waitForModel, POLL_MS);
}

keys.setUp();
for (const view of Object.values(VIEWS)) view.setUp?.();
addEventListener("hashchange", showView);
addEventListener("key", showModels);
addEventListener("focusin", ({ target }) => target.list && offerNames());
generate.mainPane().onModel = () => VIEWS[current].onShow?.();
showView();
waitForModel();
