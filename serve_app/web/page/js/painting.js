/** What the service says of a job, written into the version of the photo; and the small pictures of both. */

import * as album from "./album.js";
import { call, OFFLINE, picture } from "./api.js";
import { shrink } from "./pictures.js";
import { service } from "./service.js";

const AT_ONCE = 2;
const AGAIN_MS = 4000;
const PHASES = {
  queued: "queued",
  running: "running",
  succeeded: "done",
  cancelled: "cancelled",
  expired: "gone",
};

const fetches = []; // small pictures to be made
let running = 0;

export const imageOf = (version) => `v1/jobs/${version.jobId}/image`;
export const photoOf = (version) => `v1/jobs/${version.jobId}/photo`;

/** Takes note of a job as the service shows it. */
export function take(photo, version, job) {
  const phase = job.status === "failed" ? album.phaseOf(job.error) : (PHASES[job.status] ?? "gone");
  const isLate = !album.isUnfinished(version) && version.jobId === job.id && ["queued", "running"].includes(phase);
  if (isLate) return; // an older word that was overtaken
  const changes = { jobId: job.id, phase, position: job.position, eta: job.eta_s, etaAt: Date.now() };
  if (version.phase === phase && version.jobId === job.id) {
    delete changes.phase;
    delete changes.jobId;
  } else {
    Object.assign(changes, { problem: job.error, receipt: job.receipt, expiresAt: job.expires_at });
  }
  album.change(photo, version, changes);
  fetchPictures(photo, version);
}

/** Has the pictures fetched that a card still lacks. */
export function fetchPictures(photo, version) {
  if (!version.jobId || ["gone", "cancelled", "failed", "refused"].includes(version.phase)) return;
  if (version.phase === "done" && !version.painting) plan(version, "painting", () => fetchPainting(photo, version));
  // A kind of photo that this browser cannot draw: the service draws it, as soon as it has it.
  if (!photo.preview && photo.isUndrawable) plan(version, "preview", () => fetchPreview(photo, version));
}

/** Forgets a version at the service: cancels what waits, erases what is finished. */
export async function dismiss(version) {
  if (!version.jobId) return;
  try {
    await call(`v1/jobs/${version.jobId}`, { method: "DELETE" });
  } catch (error) {
    if (!["gone", "unknown-job"].includes(error.code)) throw error;
  }
}

/** Whether the photo of a finished version should still be at the service. */
export function hasPhoto(version) {
  if (!version.jobId || !service.jobs || ["gone", "cancelled"].includes(version.phase)) return false;
  if (!version.expiresAt) return true;
  const early = service.jobs.keep_for_s - service.jobs.keep_photos_for_s;
  return Date.parse(version.expiresAt) - 1000 * early > Date.now();
}

async function fetchPainting(photo, version) {
  const full = await picture(imageOf(version));
  const painting = (await shrink(full)) ?? full;
  album.change(photo, version, { painting, mediaType: full.type });
}

async function fetchPreview(photo, version) {
  if (photo.preview) return;
  album.setPreview(photo, await shrink(await picture(photoOf(version))));
}

function plan(version, what, work) {
  const name = `${version.jobId} ${what}`;
  if (fetches.some((each) => each.name === name)) return;
  fetches.push({ name, work, isRunning: false });
  next();
}

async function next() {
  const each = fetches.find((one) => !one.isRunning);
  if (!each || running >= AT_ONCE) return;
  each.isRunning = true;
  running += 1;
  const isAgain = await attempt(each.work);
  running -= 1;
  if (isAgain) setTimeout(() => Object.assign(each, { isRunning: false }) && next(), AGAIN_MS);
  else fetches.splice(fetches.indexOf(each), 1);
  next();
}

/** Returns whether to try again later. */
async function attempt(work) {
  try {
    await work();
    return false;
  } catch (error) {
    return error.code === OFFLINE || [429, 503, 502, 504].includes(error.problem?.status);
  }
}
