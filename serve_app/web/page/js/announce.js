/** Says what has changed to those who do not see it: rarely, and what belongs together in one sentence. */

import { find } from "./dom.js";
import { list, sentences, t } from "./i18n.js";

const GATHER_MS = 1200;
let ends = [];
let timer = null;

/** Says a sentence. */
export function announce(text) {
  const line = find("said");
  line.textContent = "";
  setTimeout(() => (line.textContent = text), 50); // the same sentence twice is a change too
}

/** Says how a version has ended, together with others that end about now. */
export function announceEnd(name, key) {
  ends.push({ name, key });
  if (timer === null) timer = setTimeout(tell, GATHER_MS);
}

function tell() {
  timer = null;
  const said = [...new Set(ends.map((each) => each.key))].map((key) => {
    const names = ends.filter((each) => each.key === key).map((each) => each.name);
    return names.length > 3 ? t(`${key}Many`, { count: names.length }) : t(key, { names: list(names) });
  });
  ends = [];
  announce(sentences(said));
}
