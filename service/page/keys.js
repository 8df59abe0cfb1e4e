// Asks for a key when the service wants one.

import { onKeyNeeded } from "./api.js";
import { $ } from "./dom.js";

const KINDS = {
  admin: "This is the operator's: it needs the admin key (ADMIN_KEY).",
  api: "This service writes for those who have a key (one of API_KEYS).",
};
let asking = Promise.resolve();

export function setUp() {
  onKeyNeeded((kind, message) => {
    asking = asking.then(() => ask(kind, message)); // one question at a time
    return asking;
  });
}

function ask(kind, message) {
  const dialog = $("#key");
  const field = $("input", dialog);
  $("#key-what").textContent = KINDS[kind];
  const error = $("#key-error");
  error.textContent = message;
  field.toggleAttribute("aria-invalid", Boolean(message));
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const key = field.value.trim();
        field.value = "";
        resolve(dialog.returnValue === "use" && key ? key : null);
      },
      { once: true },
    );
  });
}
