/** The paintings of one photo in the viewer: those there are, and those that could be made. */

import * as album from "./album.js";
import { addressOf, find, label, set, write } from "./dom.js";
import { t } from "./i18n.js";
import { dismiss } from "./painting.js";
import { installed, sides, styleOf, titleIn, titleOf } from "./service.js";
import { isFitted, statusOf } from "./status.js";
import { showLook } from "./styles.js";
import { again } from "./uploads.js";

/** Removes one painting of several. */
export async function remove(photo, version) {
  await dismiss(version);
  album.removeVersion(photo, version);
}

/** Shows a button for each painting, and for each style that there is none in. */
export function showList(photo, current, acts) {
  const list = find("versions");
  const made = photo.versions.map((version) => madeItem(photo, version, version === current, acts));
  const styles = installed().filter(
    (style) => !photo.versions.some((each) => each.style === style.name && each.side === current.side),
  );
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  list.replaceChildren(...made, ...styles.map((style) => otherItem(photo, style, current.side)));
  if (focused) list.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  set(find("again-hint"), { hidden: !styles.length });
}

function madeItem(photo, version, isCurrent, acts) {
  const isDone = version.phase === "done";
  const words = isDone ? t("sizeShort", { side: version.side }) : statusOf(version);
  const [item, button] = makeItem(version.id, version.painting, styleOf(version.style), titleOf(version.style), words);
  button.setAttribute("aria-pressed", String(isCurrent));
  button.disabled = !isDone;
  button.addEventListener("click", () => acts.choose(version));
  if (photo.versions.length > 1 && !album.isUnfinished(version) && !isCurrent) item.append(removeButton(version, acts));
  return item;
}

function removeButton(version, acts) {
  const button = document.createElement("button");
  set(button, { type: "button", className: "round small", textContent: "×" });
  label(button, t("removeVersion", { style: titleOf(version.style) }));
  button.addEventListener("click", () => acts.remove(version));
  return button;
}

function otherItem(photo, style, side) {
  const [item, button] = makeItem(style.name, null, style, titleIn(style), t("paintIn"));
  button.classList.add("other");
  button.addEventListener("click", () => again(photo, style.name, side));
  return item;
}

function makeItem(name, painting, style, title, words) {
  const [item, button, image, text, small] = ["li", "button", "img", "strong", "small"].map((tag) =>
    document.createElement(tag),
  );
  set(button, { type: "button", className: "version" });
  button.dataset.name = name;
  image.setAttribute("alt", ""); // the words beside it say it
  set(image, { hidden: true });
  if (painting) set(image, { src: addressOf(painting), hidden: false });
  else showLook(image, style);
  write(text, title);
  write(small, words);
  const said = document.createElement("span");
  said.append(text, small);
  button.append(image, said);
  item.append(button);
  return [item, button];
}

/** Offers a larger size where the photo was fitted to less than the service paints. */
export function showLarger(photo, version) {
  const button = find("larger");
  const { receipt } = version;
  const side = receipt && isFitted(receipt) ? largerSide(receipt, version) : null;
  const isMade = photo.versions.some((each) => each.style === version.style && each.side === side);
  set(button, { hidden: !side || isMade });
  write(button, side ? t("larger", { side }) : "");
  button.onclick = () => again(photo, version.style, side);
}

function largerSide(receipt, version) {
  const longest = Math.max(receipt.original.width, receipt.original.height);
  const larger = sides().filter((side) => side > version.side);
  return larger.find((side) => side >= longest) ?? larger.at(-1) ?? null;
}

/** Shows all paintings side by side. */
export function showBeside(painted, open) {
  find("beside").replaceChildren(
    ...painted.map((version) => {
      const [item, button, image, text] = ["li", "button", "img", "span"].map((tag) => document.createElement(tag));
      set(button, { type: "button" });
      image.setAttribute("alt", "");
      set(image, { src: addressOf(version.painting ?? version.full) });
      write(text, t("besideName", { style: titleOf(version.style), side: version.side }));
      button.append(image, text);
      button.addEventListener("click", () => open(version));
      item.append(button);
      return item;
    }),
  );
}
