// The table of models in the view Learn: which one serves, promote another, roll back, download, delete.

import { isOpen, request, requestJson, SERVICE, ServiceError } from "./api.js";
import { $, formatCount, formatLoss, h, saveAs, setStatus } from "./dom.js";
import { corpusOf, describeModel, formatTime } from "./served.js";

const RELOAD_MS = 1500; // a promoted model is served as soon as it has been loaded

export function setUp() {
  $("#rollback").addEventListener("click", () => promote("/models/rollback"));
}

export async function refresh() {
  const { models, serving } = await requestJson("GET", "/models");
  $("#models").replaceChildren(...models.map((model) => row(model, serving)));
  const predecessor = models.find((model) => model.predecessor);
  $("#rollback").disabled = !predecessor;
  $("#rollback").textContent = predecessor
    ? `Roll back to ${predecessor.error ? predecessor.name : describeModel(predecessor)}`
    : "Roll back: nothing was served before";
}

function row(model, serving) {
  const title = { scope: "row", title: model.name };
  if (model.error) return h("tr", {}, h("th", title, model.name), h("td", { colspan: 5, class: "error" }, model.error));
  const { cell, n_layers: layers, n_hidden: hidden, n_parameters: parameters } = model.network;
  const name = [corpusOf(model), model.preset].filter(Boolean).join(", ");
  const roles = [serving?.fingerprint === model.id ? "served" : "", model.predecessor ? "previous" : ""];
  const button = (label, onclick) => {
    const element = h("button", { type: "button", onclick }, label);
    element.setAttribute("aria-label", `${label} ${model.name}`);
    return element;
  };
  const isNeeded = model.promoted || model.predecessor;
  const actions = [
    model.promoted ? "promoted" : button("Promote", () => promote(`/models/${model.id}/promote`)),
    button("Report", () => attempt(() => openReport(model))),
    button("Download", () => attempt(() => download(model))),
    cell === "lstm" ? button("Download page", () => attempt(() => downloadPage(model))) : null,
    isNeeded ? null : button("Delete", () => attempt(() => remove(model, name))),
  ];
  return h(
    "tr",
    { "data-model": model.id, class: model.promoted ? "is-chosen" : "" },
    h("th", title, name),
    h("td", { class: "n" }, formatLoss(model.val_loss)),
    h("td", {}, `${cell} ${layers} × ${hidden}, ${formatCount(parameters)} parameters`),
    h("td", {}, formatTime(model.created)),
    h("td", { class: "state" }, roles.filter(Boolean).join(", ")),
    h("td", {}, h("div", { class: "buttons" }, ...actions)),
  );
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    setStatus($("#models-status"), error.message, true);
  }
}

const promote = (path) =>
  attempt(async () => {
    const { promoted } = await requestJson("POST", path, { body: {} });
    const running = "Texts that are being generated finish on the model they started with.";
    setStatus($("#models-status"), `Promoted ${describeModel(promoted)}. ${running}`);
    await refresh();
    setTimeout(() => refresh().catch(() => {}), RELOAD_MS);
  });

async function download({ id, name }) {
  saveAs(name, await (await request("GET", `/models/${id}/file`)).blob());
}

// One file that writes with the model by itself, without a server.
async function downloadPage({ id, name }) {
  saveAs(name.replace(/\.safetensors$/, "-page.html"), await (await request("GET", `/models/${id}/page`)).blob());
}

/** What a model learned and memorized: in a tab, or as a file, since an address carries no key. */
export async function openReport({ id, name }) {
  const path = `models/${id}/report`;
  const report = await (await request("GET", `/${path}`)).blob();
  if (isOpen()) open(new URL(path, SERVICE), "_blank", "noopener");
  else saveAs(name.replace("safetensors", "html"), report);
}

async function remove({ id }, name) {
  if (!confirm(`Delete the model ${name}? It cannot be brought back.`)) return;
  await requestJson("DELETE", `/models/${id}/file`);
  setStatus($("#models-status"), `Deleted the model ${name}.`);
  await refresh();
}
