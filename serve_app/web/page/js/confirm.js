/** Asks before something is lost. */

import { find, write } from "./dom.js";
import { t } from "./i18n.js";

/** Returns whether the person agrees; the arguments are keys of the dictionary, and values for their texts. */
export function confirm(title, text, yes, values) {
  const dialog = find("confirm");
  write(find("confirm-title"), t(title, values));
  write(find("confirm-text"), t(text, values));
  write(find("confirm-yes"), t(yes, values));
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
