/** The card of a photo in the grid. */

import * as album from "./album.js";
import { addressOf, clone, label, set, write } from "./dom.js";
import { t } from "./i18n.js";
import { nameOf } from "./names.js";
import { imageOf } from "./painting.js";
import { isFitted, statusOf } from "./status.js";

/** Returns the card of a photo, and a function that shows how the photo is now. */
export function makeCard(photo, acts) {
  const card = clone("card-template");
  const part = (name) => card.querySelector(name);
  const [link, button] = card.querySelectorAll(".act");
  part(".open").addEventListener("click", () => acts.open(photo));
  part(".dismiss").addEventListener("click", () => acts.dismiss(photo));
  button.addEventListener("click", () => acts[button.dataset.act](photo, album.newest(photo)));
  write(part(".name"), photo.name);
  set(part(".name"), { title: photo.name });
  const show = () => {
    const version = album.newest(photo);
    card.dataset.phase = version.phase;
    card.classList.toggle("fitted", version.phase === "done" && Boolean(version.receipt) && isFitted(version.receipt));
    write(part(".status"), statusOf(version));
    label(part(".dismiss"), t(version.phase === "done" ? "eraseName" : "removeName", { name: photo.name }));
    showPictures(part, photo, version);
    showProgress(part("progress"), photo, version);
    showAct(link, button, photo, version);
  };
  show();
  return { card, show };
}

function showPictures(part, photo, version) {
  const painting = version.painting ?? album.painted(photo).at(-1)?.painting;
  showPicture(part(".photo"), photo.preview, t("altPhoto", { name: photo.name }));
  showPicture(part(".painting"), painting, t("altPainting", { name: photo.name }));
  const unseen = part(".unseen");
  set(unseen, { hidden: Boolean(photo.preview || painting) });
  write(unseen, photo.kind ?? "");
  const open = part(".open");
  set(open, { hidden: !album.painted(photo).length });
  write(open.querySelector("span > span"), t("lookCloser"));
  label(open, t("openName", { name: photo.name }));
}

function showPicture(image, blob, text) {
  set(image, { hidden: !blob, alt: text });
  if (blob) set(image, { src: addressOf(blob) });
}

function showProgress(bar, photo, version) {
  const isMoving = ["uploading", "running"].includes(version.phase);
  set(bar, { hidden: !isMoving });
  label(bar, t("progressOf", { name: photo.name }));
  const isMeasured = version.phase === "uploading" && !version.source && version.progress < 1;
  if (isMeasured) set(bar, { value: version.progress });
  else bar.removeAttribute("value");
}

/** Shows what to do with a photo now: the newest painting is there to fetch, also while another is made. */
function showAct(link, button, photo, version) {
  const done = album.painted(photo).at(-1);
  const again = version.phase === "failed" || version.phase === "cancelled" ? "retry" : null;
  const act = album.isUnfinished(version) ? "cancel" : again;
  set(link, { hidden: !done });
  set(button, { hidden: !act });
  if (done) {
    set(link, { href: addressFor(done), download: nameOf(photo, done) });
    write(link, t("download"));
    label(link, t("downloadName", { name: photo.name }));
  }
  if (act) {
    button.dataset.act = act;
    button.classList.toggle("primary", version.phase === "failed");
    write(button, t(act));
    label(button, t(`${act}Name`, { name: photo.name }));
  }
}

/** Returns the address of a painting in full. */
export function addressFor(version) {
  const address = version.full ? addressOf(version.full) : imageOf(version);
  return new URL(address, document.baseURI).href;
}
