// The view Write: a text, beside it a fork of it, and the recent texts of this visit.

import * as address from "./address.js";
import { attempt, requestJson } from "./api.js";
import { $, button, h } from "./dom.js";
import { Pane } from "./pane.js";
import * as recent from "./recent.js";
import { formatTime, isId } from "./served.js";

let main;
let fork;
const panes = () => $("#panes");

export function setUp() {
	main = new Pane("main", "s", { onFork: openFork, onClose: () => {}, onCompare: openComparison });
	main.parts.close.hidden = true;
	panes().append(main.root);
	$("#recent").addEventListener("toggle", drawRecent);
}

export const mainPane = () => main;

export function showModels() {
	main.showModel();
	fork?.showModel();
}

export function onShow() {
	if (main.chooser.model) showModels(); // another one may be served by now
	const { parameters } = address.read();
	const [mainSession, forkSession, list, forkList] = ["s", "f", "s.list", "f.list"].map((name) => parameters.get(name));
	if ((mainSession !== main.session || list !== main.list) && !main.running) {
		if (list) main.loadList(list);
		else if (mainSession) main.load(mainSession);
		else main.reset();
	}
	if (fork) return;
	if (forkList) addForkPane().loadList(forkList);
	else if (forkSession) addForkPane().load(forkSession);
}

function addForkPane() {
	fork?.root.remove();
	fork = new Pane("fork", "f", { onFork: openFork, onClose: closeFork });
	for (const name of ["fork", "compare"]) fork.parts[name].hidden = true;
	panes().append(fork.root);
	panes().classList.add("two");
	return fork;
}

/** Open a text beside a pane's, from its selected character or its end. */
function openFork(pane) {
	const position = pane.text.start + pane.kept;
	const open = async () => {
		let [session, seed] = [null, pane.seed];
		if (pane.session && position >= pane.rewindFrom && !isId(pane.chooser.name)) {
			const body = position ? { position } : {};
			({ session_id: session, seed } = await requestJson("POST", `/sessions/${pane.session}/fork`, { body }));
		}
		addForkPane().copyFrom(pane, session, seed);
		fork.copySettings(pane);
		pane.text.view.setCut(null);
		await Promise.all([pane.showModel(), fork.showModel()]);
		fork.root.scrollIntoView({ block: "nearest" });
		fork.parts.generate.focus();
	};
	return attempt(open, (error) => pane.setStatus(error.message, true));
}

/** Open a pane for another model: once it is chosen, both write. */
function openComparison() {
	addForkPane();
	fork.copySettings(main);
	fork.setStatus("Choose a model above. Then both write, from the same beginning and with the same seed.");
	fork.chooser.parts.model.focus();
	fork.showModel();
	fork.onModel = async () => {
		const prompt = main.fields.prompt.value || (main.lastTurn?.prompt ?? "");
		const seed = main.fields.seed.value || String(crypto.getRandomValues(new Uint16Array(1))[0]);
		const write = (pane) => {
			pane.stop();
			pane.fields.seed.value = seed;
			return pane.writeExample(prompt);
		};
		await Promise.all([main, fork].map(write));
	};
}

export async function writeWith(name) {
	location.hash = address.format("generate", address.read().parameters);
	main.reset(); // before the examples, or it stops one
	await main.chooser.choose(name);
}

export async function compareWith(first, second) {
	location.hash = address.format("generate", address.read().parameters);
	main.reset();
	await main.chooser.choose(first);
	openComparison();
	await fork.chooser.choose(second);
}

function closeFork() {
	fork.stop();
	fork.root.remove();
	fork = undefined;
	panes().classList.remove("two");
	address.update({ f: null, "f.list": null });
	main.parts.fork.focus();
}

function drawRecent() {
	const rows = recent.entries().map(({ session, list, title, at }) => {
		const onclick = () => {
			address.push({ s: session, "s.list": list });
			onShow();
		};
		return h(
			"li",
			{},
			button(title, onclick, { class: "link" }),
			h("span", { class: "hint" }, ` ${formatTime(at / 1000)}`),
		);
	});
	const empty = h("li", { class: "hint" }, "No texts yet.");
	$("#recent-list").replaceChildren(...(rows.length ? rows : [empty]));
}
