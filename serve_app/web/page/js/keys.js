/** Asks for an API key where the service wants one. It is kept until the tab is closed. */

import { key } from "./api.js";
import { find, write } from "./dom.js";
import { t } from "./i18n.js";

let answer = null;

/** Returns whether a key was given; all who ask meanwhile get the same answer. */
export function askForKey() {
  const dialog = find("key-dialog");
  write(find("key-wrong"), key.get() ? t("keyUnknown") : "");
  key.clear();
  if (!dialog.open) dialog.showModal();
  find("key").select();
  answer ??= Promise.withResolvers ? Promise.withResolvers() : withResolvers();
  return answer.promise;
}

function withResolvers() {
  const made = {};
  made.promise = new Promise((resolve) => Object.assign(made, { resolve }));
  return made;
}

function take(event) {
  event.preventDefault();
  const given = find("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    write(find("key-wrong"), t("keyMalformed")); // no header can carry it
    return;
  }
  key.set(given);
  settle(true);
  find("key-dialog").close();
}

function settle(isGiven) {
  answer?.resolve(isGiven);
  answer = null;
}

export function start() {
  find("key-form").addEventListener("submit", take);
  find("key-cancel").addEventListener("click", () => find("key-dialog").close());
  find("key-dialog").addEventListener("close", () => settle(false));
}
