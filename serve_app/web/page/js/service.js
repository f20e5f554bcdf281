/** What this service offers: its styles and limits, asked for at the start until it answers. */

import { call } from "./api.js";
import { knows, t } from "./i18n.js";

const AGAIN_MS = 3000;
const OURS = "the animegan-serve authors"; // the credit of the styles that the dictionaries know
const USUAL_SIDE = 1024; // larger paintings take long, so they are chosen and not the default

export const service = {
  styles: [],
  maxSide: null,
  maxBytes: null,
  jobs: null, // how long they keep what; null where they are switched off
  isKnown: false,
};

/** Loads it; `onTrouble` hears of each failure, and of the end of it with null. */
export async function load(onTrouble) {
  for (;;) {
    try {
      const listed = await (await call("v1/styles")).json();
      Object.assign(service, { styles: listed.styles, maxSide: listed.max_side, maxBytes: listed.max_bytes });
      Object.assign(service, { jobs: listed.jobs, isKnown: true });
      onTrouble(null);
      return;
    } catch (error) {
      onTrouble(error);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

export const installed = () => service.styles.filter((style) => style.installed);
export const styleOf = (name) => service.styles.find((style) => style.name === name);
export const titleOf = (name) => titleIn(styleOf(name)) ?? name;

/** Whether the dictionaries have the words of a style: it is one of the project's own. */
export const isOurs = (style) => style?.credit === OURS && knows(`style.${style.name}`);

/** Returns the title of a style, in the reader's language where it is one of ours. */
export const titleIn = (style) => (isOurs(style) ? t(`style.${style.name}`) : style?.title);

/** Returns what a style is good for, likewise. */
export const summaryIn = (style) => (isOurs(style) ? t(`style.${style.name}.summary`) : style?.summary);

/** Longer sides to choose from, in pixels, ascending. */
export function sides() {
  const usual = [512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288].filter((side) => side < service.maxSide);
  return [...usual, service.maxSide];
}

export const usualSide = () => Math.min(USUAL_SIDE, service.maxSide);
