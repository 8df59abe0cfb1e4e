// One text being written: its parameters, its session, stop, go on, rewind. Two of them make a comparison.

import { ServiceError, json } from "./api.js";
import * as address from "./address.js";
import { count } from "./dom.js";
import { complain, forgive, values } from "./fields.js";
import { Letters } from "./letters.js";
import { lookup, parts, stamp } from "./lookup.js";
import { Text } from "./text.js";
import { turn } from "./turn.js";

const LONGEST_AGAIN = 20_000; // characters of a turn that are written again to show them after a reload

export class Pane {
  /** key: the session's name in the address; onfork(pane), onclose(pane) are the view's. */
  constructor(name, key, { onfork, onclose }) {
    this.root = stamp("#pane", name);
    this.key = key;
    this.parts = parts(this.root);
    const { form, letters, panel, voice } = this.parts;
    this.text = new Text(new Letters(letters, { onlook: (i) => this.lookup(i), onpick: (i) => this.pick(i) }));
    this.lookup = lookup(this.text, panel, voice);
    this.session = null;
    this.seed = null;
    this.rewindFrom = 0;
    this.running = null; // an AbortController
    form.addEventListener("submit", (event) => (event.preventDefault(), this.write()));
    form.addEventListener("change", () => this.#remember());
    this.parts.stop.addEventListener("click", () => this.running?.abort());
    this.parts.fresh.addEventListener("click", () => this.fresh());
    this.parts.fork.addEventListener("click", () => onfork(this));
    this.parts.close.addEventListener("click", () => onclose(this));
    this.parts.curl.addEventListener("click", () => this.#copy());
    this.parts.coloured.addEventListener("change", (event) => letters.classList.toggle("coloured", event.target.checked));
    this.#recall();
    this.#show();
  }

  /** The characters that stay when this goes on. */
  get kept() {
    return this.text.letters.cut ?? this.text.characters.length;
  }

  say(message, isError = false) {
    this.parts.status.textContent = message;
    this.parts.status.classList.toggle("error", isError);
  }

  pick(index) {
    if (this.running) return;
    const cut = index + 1;
    this.text.letters.setCut(this.text.letters.cut === cut || cut === this.text.characters.length ? null : cut);
    this.#show();
  }

  /** The body that would be sent now. */
  body() {
    const found = values(this.parts.form);
    if (this.session === null) return found;
    const position = this.text.base + this.kept;
    if (position >= this.rewindFrom) return { ...found, session_id: this.session, position };
    // Farther back than the session remembers: a session is only a saving, so its text and its seed are the same.
    return { ...found, prompt: this.text.characters.slice(0, this.kept).join("") + (found.prompt ?? ""), seed: found.seed ?? this.seed };
  }

  async write() {
    if (this.running) return;
    forgive(this.parts.form);
    const body = this.body();
    if (this.session !== null && !body.session_id && this.text.base > 0) {
      this.say("That is farther back than this session can go, and the text before it is not here.", true);
      return;
    }
    await this.#run(body, (start) => {
      this.text.truncate(this.kept);
      if (!body.session_id) this.text.clear();
      this.rewindFrom = this.text.position;
      this.text.append(body.prompt ?? "", [], "prompt");
      this.parts.form.elements.prompt.value = "";
      if (start.position > this.text.position) this.text.base += start.position - this.text.position;
    });
  }

  /** Show a session that was begun elsewhere or before a reload, and go on with its turn if it has one. */
  async load(session) {
    this.stop();
    this.text.clear();
    this.session = session;
    try {
      const found = await json("GET", `/sessions/${session}`);
      this.seed = found.seed;
      this.rewindFrom = found.rewindable.from;
      const ended = ["length", "stop"].includes(found.turn);
      const again = found.began && (!ended || found.position - found.began.position < LONGEST_AGAIN);
      if (again && (ended || ["running", "interrupted"].includes(found.turn))) {
        this.#begin(found.began.position, found.began.text);
        const failed = await this.#run({}, () => {}, { session, after: found.began.position });
        if (failed) this.#begin(found.position, found.recent_text); // by another model, or long ago: its end is still known
      } else {
        this.#begin(found.position, found.recent_text);
        this.say(`Position ${count(found.position)}, seed ${found.seed}. It can go on.`);
      }
    } catch (error) {
      this.session = null;
      address.put({ [this.key]: null });
      this.say(error.message, true);
    }
    this.#show();
  }

  /** Take over what another pane shows, up to `kept`, under a session of its own. */
  take(other, session, seed) {
    this.text.clear();
    this.text.base = other.text.base;
    this.text.append(other.text.characters.slice(0, other.kept).join(""), other.text.looks.slice(0, other.kept), "");
    this.text.draw();
    this.session = session;
    this.seed = seed;
    this.rewindFrom = this.text.position;
    address.put({ [this.key]: session });
    this.say(`Forked at position ${count(this.text.position)}. Change something and let it go on.`);
    this.#show();
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  fresh() {
    this.stop();
    this.text.clear();
    this.session = null;
    this.rewindFrom = 0;
    address.put({ [this.key]: null });
    forgive(this.parts.form);
    this.say("A new session begins with the next text.");
    this.#show();
    this.parts.form.elements.prompt.focus();
  }

  /** The ServiceError that ended it, if one did: it has been shown. */
  async #run(body, onstart, resume = null) {
    const running = (this.running = new AbortController());
    const began = performance.now();
    let written = 0;
    this.#show();
    this.say(resume ? "Reading where it was…" : "Asking…");
    try {
      for await (const { name, data } of turn(body, running.signal, resume)) {
        if (this.running !== running) return;
        if (name === "start") {
          if (onstart) onstart(data);
          onstart = null; // a resumed stream starts again, its text does not
          this.session = data.session_id;
          this.seed = data.seed;
          address.put({ [this.key]: data.session_id });
          this.parts.note.textContent = data.reencoded ? "Another model is served now: it has read the end of this text anew." : "";
        } else if (name === "text") {
          this.text.append(data.text, data.logprobs);
          written += data.logprobs.length;
          this.say(`Writing: ${count(written)} characters, seed ${this.seed}.`);
        } else if (name === "done") {
          this.say(ended(data, written, performance.now() - began, Boolean(resume)));
        } else this.say(trouble(name, data), name === "lost");
      }
      if (running.signal.aborted) this.say(`Stopped at position ${count(this.text.position)}. It can go on from there.`);
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      if (!complain(this.parts.form, error)) this.say(error.message, true);
      else this.say("");
      return error;
    } finally {
      if (this.running === running) this.running = null;
      this.#show();
    }
  }

  #begin(position, text) {
    const length = Array.from(text).length;
    this.text.clear();
    this.text.base = position - length;
    this.text.append(text);
  }

  /** Make the controls fit the state. */
  #show() {
    const { base } = this.text;
    const cut = this.text.letters.cut;
    const isOpen = this.session !== null;
    this.parts.write.textContent = !isOpen ? "Write" : cut === null ? "Go on" : "Go on from here";
    this.parts.write.disabled = this.running !== null;
    this.parts.stop.disabled = this.running === null;
    for (const name of ["fork", "fresh"]) this.parts[name].disabled = !isOpen || this.running !== null;
    this.parts["prompt-label"].textContent = isOpen ? "Add to the text before it goes on" : "Prompt: the text to go on from";
    this.parts.earlier.hidden = !base;
    this.parts.earlier.textContent = `${count(base)} earlier characters are not kept by the service.`;
  }

  #copy() {
    const body = JSON.stringify({ ...this.body(), stream: true });
    const line = `curl -N --json '${body.replaceAll("'", "'\\''")}' ${location.origin}/generate`;
    this.parts.command.textContent = line;
    this.parts.command.hidden = false;
    const copied = navigator.clipboard?.writeText(line) ?? Promise.reject(new Error("no clipboard over plain HTTP"));
    copied.then(
      () => this.say("Copied."),
      () => this.say("It stands below, to be copied by hand."),
    );
  }

  /** Parameters that differ from their defaults stay in the address, so that a reload goes on with them. */
  #remember() {
    const changes = {};
    for (const field of this.parts.form.elements) {
      if (!field.name || field.name === "prompt") continue;
      changes[`${this.key}.${field.name}`] = field.value === field.defaultValue ? null : field.value;
    }
    address.put(changes);
  }

  #recall() {
    const { parameters } = address.read();
    for (const field of this.parts.form.elements) {
      const value = field.name && parameters.get(`${this.key}.${field.name}`);
      if (value) field.value = value;
    }
  }
}

function ended(data, written, ms, again) {
  const why = { length: "as long as was asked for", stop: "at a stop string", timeout: "its time was up", cancelled: "stopped" };
  const pace = again ? "" : `, ${count(Math.round(written / (ms / 1000)))} characters/s`;
  const saved = data.saved ? "" : " It could not be kept: the session store did not answer.";
  return `${count(data.usage.generated_chars)} characters${pace}, ${why[data.finish_reason]}. Position ${count(data.position)}, seed ${data.seed}.${saved}`;
}

function trouble(name, { after, error }) {
  if (name === "back") return `The connection is back: going on after position ${count(after ?? 0)}.`;
  if (name === "lost") return after === null ? "The connection was lost; asking again…" : `The connection was lost at position ${count(after)}; going on from there as soon as it is back…`;
  if (error.code === "no_model") return "The first model is being trained; the text begins as soon as it can write.";
  return `${error.message}; asking again…`;
}
