// The view Score: how much each character of a text surprises the model.

import { AnnotatedText } from "./annotated-text.js";
import { requestJson, ServiceError } from "./api.js";
import { detailsPanel } from "./details-panel.js";
import { $, formatCount, onSubmit, setStatus } from "./dom.js";
import { clearFieldErrors, showFieldError } from "./fields.js";
import { mainPane } from "./generate.js";
import { drawScale, TextView } from "./text-view.js";
import { TOP_LOGPROBS } from "./turn.js";
import { describeSkipped, offerToSkip, unknownCharacters } from "./unknown.js";

let text;
let hasScored = false;

export function setUp() {
  const form = $("#score");
  drawScale($("#view-score"));
  const view = new TextView($("#score-letters"), { onSelect: (i) => showDetails(i) });
  text = new AnnotatedText(view);
  const showDetails = detailsPanel(text, $("#score-panel"), $("#score-voice"));
  onSubmit(form, () => score());
  $("#score-copy").addEventListener("click", () => {
    form.elements.text.value = mainPane().text.toString();
    form.requestSubmit();
  });
  $("#score-colored").addEventListener("change", (event) => {
    $("#score-letters").classList.toggle("colored", event.target.checked);
  });
}

/** Score the example once; the model may lack some of its characters. */
export function onShow() {
  if (!hasScored && $("#notice").hidden) score("skip");
}

async function score(onUnknown = "error") {
  const form = $("#score");
  const status = $("#score-status");
  hasScored = true;
  clearFieldErrors(form);
  const session = form.elements.after.checked ? mainPane().session : null;
  const body = { text: form.elements.text.value, logprobs: TOP_LOGPROBS, on_unknown: onUnknown };
  if (session) body.session_id = session;
  if (!body.text) {
    showFieldError(form, { field: "text", message: "Write or paste a text to score." });
    return;
  }
  setStatus(status, "Scoring…");
  try {
    const result = await requestJson("POST", "/score", { body });
    text.clear();
    text.append(result.text, result.logprobs);
    text.flush();
    setStatus(status, describe(result, session));
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    const unknown = error.field === "text" ? unknownCharacters(error) : null;
    setStatus(status, "");
    if (unknown) offerToSkip(form.elements.text, unknown, () => score("skip"));
    else if (!showFieldError(form, error)) setStatus(status, error.message, true);
  }
}

function describe(result, session) {
  const perCharacter = result.bits_per_character;
  const losses = `${perCharacter.toFixed(3)} bits per character (${result.nats_per_character.toFixed(3)} nats)`;
  const where = session ? `, after position ${formatCount(result.position)} of the session` : "";
  const choices = (2 ** perCharacter).toFixed(1);
  const skipped = describeSkipped(result.surprisal.filter((bits) => bits === null).length);
  return `${losses}, ${formatCount(result.characters)} characters${where}. Perplexity ${choices}: as uncertain as a choice among that many equally probable characters. ${skipped}`.trim();
}
