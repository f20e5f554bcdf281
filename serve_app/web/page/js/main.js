/** Puts the page together. */

import * as album from "./album.js";
import { makeCompare } from "./compare.js";
import { find, write } from "./dom.js";
import * as grid from "./grid.js";
import { bytes, choose, current, duration, LANGUAGES, onLanguage, start as startLanguage, t } from "./i18n.js";
import * as intake from "./intake.js";
import * as keys from "./keys.js";
import { load, service } from "./service.js";
import { kinds, problemText } from "./status.js";
import * as store from "./store.js";
import * as styles from "./styles.js";
import * as uploads from "./uploads.js";
import * as watch from "./watch.js";

const TICK_MS = 1000;

function showService() {
  grid.nameZip();
  if (!service.isKnown) return;
  styles.show();
  write(find("limits"), t("limits", { kinds: kinds(), size: bytes(service.maxBytes) }));
  write(find("kept"), keptText());
}

/** Gives photos that came before the service was known the style and size that are chosen now. */
function chooseForEarly() {
  for (const [photo, version] of album.versions((each) => !each.style)) {
    album.change(photo, version, { style: styles.chosenStyle(), side: styles.chosenSide() });
  }
}

/** Returns how long the service keeps what. */
function keptText() {
  if (!service.jobs) return t("keptNothing");
  const { keep_for_s: painting, keep_photos_for_s: photo } = service.jobs;
  return t(photo ? "kept" : "keptPaintings", { painting: duration(painting), photo: duration(photo) });
}

function startLanguages() {
  const select = find("language");
  select.replaceChildren(...Object.entries(LANGUAGES).map(([code, name]) => new Option(name, code)));
  for (const option of select.options) option.lang = option.value;
  select.value = current();
  select.addEventListener("change", () => choose(select.value));
  const showSlider = makeCompare(document.querySelector(".sample .compare"));
  onLanguage(() => {
    showSlider();
    showService();
    album.tellAll();
  });
}

function startClock() {
  setInterval(grid.tick, TICK_MS);
  setInterval(watch.refresh, TICK_MS);
  addEventListener("online", uploads.resume);
  addEventListener("online", () => watch.ask().catch(() => {}));
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState !== "visible") return;
    uploads.probe();
    watch.ask().catch(() => {});
  });
}

async function start() {
  await Promise.all([startLanguage(), store.open()]);
  startLanguages();
  styles.start();
  keys.start();
  intake.start();
  grid.start();
  album.subscribe(watch.follow);
  await album.restore();
  showService();
  startClock();
  await load((error) => grid.showTrouble(error && problemText(error.problem ?? { code: "fault" })));
  showService();
  chooseForEarly();
  album.tellAll();
  uploads.catchUp();
  await watch.ask().catch(() => {});
  uploads.run();
}

start();
