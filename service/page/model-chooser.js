// Which model writes, the choice of another one for this text, and examples of what it writes.

import { requestJson, ServiceError } from "./api.js";
import { h } from "./dom.js";
import * as served from "./served.js";

export class ModelChooser {
  constructor(parts, { onChoose, onExample, onError }) {
    this.parts = parts;
    this.onChoose = onChoose;
    this.onExample = onExample;
    this.onError = onError;
    this.chosen = null; // a model as in GET /models; null: the served one
    parts["other-models"].addEventListener("click", () => this.#list());
    parts.model.addEventListener("change", () => {
      this.chosen = this.models.find(({ id }) => id === parts.model.value) ?? null;
      onChoose(this.chosen);
      this.show();
    });
  }

  /** The model that writes; null while it is not known. */
  get model() {
    return this.chosen ?? served.servedModel();
  }

  /** Choose a model by its id, as an address names it. */
  choose(id) {
    this.chosen = id && id !== served.servedModel()?.id ? { id, name: id, val_loss: Number.NaN } : null;
    this.show();
  }

  /** Have a model write this text; null: the served one. */
  use(model) {
    this.chosen = model && model.id !== served.servedModel()?.id ? model : null;
    this.show();
    this.onChoose(this.chosen);
  }

  async show() {
    const { model } = this;
    this.parts["model-line"].hidden = model === null;
    this.parts.examples.hidden = true;
    if (model === null) return;
    const role = this.chosen ? "chosen for this text" : "serves everybody";
    const name = Number.isNaN(model.val_loss) ? model.id : served.describeModel(model);
    this.parts["model-name"].textContent = `${name} (${role})`;
    const prompts = Number.isNaN(model.val_loss) ? [] : await served.examplesOf(model);
    if (model.id !== this.model?.id) return; // another model was chosen meanwhile
    const chips = prompts.map((prompt) => {
      const onclick = () => this.onExample(prompt);
      const label = model.is_list ? `${prompt}…` : prompt.trimEnd();
      return h("button", { type: "button", class: "chip", onclick }, label);
    });
    const free = h("button", { type: "button", class: "chip", onclick: () => this.onExample("") }, "anything");
    this.parts.examples.replaceChildren(h("span", {}, "Try one: "), ...chips, free);
    this.parts.examples.hidden = false;
  }

  async #list() {
    const select = this.parts.model;
    try {
      const { models, serving } = await requestJson("GET", "/models");
      this.models = models.filter(({ error }) => !error).map((m) => ({ ...m, is_list: m.items !== null }));
      const others = this.models.filter(({ id }) => id !== serving?.fingerprint);
      if (!others.length) {
        this.onError("There is no other model yet. Train one in Learn.");
        return;
      }
      const servedOne = this.models.find(({ id }) => id === serving?.fingerprint);
      const label = `${servedOne ? served.describeModel(servedOne) : "the one that serves"} (serves everybody)`;
      const options = others.map((model) => h("option", { value: model.id }, served.describeModel(model)));
      select.replaceChildren(h("option", { value: "" }, label), ...options);
      select.value = this.chosen?.id ?? "";
      this.chosen = this.models.find(({ id }) => id === this.chosen?.id) ?? null;
      this.parts["other-models"].hidden = true;
      select.closest(".field").hidden = false;
      select.focus();
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      this.onError(error.message);
    }
  }
}
