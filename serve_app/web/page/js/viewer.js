/** A painting in full: compared with its photo, to the pixel, or beside those in other styles. */

import * as album from "./album.js";
import { picture } from "./api.js";
import { addressFor } from "./card.js";
import { center, makeCompare } from "./compare.js";
import { confirm } from "./confirm.js";
import { addressOf, find, forget, label, set, write } from "./dom.js";
import { erase } from "./grid.js";
import { duration, moment, onLanguage, t } from "./i18n.js";
import { nameOf } from "./names.js";
import { canCopy, canShare, copy, fullOf, share } from "./output.js";
import { hasPhoto, photoOf } from "./painting.js";
import { startPanning } from "./panning.js";
import { service } from "./service.js";
import { problemText, receiptText } from "./status.js";
import * as versions from "./versions.js";

const VIEWS = ["compare", "pixels", "beside"];
let photo = null;
let version = null;
let view = "compare";
let full = null; // the painting that is shown, for the share sheet, which must have it at once
let before = null; // its photo, if the service drew it

/** Opens the viewer with the newest painting of a photo. */
export function open(wanted) {
  prepare();
  view = "compare";
  showPhoto(wanted);
  find("viewer").showModal();
  find("viewer-title").focus();
}

function showPhoto(wanted, wantedVersion = album.painted(wanted).at(-1)) {
  photo = wanted;
  version = wantedVersion;
  center(find("viewer-compare"));
  write(find("viewer-said"), "");
  loadPictures(photo, version);
  show();
}

/** Shows the viewer as things are now. */
function show() {
  if (!photo) return;
  write(find("viewer-title"), photo.name);
  const painted = album.painted(photo);
  if (view === "beside" && painted.length < 2) view = "compare";
  for (const each of VIEWS) find(`view-${each}`).setAttribute("aria-pressed", String(view === each));
  find("view-beside").hidden = painted.length < 2;
  find("viewer").dataset.view = view;
  set(find("pane"), { hidden: view === "beside", tabIndex: view === "pixels" ? 0 : -1 });
  set(find("beside"), { hidden: view !== "beside" });
  if (view === "beside") versions.showBeside(painted, (each) => choose(each, "compare"));
  versions.showList(photo, version, { choose, remove: removeVersion });
  versions.showLarger(photo, version);
  set(find("viewer-download"), { href: addressFor(version), download: nameOf(photo, version) });
  set(find("viewer-copy"), { hidden: !canCopy() });
  set(find("viewer-share"), { hidden: !canShare() });
  write(find("receipt"), receiptText(version));
  write(find("viewer-kept"), keptText());
  showPlace();
}

function choose(wanted, wantedView = view) {
  view = wantedView;
  showPhoto(photo, wanted);
}

function keptText() {
  if (!version.expiresAt) return t("keptInBrowser");
  const values = {
    time: moment(new Date(version.expiresAt)),
    photo: service.jobs ? duration(service.jobs.keep_photos_for_s) : "",
  };
  return t(hasPhoto(version) ? "keptUntil" : "keptPainting", values);
}

// ---- pictures

async function loadPictures(ofPhoto, ofVersion) {
  const isCurrent = () => photo === ofPhoto && version === ofVersion;
  const [painting, original] = ["painting", "photo"].map((name) => find("viewer-compare").querySelector(`.${name}`));
  painting.alt = t("altPainting", { name: ofPhoto.name });
  original.alt = t("altPhoto", { name: ofPhoto.name });
  showRatio(ofVersion.receipt?.painted);
  showBlob(painting, ofVersion.painting);
  showBlob(original, ofPhoto.preview);
  const waiting = find("viewer-waiting");
  set(waiting, { hidden: true });
  const [after, drawn] = await Promise.allSettled([fullOf(ofVersion), originalOf(ofPhoto, ofVersion)]);
  if (!isCurrent()) return;
  for (const old of [full, before]) if (old !== ofVersion.full) forget(old);
  full = after.value ?? null;
  before = drawn.value ?? null;
  if (full) showBlob(painting, full);
  if (before) showBlob(original, before);
  if (after.reason) write(waiting, problemText(after.reason.problem));
  set(waiting, { hidden: !after.reason });
  if (["gone", "unknown-job"].includes(after.reason?.code)) album.change(ofPhoto, ofVersion, { phase: "gone" });
}

/** The photo at the painted size. The page's own file serves as well, if this browser draws it. */
async function originalOf(ofPhoto, ofVersion) {
  if (hasPhoto(ofVersion)) return picture(photoOf(ofVersion));
  const file = await album.fileOf(ofPhoto);
  return file && !ofPhoto.isUndrawable ? file : null;
}

function showRatio(size) {
  if (size) find("viewer-compare").style.setProperty("--ratio", size.width / size.height);
  if (size) find("viewer-compare").style.setProperty("--pixels", `${size.width / devicePixelRatio}px`);
}

function showBlob(image, blob) {
  if (blob) set(image, { src: addressOf(blob) });
  else image.removeAttribute("src");
}

// ---- other photos

const others = () => album.shown().filter((each) => album.painted(each).length);

function showPlace() {
  const all = others();
  const at = all.indexOf(photo);
  write(find("place"), t("place", { at: at + 1, all: all.length }));
  find("viewer").querySelector(".turn").hidden = all.length < 2;
  set(find("previous"), { disabled: at <= 0 });
  set(find("next"), { disabled: at < 0 || at >= all.length - 1 });
}

function turn(step) {
  const all = others();
  const wanted = all[all.indexOf(photo) + step];
  if (wanted) showPhoto(wanted);
}

// ---- what a person does

async function say(work, words) {
  try {
    await work();
    write(find("viewer-said"), words);
  } catch (error) {
    if (error.name !== "AbortError")
      write(find("viewer-said"), error.problem ? problemText(error.problem) : t("notAllowed"));
  }
}

async function erasePhoto() {
  if (!(await confirm("eraseTitle", "eraseText", "erase", { name: photo.name }))) return;
  const erased = photo;
  find("viewer").close();
  await erase(erased);
  find("photos-title").focus();
}

async function removeVersion(wanted) {
  await versions.remove(photo, wanted);
  if (wanted === version) choose(album.painted(photo).at(-1));
  else show();
}

function change(ids) {
  if (!find("viewer").open || !ids.has(photo.id)) return;
  if (!album.find(photo.id) || !photo.versions.includes(version)) return;
  show();
}

let isPrepared = false;

function prepare() {
  if (isPrepared) return;
  isPrepared = true;
  const showSlider = makeCompare(find("viewer-compare"));
  onLanguage(showSlider);
  onLanguage(show);
  label(find("pane"), t("pixelsPane"));
  for (const each of VIEWS) find(`view-${each}`).addEventListener("click", () => choose(version, each));
  find("viewer-close").addEventListener("click", () => find("viewer").close());
  find("viewer").addEventListener("click", ({ target }) => target === find("viewer") && find("viewer").close());
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  find("viewer-copy").addEventListener("click", () => say(() => copy(version), t("copied")));
  find("viewer-share").addEventListener("click", () => full && say(() => share(photo, version, full), t("shared")));
  find("viewer-erase").addEventListener("click", erasePhoto);
  startPanning(find("pane"));
  album.subscribe(change);
}
