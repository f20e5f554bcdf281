/**
 * The photos of this browser, each with its paintings. Views listen here, and the browser keeps what changes.
 *
 * A photo has a version for each style and size that it is painted in. The phase of a version is `waiting` (for its
 * upload), `uploading`, `queued`, `running`, and at the end `done`, `failed`, `refused` (it can never be painted),
 * `cancelled` or `gone` (expired or erased at the service).
 */

import { forget } from "./dom.js";
import * as store from "./store.js";

const PASSING = new Set(["progress", "position", "eta", "etaAt"]); // not worth writing down
const UNFINISHED = new Set(["waiting", "uploading", "queued", "running"]);
const SOON_MS = 30;
const HOPELESS = new Set([
  "no-image",
  "too-many-bytes",
  "too-many-pixels",
  "decode-memory",
  "unsupported-format",
  "broken-image",
  "too-small",
]);

const photos = new Map();
const files = new Map(); // for as long as the page is open, to paint a photo again that the service has dropped
const listeners = new Set();
const otherTabs = new BroadcastChannel(`animegan ${location.pathname}`); // is told of photos that came or went
let changed = new Set();
let isPlanned = false;

export const isUnfinished = (version) => UNFINISHED.has(version.phase);
/** The phase of a version with a problem: whether to try it again is worth it. */
export const phaseOf = (problem) => (HOPELESS.has(problem?.code) ? "refused" : "failed");
export const all = () => [...photos.values()];
export const find = (id) => photos.get(id);
/** Photos as they are shown: what came last comes first, and what came together keeps its order. */
export const shown = () => all().sort((a, b) => b.batch - a.batch || a.at - b.at);
export const newest = (photo) => photo.versions.at(-1);
export const painted = (photo) => photo.versions.filter((version) => version.phase === "done");

/** All versions with their photos, in the order in which they are to be painted. */
export function versions(isWanted = () => true) {
  const inOrder = all().sort((a, b) => a.batch - b.batch || a.at - b.at);
  return inOrder.flatMap((photo) => photo.versions.filter(isWanted).map((version) => [photo, version]));
}

/** Calls a function with the ids of the photos that have changed, soon after they have. */
export const subscribe = (listener) => listeners.add(listener);

/** Returns a random name, also where the page is not served by https. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newVersion(style, side, source = null) {
  const blank = {
    jobId: null,
    problem: null,
    receipt: null,
    expiresAt: null,
    painting: null,
    full: null,
    mediaType: null,
  };
  return {
    ...blank,
    id: newId(),
    key: newId(),
    style,
    side,
    source,
    phase: "waiting",
    progress: 0,
    position: null,
    eta: null,
  };
}

/** Takes up what the browser has kept. What was on its way is sent again, under the same key. */
export async function restore() {
  for (const photo of await store.photos()) {
    for (const version of photo.versions) freshen(version);
    photos.set(photo.id, photo);
    tell(photo);
  }
  otherTabs.onmessage = ({ data }) => follow(data);
}

function freshen(version) {
  if (version.phase === "uploading") version.phase = "waiting";
  if (version.expiresAt && Date.parse(version.expiresAt) < Date.now()) version.phase = "gone";
}

/** Takes note of what another tab has done with a photo. */
async function follow(id) {
  const kept = await store.photo(id);
  const known = photos.get(id);
  if (!kept && known) drop(known);
  if (!kept || known) return;
  photos.set(id, kept);
  tell(kept);
}

export function add(photo, file) {
  photos.set(photo.id, photo);
  if (file) files.set(photo.id, file);
  store.save(photo);
  if (file && photo.versions.some(isUnfinished)) store.saveFile(photo.id, file);
  tell(photo);
}

export function addVersion(photo, version) {
  photo.versions.push(version);
  store.save(photo);
  tell(photo);
}

export function change(photo, version, changes) {
  Object.assign(version, changes);
  tell(photo);
  if (!photos.has(photo.id) || Object.keys(changes).every((name) => PASSING.has(name))) return;
  const kept = store.save(photo);
  if (changes.jobId) kept.then(() => otherTabs.postMessage(photo.id));
}

export function setPreview(photo, preview) {
  photo.preview = preview;
  tell(photo);
  if (photos.has(photo.id)) store.save(photo);
}

/** Returns the file of a photo; undefined if neither the page nor the browser has it any more. */
export const fileOf = async (photo) => files.get(photo.id) ?? (await store.file(photo.id));

/** Lets the browser's copy of a file go: the service has it now. */
export const handedOver = (photo) => store.eraseFile(photo.id);

export function remove(photo) {
  drop(photo);
  store.erase(photo.id).then(() => otherTabs.postMessage(photo.id));
}

function drop(photo) {
  photos.delete(photo.id);
  files.delete(photo.id);
  forget(photo.preview);
  for (const version of photo.versions) for (const each of [version.painting, version.full]) forget(each);
  tell(photo);
}

export function removeVersion(photo, version) {
  photo.versions = photo.versions.filter((each) => each !== version);
  for (const each of [version.painting, version.full]) forget(each);
  store.save(photo);
  tell(photo);
}

/** Has all views look again, after a change of language for example. */
export function tellAll() {
  for (const photo of all()) tell(photo);
}

function tell(photo) {
  changed.add(photo.id);
  if (isPlanned) return;
  isPlanned = true;
  setTimeout(() => {
    const ids = changed;
    changed = new Set();
    isPlanned = false;
    for (const listener of listeners) listener(ids);
  }, SOON_MS);
}
