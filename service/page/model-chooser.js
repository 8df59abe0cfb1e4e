// Which model writes, the choice of another one by its name, and examples of what it writes.

import { requestJson, ServiceError } from "./api.js";
import { button, cloneTemplate, h, partsOf } from "./dom.js";
import { markField, unmarkField } from "./fields.js";
import { DEFAULT, describeModel, examplesOf } from "./served.js";

export class ModelChooser {
	/** Other models can be chosen in `root`; `examples`, if given, gets beginnings. */
	constructor(pane, { onChoose, onExample = null, examples = null }) {
		this.root = cloneTemplate("#model-line", pane);
		this.parts = partsOf(this.root);
		this.examples = examples;
		this.onChoose = onChoose;
		this.onExample = onExample;
		this.name = DEFAULT; // what requests say: a name, or the id of a checkpoint
		this.model = null; // as in GET /model; null while it is not known
		this.parts.model.addEventListener("change", ({ target }) => this.choose(target.value.trim() || this.name));
		this.#draw();
	}

	/** Have another model write. If there is none of this name, the service's message is shown at the field. */
	async choose(name) {
		const before = [this.name, this.model];
		[this.name, this.model] = [name, null];
		if (await this.refresh()) {
			this.parts.model.value = "";
			this.onChoose(name);
		} else if (this.name === name) [this.name, this.model] = before;
		this.#draw();
	}

	/** Ask what the model is now. False if there is no such model. */
	async refresh() {
		const { name } = this;
		unmarkField(this.parts.model);
		this.#draw();
		try {
			const model = await requestJson("GET", `/model?model=${encodeURIComponent(name)}`, { mayPrompt: false });
			if (name === this.name) this.model = model;
		} catch (error) {
			if (!(error instanceof ServiceError)) throw error;
			if (name === this.name && ![401, 503].includes(error.status)) markField(this.parts.model, error.message);
			return error.status === 401;
		}
		this.#draw();
		return true;
	}

	async #draw() {
		const { examples, model, name } = this;
		this.parts["model-name"].textContent = model ? `${describeModel(model)} (${name})` : name;
		if (!examples) return;
		examples.hidden = true;
		const prompts = model && (await examplesOf(model));
		if (!model || model !== this.model) return; // another model was chosen meanwhile
		const chip = (label, prompt) => button(label, () => this.onExample(prompt), { class: "chip" });
		const chips = prompts.map((prompt) => chip(model.is_list ? `${prompt}…` : prompt.trimEnd(), prompt));
		examples.replaceChildren(h("span", {}, "Try one: "), ...chips, chip("anything", ""));
		examples.hidden = false;
	}
}
