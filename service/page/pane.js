// One text being generated: its parameters, its session, and the actions stop, continue, go back and fork.

import * as address from "./address.js";
import { AnnotatedText } from "./annotated-text.js";
import { requestJson, SERVICE, ServiceError } from "./api.js";
import { detailsPanel } from "./details-panel.js";
import { cloneTemplate, formatCount, onSubmit, partsOf, setStatus } from "./dom.js";
import { clearFieldErrors, readFields, showFieldError } from "./fields.js";
import { TextView } from "./text-view.js";
import { streamTurn } from "./turn.js";

const MAX_REPLAY_CHARS = 20_000; // a finished turn up to this length is streamed again to show it after a reload
const FINISH_REASONS = {
  length: "the length that was requested",
  stop: "a stop string was reached",
  timeout: "timeout_s was reached",
  cancelled: "stopped",
};

export class Pane {
  /**
   * @param name "main" or "fork": part of the ids of its elements
   * @param key the name of the session in the address
   * @param onFork called with this pane when the user presses Fork
   * @param onClose called when the user presses Close
   */
  constructor(name, key, { onFork, onClose }) {
    this.root = cloneTemplate("#pane", name);
    this.key = key;
    this.parts = partsOf(this.root);
    const { form, letters, panel, voice } = this.parts;
    const view = new TextView(letters, { onSelect: (i) => this.showDetails(i), onActivate: (i) => this.toggleCut(i) });
    this.text = new AnnotatedText(view);
    this.showDetails = detailsPanel(this.text, panel, voice);
    this.session = null;
    this.seed = null;
    this.rewindFrom = 0; // first position that the session can be put back to
    this.running = null; // AbortController of the turn that is running
    onSubmit(form, () => this.generate());
    form.addEventListener("change", () => this.#saveParameters());
    this.parts.stop.addEventListener("click", () => this.running?.abort());
    this.parts.reset.addEventListener("click", () => this.reset());
    this.parts.fork.addEventListener("click", () => onFork(this));
    this.parts.close.addEventListener("click", () => onClose());
    this.parts.curl.addEventListener("click", () => this.#copyAsCurl());
    this.parts.colored.addEventListener("change", (event) => {
      letters.classList.toggle("colored", event.target.checked);
    });
    this.#restoreParameters();
    this.#updateControls();
  }

  /** How many of the shown characters stay when the text is continued. */
  get kept() {
    return this.text.view.cut ?? this.text.characters.length;
  }

  setStatus(message, isError = false) {
    setStatus(this.parts.status, message, isError);
  }

  /** Mark the character after which the text is to be continued; a second time removes the mark. */
  toggleCut(index) {
    if (this.running) return;
    const cut = index + 1;
    const isUnset = this.text.view.cut === cut || cut === this.text.characters.length;
    this.text.view.setCut(isUnset ? null : cut);
    this.#updateControls();
  }

  /** The body of POST /generate for the current fields, session and cut. */
  body() {
    const fields = readFields(this.parts.form);
    if (this.session === null) return fields;
    const position = this.text.start + this.kept;
    if (position >= this.rewindFrom) return { ...fields, session_id: this.session, position };
    // Before the last turn, where no state is stored: a new session with the same text and seed generates the same.
    const prompt = this.text.characters.slice(0, this.kept).join("") + (fields.prompt ?? "");
    return { ...fields, prompt, seed: fields.seed ?? this.seed };
  }

  async generate() {
    if (this.running) return;
    clearFieldErrors(this.parts.form);
    const body = this.body();
    if (this.session !== null && !body.session_id && this.text.start > 0) {
      this.setStatus("The session cannot go back that far, and the beginning of its text is not stored here.", true);
      return;
    }
    await this.#run(body, (start) => {
      this.text.truncate(this.kept);
      if (!body.session_id) this.text.clear();
      this.rewindFrom = this.text.position;
      this.text.append(body.prompt ?? "", [], "prompt");
      this.parts.form.elements.prompt.value = "";
      if (start.position > this.text.position) this.text.start += start.position - this.text.position;
    });
  }

  /** Show a session from another browser or from before a reload; resume its turn if one is running. */
  async load(id) {
    this.stop();
    this.text.clear();
    this.session = id;
    try {
      const session = await requestJson("GET", `/sessions/${id}`);
      this.seed = session.seed;
      this.rewindFrom = session.rewindable.from;
      const lastTurn = session.turn;
      const hasEnded = ["length", "stop"].includes(lastTurn?.status);
      const isShort = lastTurn && session.position - lastTurn.start_position < MAX_REPLAY_CHARS;
      const canReplay = hasEnded ? isShort : ["running", "interrupted"].includes(lastTurn?.status);
      if (canReplay) {
        this.#setText(lastTurn.start_position, lastTurn.text_before);
        const error = await this.#run({}, () => {}, { session: id, after: lastTurn.start_position });
        if (error) this.#setText(session.position, session.recent_text); // e.g. of another model: show its end only
      } else {
        this.#setText(session.position, session.recent_text);
        this.setStatus(`Position ${formatCount(session.position)}, seed ${session.seed}. You can continue it.`);
      }
    } catch (error) {
      this.session = null;
      address.update({ [this.key]: null });
      this.setStatus(error.message, true);
    }
    this.#updateControls();
  }

  /** Show what another pane shows, up to its cut, as a session of its own. */
  copyFrom(other, session, seed) {
    this.text.clear();
    this.text.start = other.text.start;
    this.text.append(other.text.characters.slice(0, other.kept).join(""), other.text.logprobs.slice(0, other.kept));
    this.text.flush();
    this.session = session;
    this.seed = seed;
    this.rewindFrom = this.text.position;
    address.update({ [this.key]: session });
    this.setStatus(`Forked at position ${formatCount(this.text.position)}. Change a parameter and continue.`);
    this.#updateControls();
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  /** Leave the session: the next text starts a new one. */
  reset() {
    this.stop();
    this.text.clear();
    this.session = null;
    this.rewindFrom = 0;
    address.update({ [this.key]: null });
    clearFieldErrors(this.parts.form);
    this.setStatus("The next text starts a new session.");
    this.#updateControls();
    this.parts.form.elements.prompt.focus();
  }

  /** Run a turn and show its events. Returns the ServiceError that ended it, if any; it has been shown. */
  async #run(body, onStart, resume = null) {
    const running = new AbortController();
    this.running = running;
    const startedAt = performance.now();
    let generated = 0;
    let hasStarted = false;
    this.#updateControls();
    this.setStatus(resume ? "Loading the session…" : "Sending the request…");
    try {
      for await (const { name, data } of streamTurn(body, running.signal, resume)) {
        if (this.running !== running) return;
        if (name === "start") {
          if (!hasStarted) onStart(data); // a resumed stream sends `start` again
          hasStarted = true;
          this.session = data.session_id;
          this.seed = data.seed;
          address.update({ [this.key]: data.session_id });
          this.parts.note.textContent = data.reencoded
            ? "Another model is served now. It has read the end of this text to continue it."
            : "";
        } else if (name === "text") {
          this.text.append(data.text, data.logprobs);
          generated += data.logprobs.length;
          this.setStatus(`Generating: ${formatCount(generated)} characters, seed ${this.seed}.`);
        } else if (name === "done") {
          const pace = resume ? null : generated / ((performance.now() - startedAt) / 1000);
          this.setStatus(describeEnd(data, pace));
        } else this.setStatus(describeDelay(name, data), name === "disconnected");
      }
      if (running.signal.aborted) {
        this.setStatus(`Stopped at position ${formatCount(this.text.position)}. You can continue from there.`);
      }
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      if (showFieldError(this.parts.form, error)) this.setStatus("");
      else this.setStatus(error.message, true);
      return error;
    } finally {
      if (this.running === running) this.running = null;
      this.#updateControls();
    }
  }

  /** Show a text that ends at a position of the session. */
  #setText(position, text) {
    const length = Array.from(text).length;
    this.text.clear();
    this.text.start = position - length;
    this.text.append(text);
  }

  /** Enable and label the controls for the current state. */
  #updateControls() {
    const { start, view } = this.text;
    const hasSession = this.session !== null;
    const isRunning = this.running !== null;
    this.parts.generate.textContent = !hasSession ? "Generate" : view.cut === null ? "Continue" : "Continue from here";
    this.parts.generate.disabled = isRunning;
    this.parts.stop.disabled = !isRunning;
    for (const name of ["fork", "reset"]) this.parts[name].disabled = !hasSession || isRunning;
    this.parts["prompt-label"].textContent = hasSession ? "Text to add before it continues" : "Prompt";
    this.parts.earlier.hidden = !start;
    this.parts.earlier.textContent = `${formatCount(start)} earlier characters are not stored by the service.`;
  }

  #copyAsCurl() {
    const body = JSON.stringify({ ...this.body(), stream: true });
    const command = `curl -N --json '${body.replaceAll("'", "'\\''")}' ${SERVICE}generate`;
    this.parts.command.textContent = command;
    this.parts.command.hidden = false;
    // Browsers have no clipboard for pages over plain HTTP, except from localhost.
    const copied = navigator.clipboard?.writeText(command) ?? Promise.reject(new Error("no clipboard"));
    copied.then(
      () => this.setStatus("Copied."),
      () => this.setStatus("The browser does not allow copying: copy the command below by hand."),
    );
  }

  /** Keep parameters that differ from their defaults in the address, so that a reload keeps them. */
  #saveParameters() {
    const changes = {};
    for (const field of this.parts.form.elements) {
      if (!field.name || field.name === "prompt") continue;
      changes[`${this.key}.${field.name}`] = field.value === field.defaultValue ? null : field.value;
    }
    address.update(changes);
  }

  #restoreParameters() {
    const { parameters } = address.read();
    for (const field of this.parts.form.elements) {
      const value = field.name && parameters.get(`${this.key}.${field.name}`);
      if (value) field.value = value;
    }
  }
}

function describeEnd(data, pace) {
  const speed = pace === null ? "" : `, ${formatCount(Math.round(pace))} characters/s`;
  const saved = data.saved ? "" : " It was not saved, because the session store is unavailable.";
  const characters = `${formatCount(data.usage.generated_chars)} characters${speed}`;
  const reason = FINISH_REASONS[data.finish_reason];
  return `${characters}; ${reason}. Position ${formatCount(data.position)}, seed ${data.seed}.${saved}`;
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
