/** Takes photos in: dropped, pasted, picked or taken, with folders. Each becomes a card at once. */

import * as album from "./album.js";
import { announce } from "./announce.js";
import { find } from "./dom.js";
import { inspect } from "./files.js";
import { sentences, t } from "./i18n.js";
import { shrink } from "./pictures.js";
import { chosenSide, chosenStyle } from "./styles.js";
import { run } from "./uploads.js";

const REVEAL_MS = 150; // by then the cards are there
const HIDDEN = /^\.|^(thumbs\.db|desktop\.ini)$/i;

/** Makes cards of files. Of a folder, what is no picture is left out and counted. */
async function takeIn(files, isFolder = false) {
  const batch = Date.now();
  let left = 0;
  let added = 0;
  for (const [at, file] of files.entries()) {
    const { kind, problem } = await inspect(file);
    const isForeign = problem && problem.code !== "too-many-bytes";
    if (isFolder && isForeign) {
      if (!HIDDEN.test(file.name)) left += 1;
      continue;
    }
    addPhoto(file, kind, problem, batch, at);
    added += 1;
  }
  if (added) setTimeout(reveal, REVEAL_MS);
  announce(sentences([added && t("saidAdded", { count: added }), left && t("saidLeftOut", { count: left })]));
}

/** Scrolls to the new cards, unless one sees them. */
function reveal() {
  const { top } = find("grid").getBoundingClientRect();
  if (top < 0 || top > 0.75 * innerHeight) find("photos").scrollIntoView();
}

function addPhoto(file, kind, problem, batch, at) {
  const version = album.newVersion(chosenStyle(), chosenSide());
  if (problem) Object.assign(version, { phase: "refused", problem });
  const photo = { id: album.newId(), name: file.name || t("pasted"), bytes: file.size, kind, batch, at };
  Object.assign(photo, { preview: null, isUndrawable: kind === "HEIC" || kind === "TIFF", versions: [version] });
  album.add(photo, problem ? null : file);
  if (!problem) preview(photo, file);
  run();
}

async function preview(photo, file) {
  const small = await shrink(file);
  photo.isUndrawable = !small;
  album.setPreview(photo, small);
}

// ---- dropping, also of folders

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");

async function takeDropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return takeIn([...transfer.files]);
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return takeIn(files, true);
}

async function collect(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([]))); // a hundred at a time
    if (!some.length) return;
    for (const each of some.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true })))
      await collect(each, files);
  }
}

// On the whole window: a photo dropped beside the frame would otherwise replace the page.
function listenToDrops() {
  const veil = find("veil");
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    veil.hidden = Boolean(document.querySelector("dialog[open]"));
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    takeDropped(event.dataTransfer);
  });
}

function listenToPicker(button, input, isFolder) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = ""; // so that choosing the same file again counts as a change
    if (files.length) takeIn(files, isFolder);
  });
}

export function start() {
  listenToDrops();
  listenToPicker("pick", "files", false);
  listenToPicker("take", "camera", false);
  listenToPicker("pick-folder", "folder", true);
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) takeIn(files);
  });
}
