// The table of models in the view Train: which one is served, promote another, roll back.

import { requestJson, ServiceError } from "./api.js";
import { $, formatCount, formatLoss, h, setStatus } from "./dom.js";

const RELOAD_MS = 1500; // a promoted model is served as soon as it has been loaded

export function setUp() {
  $("#rollback").addEventListener("click", () => change("/models/rollback"));
}

/** Load the list and show it. @throws {ServiceError} */
export async function refresh() {
  const { models, serving } = await requestJson("GET", "/models");
  $("#models").replaceChildren(...models.map((model) => row(model, serving)));
  $("#rollback").disabled = !models.some((model) => model.predecessor);
}

function row(model, serving) {
  const name = h("th", { scope: "row" }, model.name.replace(".safetensors", ""));
  if (model.error) return h("tr", {}, name, h("td", { colspan: 4, class: "error" }, model.error));
  const { cell, n_layers: layers, n_hidden: hidden, n_parameters: parameters } = model.network;
  const roles = [serving?.fingerprint === model.id ? "served" : "", model.predecessor ? "previous" : ""];
  const promote = h("button", { type: "button", onclick: () => change(`/models/${model.id}/promote`) }, "Promote");
  promote.setAttribute("aria-label", `Promote ${model.name}`);
  return h(
    "tr",
    { "data-model": model.id, class: model.promoted ? "is-chosen" : "" },
    name,
    h("td", { class: "n" }, formatLoss(model.val_loss)),
    h("td", {}, `${cell} ${layers} × ${hidden}, ${formatCount(parameters)} parameters`),
    h("td", { class: "state" }, roles.filter(Boolean).join(", ")),
    h("td", {}, model.promoted ? "promoted" : promote),
  );
}

async function change(path) {
  const status = $("#models-status");
  try {
    const { promoted } = await requestJson("POST", path, { body: {} });
    setStatus(
      status,
      `Promoted ${promoted.name}. Texts that are being generated finish on the model they started with.`,
    );
    await refresh();
    setTimeout(() => refresh().catch(() => {}), RELOAD_MS);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    setStatus(status, error.message, true);
  }
}
