// The models in the view Learn: their names, and the checkpoints of one: promote, roll back, write, download, delete.

import { attempt, isOpen, request, requestJson, SERVICE } from "./api.js";
import { $, button, formatLoss, h, onClick, saveAs, setStatus } from "./dom.js";
import { showFieldError } from "./fields.js";
import { compareWith, writeWith } from "./generate.js";
import { corpusOf, DEFAULT, describeModel, describeNetwork, formatTime } from "./served.js";

const RELOAD_MS = 1500; // a promoted model is served as soon as it has been loaded
const field = () => $("#retrain-model");
let name = DEFAULT; // of the model whose checkpoints are shown

export function setUp() {
	onClick("#rollback", () => promote("/models/rollback"));
	onClick("#models-delete", () => removeName());
	onClick("#names-more", ({ target }) => act(() => drawNames(target.value)));
	field().addEventListener("change", () => act(refresh));
}

export async function refresh() {
	name = field().value.trim() || DEFAULT;
	const current = name;
	await drawNames();
	const path = `/models?limit=1&model=${encodeURIComponent(name)}`;
	const { models, serving } = await attempt(
		() => requestJson("GET", path),
		(error) => {
			if (error.status !== 404) throw error;
			return { models: [] };
		},
	);
	if (current !== name) return;
	const isNew = h("tr", {}, h("td", { colspan: 6 }, "No model has this name yet: a training makes it."));
	$("#models-title").textContent = `Checkpoints of the model ${name}`;
	$("#models").replaceChildren(...(models.length ? models.map((model) => row(model, serving)) : [isNew]));
	const predecessor = models.find((model) => model.predecessor);
	$("#rollback").disabled = !predecessor;
	$("#rollback").textContent = predecessor
		? `Roll back to ${predecessor.error ? predecessor.name : describeModel(predecessor)}`
		: "Roll back: nothing was served before";
	$("#models-delete").hidden = name === DEFAULT || !models.length;
	$("#models-delete").textContent = `Delete the model ${name}`;
}

/** Again once loaded. */
export async function refreshTwice() {
	setTimeout(() => refresh().catch(() => {}), RELOAD_MS);
	await refresh();
}

/** A page of the names, after one; the first page replaces all. One name alone needs no table. */
async function drawNames(after = "") {
	const { names, next } = await requestJson("GET", `/models${after && `?after=${after}`}`);
	const rows = names.map((model) =>
		h(
			"tr",
			{ class: model.name === name ? "is-chosen" : "" },
			h(
				"th",
				{ scope: "row" },
				button(model.name, () => choose(model.name), { class: "link" }),
			),
			h("td", { class: model.error ? "error" : "n" }, model.error ?? formatLoss(model.val_loss)),
			h("td", { class: "n" }, model.bytes ? `${(model.bytes / 1e6).toFixed(2)} MB` : ""),
			h("td", {}, formatTime(model.created)),
			h("td", {}, `${model.loaded ? "loaded" : ""} ${formatTime(model.last_used_at)}`),
		),
	);
	if (after) $("#names").append(...rows);
	else $("#names").replaceChildren(...rows);
	$("#names").closest("section").hidden = $("#names").children.length < 2;
	$("#names-more").hidden = !next;
	$("#names-more").value = next;
}

function choose(other) {
	field().value = other;
	return act(refresh);
}

function row(model, serving) {
	const title = { scope: "row", title: model.name };
	if (model.error) return h("tr", {}, h("th", title, model.name), h("td", { colspan: 5, class: "error" }, model.error));
	const text = [corpusOf(model), model.preset].filter(Boolean).join(", ");
	const isServed = name === DEFAULT ? serving?.fingerprint === model.id : model.promoted;
	const roles = [isServed ? "served" : "", model.predecessor ? "previous" : ""];
	const action = (label, run) => button(label, () => act(run), { "aria-label": `${label} ${model.name}` });
	const [page, file] = [`/models/${model.id}/page`, model.name.replace(/\.safetensors$/, "-page.html")];
	const isNeeded = model.promoted || model.predecessor;
	const actions = [
		model.promoted ? "promoted" : action("Promote", () => promote(`/models/${model.id}/promote`)),
		action("Write", () => writeWith(model.id)),
		isServed ? null : action("Compare", () => compareWith(name, model.id)),
		action("Report", () => openReport(model)),
		action("Download", async () => saveAs(model.name, await fetchBlob(`/models/${model.id}/file`))),
		// One file that writes with the model by itself, without a server.
		model.network.cell === "lstm" ? action("Download page", async () => saveAs(file, await fetchBlob(page))) : null,
		isNeeded ? null : action("Delete", () => remove(model, text)),
	];
	return h(
		"tr",
		{ "data-model": model.id, class: model.promoted ? "is-chosen" : "" },
		h("th", title, text),
		h("td", { class: "n" }, formatLoss(model.val_loss)),
		h("td", {}, describeNetwork(model.network)),
		h("td", {}, formatTime(model.created)),
		h("td", { class: "state" }, roles.filter(Boolean).join(", ")),
		h("td", {}, h("div", { class: "buttons" }, ...actions)),
	);
}

const say = (message, isError = false) => setStatus($("#models-status"), message, isError);

/** Run an action; its error is shown at the field for the name, or below the tables. */
const act = (action) => attempt(action, (error) => showFieldError($("#retrain"), error) || say(error.message, true));

const promote = (path) =>
	act(async () => {
		const { promoted } = await requestJson("POST", path, { body: { model: name } });
		const running = "Texts that are being generated finish on the model they started with.";
		say(`Promoted ${describeModel(promoted)}. ${running}`);
		await refreshTwice();
	});

const fetchBlob = async (path) => (await request("GET", path)).blob();

/** What a model learned and memorized: in a tab, or as a file, since an address carries no key. */
export async function openReport({ id, name: file }) {
	const path = `models/${id}/report`;
	const report = await fetchBlob(`/${path}`);
	if (isOpen()) open(new URL(path, SERVICE), "_blank", "noopener");
	else saveAs(file.replace("safetensors", "html"), report);
}

async function remove({ id }, text) {
	if (!confirm(`Delete the checkpoint ${text}? It cannot be brought back.`)) return;
	await requestJson("DELETE", `/models/${id}/file?model=${name}`);
	say(`Deleted the checkpoint ${text}.`);
	await refresh();
}

async function removeName() {
	if (!confirm(`Delete the model ${name} with all its checkpoints? They cannot be brought back.`)) return;
	await act(async () => {
		await requestJson("DELETE", `/models/${name}`);
		say(`Deleted the model ${name}.`);
		await choose("");
	});
}
