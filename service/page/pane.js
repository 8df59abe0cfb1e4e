// One text being written: its model, settings and session, and the actions stop, try again, continue, go back and fork.

import * as address from "./address.js";
import { AnnotatedText } from "./annotated-text.js";
import { attempt, requestJson, SERVICE, ServiceError } from "./api.js";
import { detailsPanel } from "./details-panel.js";
import { $, cloneTemplate, formatCount, onSubmit, partsOf, saveAs, setStatus } from "./dom.js";
import { clearFieldErrors, readFields, showFieldError } from "./fields.js";
import { sortItems, writeItems } from "./items.js";
import { addKnobs } from "./knobs.js";
import { ModelChooser } from "./model-chooser.js";
import * as recent from "./recent.js";
import { corpusOf, DEFAULT, isId } from "./served.js";
import { drawScale, TextView } from "./text-view.js";
import { streamTurn } from "./turn.js";
import { describeSkipped, offerToSkip, unknownCharacters } from "./unknown.js";

const MAX_REPLAY_CHARS = 20_000; // a finished turn up to this length is streamed again to show it after a reload
const FINISH_REASONS = {
	length: "the length that was requested",
	stop: "a stop string was reached",
	timeout: "timeout_s was reached",
	cancelled: "stopped",
};

const LEADS = {
	text: "A small network writes, one character at a time, in the style of the text that it learned. Point at a character to see what else it could have been; click it to go on from there.",
	list: "A small network writes new items, one character at a time, in the style of the list that it learned.",
};

export class Pane {
	constructor(name, key, { onFork, onClose, onCompare }) {
		this.root = cloneTemplate("#pane", name);
		this.key = key;
		this.parts = partsOf(this.root);
		addKnobs(this.parts.knobs, name);
		drawScale(this.root);
		const { form, letters, panel, voice } = this.parts;
		const view = new TextView(letters, { onSelect: (i) => this.showDetails(i), onActivate: (i) => this.toggleCut(i) });
		this.text = new AnnotatedText(view, () => this.chooser.name);
		this.showDetails = detailsPanel(this.text, panel, voice);
		this.chooser = new ModelChooser(name, {
			onChoose: () => this.#changeModel(),
			onExample: (prompt) => this.writeExample(prompt),
			examples: name === "main" ? this.parts.examples : null,
		});
		this.root.prepend(this.chooser.root);
		this.onModel = () => {}; // called when another model was chosen
		this.session = null;
		this.list = null; // the request that wrote the list that is shown, as JSON
		this.seed = null;
		this.writtenBy = null; // id of the model of the last turn
		this.rewindFrom = 0; // first position that the session can be put back to
		this.lastTurn = null; // {prompt, position}: what Try again repeats
		this.running = null; // AbortController of the turn that is running
		onSubmit(form, () => this.generate());
		form.addEventListener("change", () => this.#saveParameters());
		this.root.addEventListener("keydown", (event) => this.#onKey(event));
		const actions = {
			stop: () => this.running?.abort(),
			again: () => this.tryAgain(),
			compare: onCompare,
			reset: () => this.reset(),
			close: onClose,
			copy: () => this.#copy(this.#shownText(), `Copied the ${this.#kind}.`),
			save: () => saveAs(this.#fileName, this.#shownText()),
			link: () => this.#copy(location.href, `Copied the address of this ${this.#kind}.`),
			curl: () => this.#copyAsCurl(),
			fork: () => onFork(this),
		};
		this.parts.sort.addEventListener("change", () => this.#sort());
		for (const [part, action] of Object.entries(actions)) this.parts[part].addEventListener("click", action);
		this.#restoreParameters();
		this.#updateControls();
	}

	get fields() {
		return this.parts.form.elements;
	}

	get kept() {
		return this.text.view.cut ?? this.text.characters.length;
	}

	get writesItems() {
		return Boolean(this.chooser.model?.is_list) && this.parts["as-items"].checked;
	}

	get #kind() {
		return this.parts.items.hidden ? "text" : "list";
	}

	get #fileName() {
		const { model, name } = this.chooser;
		const stem = model && (name === DEFAULT || isId(name)) ? corpusOf(model) : name;
		return `${stem.replace(/[^\w.-]+/g, "-")}-${this.#kind}.txt`;
	}

	setStatus(message, isError = false) {
		setStatus(this.parts.status, message, isError);
	}

	async showModel() {
		this.#saveModel();
		await this.chooser.refresh();
		this.#updateControls();
	}

	/** Mark the character after which the text continues; a second time removes the mark. */
	toggleCut(index) {
		if (this.running) return;
		const cut = index + 1;
		const isUnset = this.text.view.cut === cut || cut === this.text.characters.length;
		this.text.view.setCut(isUnset ? null : cut);
		this.#updateControls();
	}

	/** The request; `isFresh`: of a new text, whatever is shown. */
	body(isFresh = false) {
		const { items, novel, ...fields } = readFields(this.parts.form);
		// A session remembers its model, so that it has to be told of the default one, too.
		if (this.chooser.name !== DEFAULT || this.session !== null) fields.model = this.chooser.name;
		if (this.writesItems) {
			const { max_chars: _, stop: __, structured_outputs: ___, ...others } = fields; // the list says how items end
			return { ...others, items, novel };
		}
		if (isFresh) return fields;
		const isRewound = this.text.view.cut !== null;
		if (isRewound && fields.seed === undefined) fields.seed = this.#nextSeed();
		if (this.session === null && !this.text.characters.length) return fields;
		const position = this.text.start + this.kept;
		const canRewind = !isRewound || !this.writtenBy || this.writtenBy === this.chooser.model?.id;
		if (this.session !== null && canRewind && position >= this.rewindFrom)
			return { ...fields, session_id: this.session, position };
		// Where no state is stored, a new session reads the text again: the same text and seed give the same continuation.
		const prompt = this.text.characters.slice(0, this.kept).join("") + (fields.prompt ?? "");
		return { ...fields, prompt, seed: fields.seed ?? this.seed ?? undefined };
	}

	async writeExample(prompt) {
		if (this.running) return;
		this.fields.prompt.value = prompt;
		await this.generate({ isFresh: true, isNewEntry: this.session !== null || this.text.characters.length > 0 });
	}

	/** Write the last turn once more: with a new seed, or with the same one and other settings. */
	async tryAgain() {
		const { lastTurn } = this;
		if (this.running || !lastTurn) return;
		if (this.writesItems) {
			this.fields.prompt.value = lastTurn.prompt;
			await this.generate();
			return;
		}
		this.text.flush();
		const kept = Math.max(0, lastTurn.position - this.text.start);
		const seed = this.fields.seed.value.trim() ? undefined : this.#nextSeed();
		const isFresh = kept === 0 && this.text.start === 0;
		if (!isFresh) this.text.view.setCut(kept);
		const { prompt } = this.fields;
		const typed = prompt.value;
		prompt.value = lastTurn.prompt;
		const error = await this.generate({ seed, isFresh });
		if (error || (typed && !prompt.value)) prompt.value = typed;
	}

	/** Write; what is shown stays until the new text or list begins. Returns the error that ended it, if one did. */
	async generate(options = {}) {
		if (this.running) return null;
		clearFieldErrors(this.parts.form);
		const { seed, isFresh = false, isNewEntry = false } = options;
		this.options = options;
		const body = this.body(isFresh);
		if (seed !== undefined) body.seed = seed;
		if (this.writesItems) return this.#writeItems(body);
		const typed = this.fields.prompt.value;
		const keepsSession = Boolean(body.session_id);
		return this.#run(body, (start) => {
			if (isFresh || this.list !== null) this.#forget(isNewEntry);
			this.text.truncate(this.kept);
			const prefix = keepsSession ? 0 : this.text.characters.length;
			if (!keepsSession && this.text.start) this.text.start = 0;
			if (!keepsSession && this.session !== null) recent.remember(this.session, this.text.toString());
			this.rewindFrom = keepsSession ? this.text.position : 0;
			this.lastTurn = { prompt: typed, position: this.text.position };
			this.text.append(typed, [], "prompt");
			this.fields.prompt.value = "";
			if (start.position > this.text.position && !prefix) this.text.start += start.position - this.text.position;
		});
	}

	/** Show a session from elsewhere or before a reload; resume its turn if one is running. */
	async load(id) {
		this.stop();
		this.text.clear();
		this.session = id;
		this.lastTurn = null;
		this.list = null;
		this.parts.items.hidden = true;
		const show = async () => {
			const session = await requestJson("GET", `/sessions/${id}`);
			this.seed = session.seed;
			this.writtenBy = session.model;
			this.rewindFrom = session.rewindable.from;
			const lastTurn = session.turn;
			const hasEnded = ["length", "stop"].includes(lastTurn?.status);
			const isShort = lastTurn && session.position - lastTurn.start_position < MAX_REPLAY_CHARS;
			const canReplay = hasEnded ? isShort : ["running", "interrupted"].includes(lastTurn?.status);
			if (!isId(this.chooser.name)) this.chooser.name = session.model_name;
			this.#saveModel();
			await this.chooser.refresh();
			const model = this.chooser.model?.id;
			const isOfThisModel = !model || session.model === model;
			if (canReplay && isOfThisModel) {
				this.#setText(lastTurn.start_position, lastTurn.text_before, lastTurn.prompt_chars);
				const error = await this.#run({}, () => {}, { session: id, after: lastTurn.start_position });
				if (error) this.#setText(session.position, session.recent_text); // it has expired: show its end only
			} else {
				this.#setText(session.position, session.recent_text);
				const other = isOfThisModel ? "" : " Another model wrote it; the one above reads its end before it goes on.";
				const position = `Position ${formatCount(session.position)}, seed ${session.seed}.`;
				this.setStatus(`${position} You can continue it.${other}`);
			}
		};
		await attempt(show, (error) => {
			this.session = null;
			address.update({ [this.key]: null });
			this.setStatus(error.message, true);
		});
		this.#updateControls();
	}

	/** Show what another pane shows, up to its cut: as a session of its own, or as a text that is read again. */
	copyFrom(other, session, seed) {
		this.text.clear();
		this.text.start = session ? other.text.start : 0;
		this.text.append(other.text.characters.slice(0, other.kept).join(""), other.text.logprobs.slice(0, other.kept));
		this.text.flush();
		this.session = session;
		this.seed = seed;
		this.writtenBy = session ? other.writtenBy : null;
		this.rewindFrom = this.text.position;
		if (session) address.update({ [this.key]: session });
		const position = formatCount(this.text.position);
		this.setStatus(`Forked at position ${position}. Change a setting or the model, and continue.`);
		this.#updateControls();
	}

	stop() {
		this.running?.abort();
		this.running = null;
	}

	reset() {
		const before = " The one before is in “Recent texts”, and behind the browser’s Back.";
		const status = this.text.position ? `The next text starts a new session.${before}` : "";
		this.#leave();
		clearFieldErrors(this.parts.form);
		this.setStatus(status);
		this.fields.prompt.focus();
	}

	#leave() {
		this.stop();
		this.#forget(true);
	}

	#forget(isNewEntry) {
		if (this.session !== null) recent.remember(this.session, this.text.toString());
		this.text.clear();
		this.parts.items.hidden = true;
		this.session = null;
		this.seed = null;
		this.writtenBy = null;
		this.rewindFrom = 0;
		this.lastTurn = null;
		this.list = null;
		const changes = { [this.key]: null, [`${this.key}.list`]: null };
		if (isNewEntry) address.push(changes);
		else address.update(changes);
		this.#updateControls();
	}

	/** Run a turn and show its events. Returns the error that ended it, which has been shown. */
	async #run(body, onStart, resume = null) {
		const running = this.#begin(resume ? "Loading the session…" : "Sending the request…");
		const startedAt = performance.now();
		const skipped = this.skipped ?? 0;
		this.skipped = 0;
		let generated = 0;
		let hasStarted = false;
		try {
			for await (const { name, data } of streamTurn(body, running.signal, resume)) {
				if (this.running !== running) return;
				if (name === "start") {
					if (!hasStarted) {
						onStart(data); // a resumed stream sends `start` again
						if (!resume) this.#bringIntoView();
					}
					hasStarted = true;
					this.session = data.session_id;
					this.seed = data.seed;
					this.writtenBy = data.model.fingerprint;
					address.update({ [this.key]: data.session_id });
					this.#noteModel(data);
				} else if (name === "text") {
					this.text.append(data.text, data.logprobs);
					generated += data.logprobs.length;
					this.setStatus(`Generating: ${formatCount(generated)} characters, seed ${this.seed}.`);
				} else if (name === "done") {
					const pace = resume ? null : generated / ((performance.now() - startedAt) / 1000);
					this.setStatus([describeEnd(data, pace), describeSkipped(skipped)].filter(Boolean).join(" "));
				} else this.setStatus(describeDelay(name, data), name === "disconnected");
			}
			if (running.signal.aborted && this.running === running) {
				this.setStatus(`Stopped at position ${formatCount(this.text.position)}. You can continue from there.`);
			}
		} catch (error) {
			this.#showError(error);
			return error;
		} finally {
			this.text.flush();
			recent.remember(this.session, this.text.toString());
			this.#end(running);
		}
	}

	#begin(status) {
		this.running = new AbortController();
		this.#updateControls();
		this.setStatus(status);
		return this.running;
	}

	#end(running) {
		if (this.running === running) this.running = null;
		this.#updateControls();
	}

	/** Show an error of the service; characters that the model does not know can be skipped. */
	#showError(error) {
		if (!(error instanceof ServiceError)) throw error;
		const unknown = error.field === "prompt" ? unknownCharacters(error) : null;
		this.setStatus("");
		if (unknown) this.#offerToSkip(unknown);
		else if (!showFieldError(this.parts.form, error)) this.setStatus(error.message, true);
	}

	async #writeItems(body) {
		const { items, sort } = this.parts;
		const running = this.#begin("Sending the request…");
		let list = null;
		const onShow = ({ seed }) => {
			list = JSON.stringify({ ...body, seed });
			this.#forget(false);
			this.list = list;
			this.lastTurn = { prompt: body.prompt ?? "", position: 0 };
			items.hidden = false;
			address.update({ [`${this.key}.list`]: list });
			this.#updateControls();
			this.#bringIntoView();
		};
		try {
			const status = await writeItems(items, body, running.signal, onShow);
			if (this.running === running) this.setStatus(running.signal.aborted ? "Stopped." : status);
		} catch (error) {
			this.#showError(error);
			return error;
		} finally {
			if (list !== null && list === this.list) {
				recent.remember(null, this.#shownText(), list);
				if (sort.checked) this.#sort();
			}
			this.#end(running);
		}
		return null;
	}

	/** Write a list once more, as the address or a recent text says it: with its seed. */
	async loadList(list) {
		this.stop();
		this.list = list;
		try {
			const body = JSON.parse(list);
			for (const field of this.fields) {
				if (field.type === "checkbox" && field.name) field.checked = body[field.name] ?? field.defaultChecked;
				else if (field.name !== "seed" && field.name in body) field.value = body[field.name];
			}
			this.chooser.name = body.model ?? DEFAULT;
			this.#saveModel();
			await this.chooser.refresh();
			if (this.list === list) await this.#writeItems(body);
		} catch (error) {
			if (!(error instanceof SyntaxError)) throw error;
			this.setStatus("The address of this list is damaged: open it again, or write a new one.", true);
		}
	}

	#sort() {
		sortItems(this.parts.items, this.parts.sort.checked);
	}

	#offerToSkip(characters) {
		const { prompt } = this.fields;
		offerToSkip(prompt, characters, () => {
			const before = Array.from(prompt.value);
			const after = before.filter((character) => !characters.includes(character));
			prompt.value = after.join("");
			this.skipped = (this.skipped ?? 0) + before.length - after.length;
			this.generate(this.options);
		});
	}

	async #noteModel({ model, reencoded }) {
		this.parts.note.textContent = reencoded
			? "Another model wrote the text before. This one has read the end of it to continue it."
			: "";
		if (!isId(this.chooser.name) && model.fingerprint !== this.chooser.model?.id) await this.showModel();
	}

	#changeModel() {
		this.#saveModel();
		this.setStatus(
			this.text.characters.length
				? "The next characters are this model’s: it reads the text first. “Try again” has it write the last part anew."
				: "",
		);
		this.#updateControls();
		this.onModel();
	}

	#saveModel() {
		const { name } = this.chooser;
		address.update({ [`${this.key}.model`]: name === DEFAULT ? null : name });
	}

	#bringIntoView() {
		const box = this.writesItems ? this.parts.items : this.parts.letters;
		const { top } = box.getBoundingClientRect();
		if (top > 0.6 * innerHeight || top < 0) box.scrollIntoView({ block: "start" });
	}

	/** A new seed, or the last one if it is to stay. */
	#nextSeed() {
		if (this.parts["same-seed"].checked && this.seed !== null) return this.seed;
		const [high, low] = crypto.getRandomValues(new Uint32Array(2));
		return (high % 2 ** 20) * 2 ** 32 + low;
	}

	/** Show a text that ends at a position of the session; its last `promptChars` were the user's. */
	#setText(position, text, promptChars = 0) {
		const characters = Array.from(text);
		const border = Math.max(0, characters.length - promptChars);
		this.text.clear();
		this.text.start = position - characters.length;
		this.text.append(characters.slice(0, border).join(""));
		this.text.append(characters.slice(border).join(""), [], "prompt");
		this.lastTurn = promptChars
			? { prompt: characters.slice(border).join(""), position: position - characters.length + border }
			: { prompt: "", position };
	}

	#onKey(event) {
		if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
			event.preventDefault();
			this.generate();
		} else if (event.key === "Escape" && this.running) {
			event.preventDefault();
			this.running.abort();
		}
	}

	#updateControls() {
		const { start, view, characters } = this.text;
		const hasText = this.session !== null || characters.length > 0;
		const isRunning = this.running !== null;
		const isList = Boolean(this.chooser.model?.is_list);
		const { writesItems, parts } = this;
		const label = view.cut === null ? "Continue" : "Continue from here";
		parts.generate.textContent = writesItems ? "Write a list" : hasText ? label : "Write";
		parts.generate.disabled = isRunning;
		parts.stop.disabled = !isRunning;
		parts.again.disabled = isRunning || !this.lastTurn;
		parts["list-settings"].hidden = !isList;
		for (const name of ["fork", "reset"]) parts[name].disabled = !hasText || isRunning;
		const showsItems = !parts.items.hidden;
		const hasResult = hasText || (showsItems && parts.items.childElementCount > 0);
		for (const name of ["copy", "save", "link"]) parts[name].disabled = !hasResult;
		parts["text-and-panel"].hidden = showsItems || (writesItems && !hasText);
		parts["items-about"].hidden = !showsItems;
		for (const part of [parts.colors, $(".scale", this.root)]) part.hidden = showsItems || writesItems;
		// The list that was learned says how long an item is, and where it ends.
		for (const name of ["max_chars", "stop", "structured_outputs"]) {
			this.fields[name].closest(".field").hidden = writesItems;
		}
		if (this.key === "s") $("#generate-lead").textContent = writesItems ? LEADS.list : LEADS.text;
		const promptLabel = hasText ? "Text to add before it continues" : "How the text begins";
		parts["prompt-label"].textContent = writesItems ? "How each one begins" : promptLabel;
		parts.earlier.hidden = !start;
		parts.earlier.textContent = `${formatCount(start)} earlier characters are not stored by the service.`;
		parts.settings.textContent = describeSettings(this.fields, writesItems);
	}

	#shownText() {
		if (this.parts.items.hidden) return this.text.toString();
		return [...this.parts.items.querySelectorAll(".item")].map((item) => `${item.textContent}\n`).join("");
	}

	#copyAsCurl() {
		const { seed = this.writesItems && this.list ? JSON.parse(this.list).seed : undefined, ...fields } = this.body();
		const body = JSON.stringify({ ...fields, seed, stream: true });
		const command = `curl -N --json '${body.replaceAll("'", "'\\''")}' ${SERVICE}generate`;
		this.parts.command.textContent = command;
		this.parts.command.hidden = false;
		this.#copy(command, "Copied.");
	}

	/** Copy a text. Browsers have no clipboard for pages over plain HTTP, except from localhost. */
	async #copy(text, done) {
		try {
			await navigator.clipboard.writeText(text);
			this.setStatus(done);
		} catch {
			this.setStatus("The browser does not allow copying: select it and copy it by hand.");
		}
	}

	get #settings() {
		const fields = [...this.fields];
		return fields.filter((field) => field.name && field.name !== "prompt" && field.type !== "checkbox");
	}

	copySettings(other) {
		this.chooser.name = other.chooser.name;
		for (const field of this.#settings) field.value = other.fields[field.name].value;
	}

	#saveParameters() {
		const changes = {};
		for (const field of this.#settings) {
			changes[`${this.key}.${field.name}`] = field.value === field.defaultValue ? null : field.value;
		}
		address.update(changes);
		this.#updateControls();
	}

	#restoreParameters() {
		const { parameters } = address.read();
		for (const field of this.#settings) {
			const value = parameters.get(`${this.key}.${field.name}`);
			if (value) field.value = value;
		}
		this.chooser.name = parameters.get(`${this.key}.model`) ?? DEFAULT;
	}
}

function describeSettings(fields, writesItems) {
	const length = writesItems ? `${fields.items.value} items` : `${fields.max_chars.value} characters`;
	const isChanged = (f) => f.closest("details") && !f.closest(".field").hidden && f.name && f.value !== f.defaultValue;
	const changed = [...fields].filter(isChanged);
	const others = changed.filter((f) => !["max_chars", "temperature", "items"].includes(f.name)).map((f) => f.name);
	return ["More settings:", [length, `temperature ${fields.temperature.value}`, ...others].join(", ")].join(" ");
}

function describeEnd(data, pace) {
	const speed = pace === null ? "" : `, ${formatCount(Math.round(pace))} characters/s`;
	const saved = data.saved ? "" : " It was not saved, because the session store is unavailable.";
	const characters = `${formatCount(data.usage.generated_chars)} characters${speed}`;
	const isWhole = data.mask_bits !== undefined && data.finish_reason === "stop";
	const reason = isWhole ? "the pattern is complete" : FINISH_REASONS[data.finish_reason];
	const cost = data.mask_bits === undefined ? "" : ` The pattern cost ${data.mask_bits.toFixed(1)} bits.`;
	return `${characters}; ${reason}. Position ${formatCount(data.position)}, seed ${data.seed}.${cost}${saved}`;
}

function describeDelay(name, { after, error }) {
	if (name === "reconnected") return `Connected again; continuing after position ${formatCount(after ?? 0)}.`;
	if (name === "disconnected") {
		if (after === null) return "The connection was lost. Trying again…";
		return `The connection was lost at position ${formatCount(after)}. The text continues there when it is back…`;
	}
	if (error.code === "no_model") return "The first model is being trained. The text starts as soon as it is ready.";
	return `${error.message}; trying again…`;
}
