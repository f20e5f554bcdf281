/** The languages of the page: a dictionary each, and numbers, sizes and times by Intl. */

export const LANGUAGES = { en: "English", zh: "简体中文" };
const TAGS = { en: "en", zh: "zh-Hans" };
const CHOICE = "animegan-language";

let language = "en";
let words = {};
let locale = "en"; // the browser's own form of the language: it decides how times are written
let plurals = new Intl.PluralRules("en");
const listeners = [];

/** Loads the language that was chosen before, else the browser's. */
export async function start() {
  const known = navigator.languages.map((tag) => tag.toLowerCase().split("-")[0]);
  const chosen = remembered();
  await load(chosen in LANGUAGES ? chosen : (known.find((each) => each in LANGUAGES) ?? "en"));
}

/** Changes the language, and remembers it. */
export async function choose(chosen) {
  await load(chosen);
  try {
    localStorage.setItem(CHOICE, chosen);
  } catch {
    // a browser that keeps nothing: then it is for this visit
  }
}

/** Calls a function whenever the language has changed. */
export const onLanguage = (listener) => listeners.push(listener);

export const current = () => language;

/** Returns the text of a key. Of a plural, `count` decides; values in braces are filled in. */
export function t(key, values = {}) {
  let text = words[key] ?? key;
  if (typeof text === "object") text = text[plurals.select(values.count)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : (value ?? whole);
  });
}

/** Whether the dictionary has a key. */
export const knows = (key) => key in words;

/** Fills in all texts of a part of the document, by its attributes data-t, data-t-label and data-t-alt. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-alt]")) element.alt = t(element.dataset.tAlt);
}

export const number = (value, options) => new Intl.NumberFormat(locale, options).format(value);

const unit = (value, name, display = "short", digits = 0) =>
  number(value, { style: "unit", unit: name, unitDisplay: display, maximumFractionDigits: digits });

/** Returns a number of bytes in words. */
export function bytes(count) {
  if (count < 1e6) return unit(Math.max(1, Math.round(count / 1000)), "kilobyte");
  return unit(count / 1e6, "megabyte", "short", count < 1e8 ? 1 : 0);
}

/** Returns a short time, as one waits for a painting. */
export function seconds(count) {
  if (count < 90) return unit(Math.max(1, Math.round(count)), "second");
  if (count < 5400) return unit(Math.round(count / 60), "minute");
  return unit(count / 3600, "hour", "short", 1);
}

/** Returns a long time, as something is kept. */
export function duration(count) {
  const [name, length] = [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
  ].find(([, each]) => count >= 2 * each || (count >= each && count % each === 0)) ?? ["second", 1];
  return unit(count / length, name, "long", 1);
}

/** Returns a point in time: the time of day, and the day if it is not today. */
export function moment(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { weekday: "long", day: "numeric", month: "long" };
  return new Intl.DateTimeFormat(locale, { ...day, hour: "numeric", minute: "2-digit" }).format(date);
}

/** Returns the size of a picture. */
export const size = ({ width, height }) =>
  `${number(width, { useGrouping: false })} × ${number(height, { useGrouping: false })}`;

export const list = (items) => new Intl.ListFormat(locale, { type: "conjunction" }).format(items);

/** Joins sentences; Chinese puts nothing between them. */
export const sentences = (texts) => texts.filter(Boolean).join(language === "zh" ? "" : " ");

function remembered() {
  try {
    return localStorage.getItem(CHOICE);
  } catch {
    return null;
  }
}

async function load(wanted) {
  const answer = await fetch(new URL(`../i18n/${wanted}.json`, import.meta.url));
  words = await answer.json();
  language = wanted;
  locale = navigator.languages.find((tag) => tag.toLowerCase().startsWith(wanted)) ?? TAGS[wanted];
  plurals = new Intl.PluralRules(TAGS[wanted]);
  document.documentElement.lang = TAGS[wanted];
  translate(document);
  for (const listener of listeners) listener();
}
