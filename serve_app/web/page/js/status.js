/** Puts into words how it stands with a version. */

import { bytes, knows, list, number, seconds, sentences, size, t } from "./i18n.js";
import { service, titleOf } from "./service.js";
import { pause } from "./uploads.js";

/** Returns the line below a card. */
export function statusOf(version) {
  const words = { waiting, uploading, queued, running, done, cancelled, gone, failed, refused: failed };
  return words[version.phase](version);
}

function waiting() {
  if (!pause) return t("waitTurn");
  const time = seconds(Math.max(1, (pause.until - Date.now()) / 1000));
  if (pause.code === "offline") return t("waitOffline");
  return t(pause.code === "too-busy" ? "waitBusy" : "waitService", { time });
}

function uploading(version) {
  const isSent = version.progress >= 1 || version.source;
  if (isSent) return t(service.jobs ? "accepting" : "painting");
  return t("uploading", { part: number(version.progress, { style: "percent" }) });
}

function queued(version) {
  const place = version.position ? t("ahead", { count: version.position }) : t("next");
  return withTime(place, version);
}

const running = (version) => withTime(t("painting"), version);

function withTime(text, version) {
  if (version.eta === null || version.eta === undefined) return text;
  const left = version.eta - (Date.now() - version.etaAt) / 1000;
  return left < 1 ? t("anyMoment", { text }) : t("about", { text, time: seconds(left) });
}

function done({ receipt }) {
  if (!receipt) return t("painted");
  const usual = receipt.resized ? "paintedAt" : "fullSize"; // some styles drop a few pixels at the edges
  return t(isFitted(receipt) ? "fitted" : usual, { size: size(receipt.painted) });
}

const cancelled = () => t("cancelled");
const gone = () => t("gone");
const failed = (version) => problemText(version.problem);

const longer = ({ width, height }) => Math.max(width, height);

/** Whether a photo was made smaller, by more than the pixels that a style drops at its edges. */
export function isFitted({ original, painted }) {
  return (
    longer(original) - longer(painted) >= 4 ||
    Math.min(original.width, original.height) - Math.min(painted.width, painted.height) >= 4
  );
}

/** Returns what was done to a photo, and why. */
export function receiptText(version) {
  const { receipt } = version;
  if (!receipt) return "";
  const values = {
    original: size(receipt.original),
    painted: size(receipt.painted),
    side: version.side,
    style: titleOf(receipt.style),
  };
  const said = [t("receiptStyle", values)];
  if (isFitted(receipt))
    said.push(t("receiptFitted", values), t(version.side < service.maxSide ? "whyChosen" : "whyMost", values));
  else if (receipt.resized) said.push(t("receiptTrimmed", values));
  else said.push(t("receiptSame", values));
  if (receipt.reused) said.push(t("receiptReused"));
  return sentences(said);
}

/** Returns why something did not work, and what to do about it. */
export function problemText(problem) {
  if (!problem) return t("error.unknown");
  const key = `error.${problem.code}`;
  const values = {
    limit: amount(problem.limit, problem.unit),
    actual: amount(problem.actual, problem.unit),
    kinds: kinds(),
  };
  const isComplete = !(problem.limit === undefined || problem.limit === null);
  if (isComplete && knows(`${key}.limit`)) return t(`${key}.limit`, values);
  if (knows(key)) return t(key, values);
  return problem.detail ?? t("error.unknown");
}

/** Returns the kinds of photos that are read. */
export const kinds = () => list(["JPEG", "PNG", "WebP", "AVIF", "HEIC", "GIF", "BMP", "TIFF"]);

function amount(value, unit) {
  if (value === undefined || value === null) return "";
  if (unit === "bytes") return bytes(value);
  if (unit === "seconds") return seconds(value);
  return value >= 1e6 ? number(value, { notation: "compact" }) : number(value);
}
