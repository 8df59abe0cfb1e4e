// The view Score: how much each character of a text surprises the model.

import { AnnotatedText } from "./annotated-text.js";
import { attempt, requestJson } from "./api.js";
import { detailsPanel } from "./details-panel.js";
import { $, formatCount, onClick, onSubmit, setStatus } from "./dom.js";
import { clearFieldErrors, showFieldError } from "./fields.js";
import { mainPane } from "./generate.js";
import { drawScale, TextView } from "./text-view.js";
import { TOP_LOGPROBS } from "./turn.js";
import { describeSkipped, showTextError } from "./unknown.js";

let text;
let scoredBy = ""; // the name of the model that was asked

export function setUp() {
	const form = $("#score");
	drawScale($("#view-score"));
	const view = new TextView($("#score-letters"), { onSelect: (i) => showDetails(i) });
	text = new AnnotatedText(view, () => scoredBy);
	const showDetails = detailsPanel(text, $("#score-panel"), $("#score-voice"));
	onSubmit(form, () => score());
	onClick("#score-copy", () => {
		form.elements.text.value = mainPane().text.toString();
		form.requestSubmit();
	});
}

/** Score the text once by each model that is chosen; it may lack some of its characters. */
export function onShow() {
	if (scoredBy !== mainPane().chooser.name && $("#notice").hidden) score("skip");
}

async function score(onUnknown = "error") {
	const form = $("#score");
	const status = $("#score-status");
	scoredBy = mainPane().chooser.name;
	clearFieldErrors(form);
	const session = form.elements.after.checked ? mainPane().session : null;
	const body = { text: form.elements.text.value, logprobs: TOP_LOGPROBS, on_unknown: onUnknown, model: scoredBy };
	if (session) body.session_id = session;
	if (!body.text) {
		showFieldError(form, { field: "text", message: "Write or paste a text to score." });
		return;
	}
	setStatus(status, "Scoring…");
	const show = async () => {
		const result = await requestJson("POST", "/score", { body });
		text.clear();
		text.append(result.text, result.logprobs);
		text.flush();
		setStatus(status, describe(result, session));
	};
	await attempt(show, (error) => showTextError(form, status, error, () => score("skip")));
}

function describe(result, session) {
	const perCharacter = result.bits_per_character;
	const losses = `${perCharacter.toFixed(3)} bits per character (${result.nats_per_character.toFixed(3)} nats)`;
	const where = session ? `, after position ${formatCount(result.position)} of the session` : "";
	const choices = (2 ** perCharacter).toFixed(1);
	const skipped = describeSkipped(result.surprisal.filter((bits) => bits === null).length);
	return `${losses}, ${formatCount(result.characters)} characters${where}. Perplexity ${choices}: as uncertain as a choice among that many equally probable characters. ${skipped}`.trim();
}
