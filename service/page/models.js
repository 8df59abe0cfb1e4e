// The models that are there: which one serves, promote another, go back.

import { ServiceError, json } from "./api.js";
import { $, bits, count, h } from "./dom.js";

export function setUp() {
  $("#rollback").addEventListener("click", () => change("/models/rollback"));
}

/** Thrown: ServiceError. */
export async function list() {
  const { models, serving } = await json("GET", "/models");
  $("#models").replaceChildren(...models.map((model) => row(model, serving)));
  $("#rollback").disabled = !models.some((model) => model.predecessor);
}

function row(model, serving) {
  if (model.error) return h("tr", {}, h("th", { scope: "row" }, model.name), h("td", { colspan: 4, class: "error" }, model.error));
  const { cell, n_layers: layers, n_hidden: hidden, n_parameters: parameters } = model.network;
  const role = [serving?.fingerprint === model.id ? "serves" : "", model.predecessor ? "the one before" : ""].filter(Boolean).join(", ");
  const promote = h("button", { type: "button", onclick: () => change(`/models/${model.id}/promote`) }, "Promote");
  promote.setAttribute("aria-label", `Promote ${model.name}`);
  return h(
    "tr",
    { "data-model": model.id, class: model.promoted ? "is-chosen" : "" },
    h("th", { scope: "row" }, model.name.replace(".safetensors", "")),
    h("td", { class: "n" }, `${model.val_loss.toFixed(3)} nats = ${bits(model.val_loss).toFixed(3)} bits`),
    h("td", {}, `${cell} ${layers} × ${hidden}, ${count(parameters)} parameters`),
    h("td", { class: "state" }, role),
    h("td", {}, model.promoted ? "promoted" : promote),
  );
}

async function change(path) {
  const status = $("#models-status");
  status.classList.remove("error");
  try {
    const { promoted } = await json("POST", path, { body: {} });
    status.textContent = `Promoted ${promoted.name}; texts that are being written end on the model that they began with.`;
    await list();
    setTimeout(() => list().catch(() => {}), 1500); // it is served as soon as it has been loaded
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    status.textContent = error.message;
    status.classList.add("error");
  }
}
