/** The choice of a style, by its picture, and of a size where there is one. */

import { clone, find, write } from "./dom.js";
import { t } from "./i18n.js";
import { installed, isOurs, service, sides, styleOf, summaryIn, titleIn, usualSide } from "./service.js";

const STYLE = "animegan-style";
const SIDE = "animegan-side";

const listeners = [];
let style = null;
let side = null;

export const chosenStyle = () => style;
export const chosenSide = () => side;

/** Calls a function whenever something else was chosen. */
export const onChoice = (listener) => listeners.push(listener);

function tell() {
  for (const listener of listeners) listener();
}

/** Shows what can be chosen, and chooses what was chosen before if it is still there. */
export function show() {
  const kept = remembered(STYLE);
  const byDefault = service.styles.find((each) => each.default) ?? installed()[0];
  style ??= styleOf(kept)?.installed ? kept : byDefault?.name;
  side ??= sides().includes(Number(remembered(SIDE))) ? Number(remembered(SIDE)) : usualSide();
  const pullable = service.styles.filter((each) => !each.installed);
  find("styles").replaceChildren(...installed().map(styleCard));
  find("pullable-styles").replaceChildren(...pullable.map(pullableCard));
  find("pullable").hidden = !pullable.length;
  write(find("pullable").querySelector("summary"), t("more", { count: pullable.length }));
  showSides();
}

function styleCard(each) {
  const card = clone("style-template");
  const input = card.querySelector("input");
  input.value = each.name;
  input.checked = each.name === style;
  input.addEventListener("change", () => {
    style = each.name;
    remember(STYLE, style);
    tell();
  });
  describe(card, each);
  return card;
}

function pullableCard(each) {
  const card = clone("pullable-template");
  describe(card, each);
  write(card.querySelector("code"), `animegan styles pull ${each.name}`);
  return card;
}

function describe(card, each) {
  if (isOurs(each)) for (const element of card.querySelectorAll("[lang]")) element.removeAttribute("lang");
  write(card.querySelector(".name"), titleIn(each));
  write(card.querySelector(".good"), summaryIn(each) ?? "");
  write(card.querySelector(".licence"), t("licence", { licence: each.licence, credit: each.credit }));
  write(card.querySelector(".letter"), titleIn(each).slice(0, 1));
  showLook(card.querySelector("img"), each);
}

/** Shows the thumbnail of a style; without one, the letter behind the picture is seen. */
export function showLook(image, each) {
  if (!image || !each?.thumbnail) return;
  image.addEventListener("error", () => (image.hidden = true));
  image.src = `v1/styles/${each.name}/thumbnail`; // relative, whatever prefix a proxy has taken away
  image.hidden = false;
}

function showSides() {
  const select = find("size");
  const options = sides().map((each) => new Option(t("sizeOption", { side: each }), each, false, each === side));
  select.replaceChildren(...options);
  find("size-field").hidden = sides().length < 2;
}

export function start() {
  find("size").addEventListener("change", ({ target }) => {
    side = Number(target.value);
    remember(SIDE, side);
    tell();
  });
}

function remembered(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that keeps nothing
  }
}
