/** The grid of all photos, and the line above it that sums them up. */

import * as album from "./album.js";
import { announce, announceEnd } from "./announce.js";
import { makeCard } from "./card.js";
import { confirm } from "./confirm.js";
import { find, set, write } from "./dom.js";
import { t } from "./i18n.js";
import { dismiss } from "./painting.js";
import { titleOf } from "./service.js";
import { problemText } from "./status.js";
import { chosenSide, chosenStyle, onChoice } from "./styles.js";
import { again, cancel, retry } from "./uploads.js";

const cards = new Map(); // by the id of the photo
const phases = new Map(); // of each version as it was last shown
const TOLD = { done: "saidDone", failed: "saidFailed", refused: "saidFailed" };

const acts = {
  open: async (photo) => (await import("./viewer.js")).open(photo),
  cancel: (photo, version) => attempt(photo, cancel(photo, version)),
  retry: (photo, version) => retry(photo, version),
  dismiss: (photo) => dismissPhoto(photo),
};

/** Shows what has changed. */
export function show(ids) {
  for (const id of ids) showPhoto(id);
  const order = album.shown();
  arrange(order);
  document.body.dataset.state = order.length ? "full" : "empty";
  find("photos").hidden = !order.length;
  showSummary();
}

/** Shows the times anew that go by while a photo waits. */
export function tick() {
  for (const [photo, version] of album.versions(album.isUnfinished)) {
    if (version === album.newest(photo) && version.phase !== "uploading") cards.get(photo.id)?.show();
  }
}

function showPhoto(id) {
  const photo = album.find(id);
  if (!photo) {
    cards.get(id)?.card.remove();
    cards.delete(id);
    return;
  }
  if (cards.has(id)) cards.get(id).show();
  else cards.set(id, makeCard(photo, acts));
  for (const version of photo.versions) tellEnd(photo, version);
}

function tellEnd(photo, version) {
  const before = phases.get(version.id);
  phases.set(version.id, version.phase);
  const isEnd =
    before !== version.phase && version.phase in TOLD && (before !== undefined || version.phase === "refused");
  if (isEnd) announceEnd(photo.name, TOLD[version.phase]);
}

function arrange(order) {
  const grid = find("grid");
  order.forEach((photo, at) => {
    const { card } = cards.get(photo.id);
    if (grid.children[at] !== card) grid.insertBefore(card, grid.children[at] ?? null);
  });
}

function showSummary() {
  const newest = album.all().map(album.newest);
  const done = album.versions((version) => version.phase === "done").length;
  const waiting = newest.filter(album.isUnfinished).length;
  const failed = newest.filter(hasFailed).length;
  const cancelled = newest.filter((version) => version.phase === "cancelled").length;
  write(find("photos-title"), t("photos", { count: newest.length }));
  const parts = [
    t("arePainted", { count: album.all().filter((photo) => album.painted(photo).length).length }),
    waiting && t("stillWaiting", { count: waiting }),
    failed && t("haveFailed", { count: failed }),
    cancelled && t("areCancelled", { count: cancelled }),
  ];
  write(find("progress-text"), parts.filter(Boolean).join(" · "));
  set(find("overall"), { hidden: !waiting, value: newest.length ? 1 - waiting / newest.length : 0 });
  set(find("cancel-all"), { hidden: waiting < 2 });
  set(find("retry-all"), { hidden: newest.filter((version) => version.phase === "failed").length < 2 });
  set(find("clear-failed"), { hidden: hopeless().length < 2 });
  set(find("zip"), { hidden: done < 2 });
  set(find("erase-all"), { hidden: waiting > 0 || !newest.length });
  set(find("again-all"), { hidden: waiting > 0 || !others().length });
  write(find("again-all"), t("againAll", { style: titleOf(chosenStyle()) }));
  document.title = waiting ? t("titleWaiting", { done: newest.length - waiting, all: newest.length }) : t("title");
}

/** Photos that are painted, but not as it is chosen now. */
function others() {
  const isAsChosen = (version) => version.style === chosenStyle() && version.side === chosenSide();
  return album.shown().filter((photo) => album.painted(photo).length && !photo.versions.some(isAsChosen));
}

const hasFailed = (version) => ["failed", "refused"].includes(version.phase);

/** Photos that have failed and have no painting. */
const hopeless = () => album.shown().filter((photo) => hasFailed(album.newest(photo)) && !album.painted(photo).length);

// ---- what a person does

async function attempt(photo, work) {
  try {
    await work;
  } catch (error) {
    announce(`${photo.name}: ${problemText(error.problem)}`);
    showTrouble(problemText(error.problem));
  }
}

/** Shows a sentence above the grid; null takes it away. */
export function showTrouble(text) {
  find("trouble").hidden = !text;
  write(find("trouble-text"), text ?? "");
}

async function dismissPhoto(photo) {
  const isKept = album.painted(photo).length > 0;
  if (isKept && !(await confirm("eraseTitle", "eraseText", "erase", { name: photo.name }))) return;
  const neighbour = neighbourOf(photo);
  await erase(photo);
  neighbour?.focus();
}

/** The button that gets the focus when a card has gone. */
function neighbourOf(photo) {
  const { card } = cards.get(photo.id);
  const other = card.nextElementSibling ?? card.previousElementSibling;
  return other?.querySelector(".dismiss") ?? find("pick");
}

/** Erases a photo and its paintings, here and at the service. */
export async function erase(photo) {
  try {
    for (const version of photo.versions) {
      if (album.isUnfinished(version)) await cancel(photo, version);
      await dismiss(version);
    }
    album.remove(photo);
    announce(t("saidErased", { name: photo.name }));
    showTrouble(null);
  } catch (error) {
    showTrouble(t("notErased", { name: photo.name, reason: problemText(error.problem) }));
  }
}

async function eraseAll() {
  const count = album.all().length;
  if (!(await confirm("eraseAllTitle", "eraseAllText", "eraseAllYes", { count }))) return;
  for (const photo of album.all()) await erase(photo);
  find("pick").focus();
}

async function makeZip() {
  const words = find("zip").querySelector("span");
  const { downloadAll } = await import("./output.js");
  find("zip").disabled = true;
  try {
    await downloadAll((at, all) => write(words, t("zipping", { at, all })));
    announce(t("saidZip"));
  } catch (error) {
    showTrouble(problemText(error.problem));
  }
  find("zip").disabled = false;
  nameZip();
}

export const nameZip = () => write(find("zip").querySelector("span"), t("zip"));

export function start() {
  find("cancel-all").addEventListener("click", () => {
    for (const [photo, version] of album.versions(album.isUnfinished).reverse()) attempt(photo, cancel(photo, version));
    find("photos-title").focus();
  });
  find("retry-all").addEventListener("click", () => {
    for (const [photo, version] of album.versions((each) => each.phase === "failed")) retry(photo, version);
    find("photos-title").focus();
  });
  find("clear-failed").addEventListener("click", async () => {
    for (const photo of hopeless()) await erase(photo);
    find("photos-title").focus();
  });
  find("again-all").addEventListener("click", () => {
    for (const photo of others()) again(photo, chosenStyle(), chosenSide());
    find("photos-title").focus();
  });
  find("erase-all").addEventListener("click", eraseAll);
  find("zip").addEventListener("click", makeZip);
  album.subscribe(show);
  onChoice(showSummary);
}
