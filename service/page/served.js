// Which models there are, how they are called, and examples of what one writes.

import { requestJson } from "./api.js";
import { bits } from "./dom.js";

const EXAMPLE_CHARS = 28;
const EXAMPLES = 4;
let served = null; // as in GET /model
const examples = new Map(); // id -> promise of a list of prompts

/** The served model as it was when `refresh` was called last; null before. */
export const servedModel = () => served;

/** Ask which model is served. Null where that cannot be known: no model yet, or a key is needed. */
export async function refresh() {
  try {
    served = await requestJson("GET", "/model", { mayPrompt: false });
  } catch {
    served = null;
  }
  return served;
}

export function describeModel(model) {
  const loss = `${bits(model.val_loss).toFixed(2)} bits per character`;
  return [corpusOf(model), model.preset, loss, formatTime(model.created)].filter(Boolean).join(" · ");
}

/** The name of the text that a model was trained on; older checkpoints do not know it. */
export const corpusOf = (model) => model.corpus || model.name.replace(".safetensors", "");

/** A time as a person says it: the hour today, else the day and the hour. */
export function formatTime(iso) {
  const time = new Date(typeof iso === "number" ? 1000 * iso : iso);
  if (!iso || Number.isNaN(time.getTime())) return "";
  const hour = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (time.toDateString() === new Date().toDateString()) return `today ${hour}`;
  return `${time.toLocaleDateString([], { day: "numeric", month: "short" })} ${hour}`;
}

/** Beginnings that a model wrote itself, the same each time; none where it cannot be asked. */
export function examplesOf(model) {
  if (!examples.has(model.id))
    examples.set(
      model.id,
      write(model).catch(() => []),
    );
  return examples.get(model.id);
}

async function write({ id, is_list: isList }) {
  const chosen = id === served?.id ? {} : { model: id };
  const options = { mayPrompt: false };
  if (isList) {
    const { items } = await requestJson("POST", "/generate", { ...options, body: { ...chosen, items: 4, seed: 1 } });
    return distinct(items.map(({ text }) => Array.from(text).slice(0, 3).join("").trimEnd()));
  }
  const body = { ...chosen, n: EXAMPLES + 2, max_chars: 120, temperature: 0.7, seed: 1 };
  const { results } = await requestJson("POST", "/generate", { ...options, body });
  return distinct(results.map(({ text }) => beginning(text)));
}

const distinct = (prompts) => [...new Set(prompts.filter(Boolean))].slice(0, EXAMPLES);

/** The first words of a text: its first line that has some. */
function beginning(text) {
  const lines = text.split("\n");
  const line = lines.slice(0, -1).find((l) => l.trim().length > 2) ?? lines.find((l) => l.trim()) ?? "";
  const characters = Array.from(line.trim());
  if (characters.length <= EXAMPLE_CHARS) return `${characters.join("")}${lines.length > 1 ? "\n" : ""}`;
  const cut = characters.slice(0, EXAMPLE_CHARS).join("");
  return cut.includes(" ") ? cut.slice(0, cut.lastIndexOf(" ")) : cut;
}
