/**
 * Sends photos to the service, a few at a time. It waits when the service is busy or away, and then goes on by itself.
 *
 * Every submission has a key of its own, so one that is sent again after a failure makes no second job.
 */

import * as album from "./album.js";
import { call, OFFLINE, Refusal, send } from "./api.js";
import { tooLarge } from "./files.js";
import { askForKey } from "./keys.js";
import { dismiss, fetchPictures, hasPhoto, take } from "./painting.js";
import { shrink } from "./pictures.js";
import { service } from "./service.js";

const AT_ONCE = 3;
const BACKOFF_S = [1, 2, 4, 8, 15];
const LATER_S = 5; // after a refusal that may pass, and does not say when
const PASSING = new Set([
  "too-busy",
  "not-ready",
  "stopping",
  "out-of-memory",
  "lost",
  "store-unavailable",
  "no-answer",
  "slow-upload",
]);

const sending = new Map(); // by version: what aborts it
let timer = null;
let failures = 0;
let isAsking = false;

/** Why nothing is being sent, and until when: `{code, until}` in milliseconds, or null. */
export let pause = null;

/** Begins to send what waits, as far as there are places. */
export function run() {
  if (!service.isKnown || isAsking) return;
  if (pause && pause.until > Date.now()) return;
  pause = null;
  const most = service.jobs ? AT_ONCE : 1;
  for (const [photo, version] of album.versions((each) => each.phase === "waiting")) {
    if (sending.size >= most) return;
    if (!sending.has(version)) begin(photo, version);
  }
}

/** Goes on at once: the network is back, or the person wishes it. */
export function resume() {
  clearTimeout(timer);
  pause = null;
  album.tellAll();
  run();
}

/** Cancels a version wherever it is. */
export async function cancel(photo, version) {
  const upload = sending.get(version);
  if (version.phase === "waiting" || (upload && version.progress < 1)) {
    upload?.controller.abort();
    album.change(photo, version, { phase: "cancelled" });
    album.handedOver(photo);
  } else if (upload) {
    upload.isUnwanted = true; // the service may have it already: it is cancelled when the answer has come
    album.change(photo, version, { phase: "cancelled" });
    if (!service.jobs) upload.controller.abort();
  } else if (album.isUnfinished(version)) {
    await dismiss(version);
    album.change(photo, version, { phase: "cancelled" });
  }
}

/** Paints a version again that has failed or was cancelled. */
export async function retry(photo, version) {
  const file = await album.fileOf(photo);
  const source = file || !hasPhoto(version) ? null : version.jobId;
  if (!file && !source && !version.source) {
    album.change(photo, version, { phase: "failed", problem: { code: "photo-gone" } });
    return;
  }
  const blank = { jobId: null, problem: null, receipt: null, expiresAt: null, painting: null, full: null };
  album.change(photo, version, {
    ...blank,
    key: album.newId(),
    source: source ?? version.source,
    phase: "waiting",
    progress: 0,
  });
  resume();
}

/** Paints a photo once more, from the photograph that the service still has; only without one it is sent again. */
export function again(photo, style, side) {
  const source = photo.versions.find(
    (each) => each.jobId && service.jobs && !["gone", "cancelled"].includes(each.phase),
  );
  album.addVersion(photo, album.newVersion(style, side, source?.jobId ?? null));
  run();
}

async function begin(photo, version) {
  const upload = { controller: new AbortController(), isUnwanted: false };
  sending.set(version, upload);
  album.change(photo, version, { phase: "uploading", progress: 0 });
  try {
    if (service.jobs) await submit(photo, version, upload);
    else await paintNow(photo, version, upload);
    failures = 0;
  } catch (error) {
    if (error.name !== "AbortError" && !upload.isUnwanted) await explain(photo, version, error);
  } finally {
    sending.delete(version);
    run();
  }
}

const optionsOf = (version) => new URLSearchParams({ style: version.style, max_side: version.side });

async function submit(photo, version, upload) {
  const options = optionsOf(version);
  if (version.source) options.set("source_job", version.source);
  const body = version.source ? null : await fileFor(photo);
  const { body: job } = await send(`v1/jobs?${options}`, {
    body,
    headers: { "Idempotency-Key": version.key },
    signal: upload.controller.signal,
    onProgress: (progress) => progress !== version.progress && album.change(photo, version, { progress }),
  });
  if (upload.isUnwanted) {
    await dismiss({ jobId: job.id }).catch(() => {});
    return;
  }
  take(photo, version, job);
  if (!photo.versions.some((each) => each.phase === "waiting" && !each.source)) album.handedOver(photo);
}

/** Paints while the page waits, where jobs are switched off. The browser keeps the painting then. */
async function paintNow(photo, version, upload) {
  const { body, header } = await send(`v1/stylize?${optionsOf(version)}`, {
    body: await fileFor(photo),
    responseType: "blob",
    signal: upload.controller.signal,
    onProgress: (progress) => album.change(photo, version, { progress }),
  });
  const [original, painted] = ["X-Original-Size", "X-Painted-Size"].map((name) => sizeOf(header(name)));
  const receipt = { style: header("X-Style"), original, painted, resized: header("X-Resized") === "true" };
  album.change(photo, version, { phase: "done", receipt, full: body, mediaType: body.type });
  album.change(photo, version, { painting: (await shrink(body)) ?? body });
}

function sizeOf(text) {
  const [width, height] = text.split("x").map(Number);
  return { width, height };
}

async function fileFor(photo) {
  const file = await album.fileOf(photo);
  if (!file) throw new Refusal({ code: "photo-gone" });
  if (file.size > service.maxBytes) throw new Refusal(tooLarge(file));
  return file;
}

/** Decides what a failure means: to wait, to ask for a key, to send the file after all, or that this was it. */
async function explain(photo, version, error) {
  const problem = error.problem ?? { code: "fault" };
  if (!error.problem) console.error(error);
  if (problem.code === OFFLINE || PASSING.has(problem.code)) {
    album.change(photo, version, { phase: "waiting", progress: 0 });
    wait(problem.code, error.retryAfter);
  } else if (problem.code === "jobs-off") {
    service.jobs = null;
    album.change(photo, version, { phase: "waiting", source: null });
  } else if (problem.code === "unauthorized") {
    await waitForKey(photo, version, problem);
  } else if (version.source && ["gone", "unknown-job"].includes(problem.code)) {
    const file = await album.fileOf(photo);
    if (file) album.change(photo, version, { phase: "waiting", source: null, key: album.newId() });
    else album.change(photo, version, { phase: "failed", problem: { code: "photo-gone" } });
  } else {
    album.change(photo, version, { phase: album.phaseOf(problem), problem });
    if (service.jobs) album.handedOver(photo);
  }
}

function wait(code, retryAfter) {
  const usual =
    code === OFFLINE || code === "no-answer" ? BACKOFF_S[Math.min(failures, BACKOFF_S.length - 1)] : LATER_S;
  failures += 1;
  pause = { code, until: Date.now() + 1000 * (retryAfter ?? usual) };
  clearTimeout(timer);
  timer = setTimeout(resume, pause.until - Date.now());
  album.tellAll();
}

async function waitForKey(photo, version, problem) {
  album.change(photo, version, { phase: "waiting", progress: 0 });
  if (isAsking) return;
  isAsking = true;
  const isGiven = await askForKey();
  isAsking = false;
  if (isGiven) return;
  for (const [each, waiting] of album.versions((one) => one.phase === "waiting")) {
    album.change(each, waiting, { phase: "failed", problem });
  }
}

/** Asks again for the small pictures that were missing when the page was closed. */
export function catchUp() {
  for (const [photo, version] of album.versions()) fetchPictures(photo, version);
}

/** Asks the service whether it answers, so that nobody waits for the end of a long pause. */
export async function probe() {
  if (!pause || pause.code !== OFFLINE) return;
  await call("livez").then(resume, () => {});
}
