// The dialog that asks for a key when the service answers 401.

import { onKeyNeeded } from "./api.js";
import { $ } from "./dom.js";

const EXPLANATIONS = {
	admin: "Training and models are for the operator: enter the admin key (ADMIN_KEY).",
	api: "Enter the key that the operator of this service gave you.",
};
let dialogs = Promise.resolve(); // the dialogs that are open or waiting, so that only one shows at a time

export function setUp() {
	onKeyNeeded((kind, message) => {
		dialogs = dialogs.then(() => showDialog(kind, message));
		return dialogs;
	});
}

/** Resolves to the key, or to null when the user closes the dialog without one. */
function showDialog(kind, message) {
	const dialog = $("#key");
	const field = $("input", dialog);
	$("#key-explanation").textContent = EXPLANATIONS[kind];
	$("#key-error").textContent = message;
	field.toggleAttribute("aria-invalid", Boolean(message));
	field.value = "";
	dialog.returnValue = "";
	dialog.showModal();
	return new Promise((resolve) => {
		const onClose = () => {
			const key = field.value.trim();
			field.value = "";
			resolve(dialog.returnValue === "use" && key ? key : null);
		};
		dialog.addEventListener("close", onClose, { once: true });
	});
}
