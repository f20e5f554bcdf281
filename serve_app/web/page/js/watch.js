/** Hears of all unfinished jobs by one stream of events, and asks for them where that fails. */

import * as album from "./album.js";
import { call } from "./api.js";
import { take } from "./painting.js";
import { service } from "./service.js";

const MOST = 100; // jobs in one stream, and in one question
const SOON_MS = 250; // so that an album opens one stream, not fifty
const ASK_MS = 4000;
const STREAM_AGAIN_MS = 60_000;
const OVERDUE_MS = 8000;
const MOST_STREAMS = 3; // of all tabs: over HTTP/1.1 a browser has six connections to a service, and streams keep theirs

let stream = null;
let leave = null; // gives back the place among the streams of all tabs
let followed = new Set();
let opening = null;
let asking = null;
let noStreamUntil = 0;
let askedAt = 0;

const unfinished = () => album.versions((version) => version.jobId && ["queued", "running"].includes(version.phase));
const query = (ids) => [...ids].map((id) => `id=${encodeURIComponent(id)}`).join("&");

/** Follows what has become unfinished, and lets the stream go when nothing is. */
export function follow() {
  const ids = unfinished().map(([, version]) => version.jobId);
  if (!ids.length) {
    close();
    clearTimeout(asking);
    asking = null;
    return;
  }
  if (Date.now() < noStreamUntil || ids.length > MOST) askSoon();
  if (Date.now() >= noStreamUntil && isStale(ids)) openSoon();
}

/** Whether the stream lacks jobs that it has room for. */
function isStale(ids) {
  const heard = ids.filter((id) => followed.has(id)).length;
  return heard < ids.length && (followed.size < MOST || heard < MOST / 2);
}

/** Asks anew for times that have run out: events tell of places, and a time changes without them too. */
export function refresh() {
  const now = Date.now();
  const isOver = ({ eta, etaAt }) => eta === null || eta === undefined || etaAt + 1000 * eta < now;
  if (now - askedAt < OVERDUE_MS || !unfinished().some(([, version]) => isOver(version))) return;
  ask().catch(() => {});
}

/** Asks for all of them now, after a time without a network for example. */
export async function ask() {
  askedAt = Date.now();
  const ids = unfinished().map(([, version]) => version.jobId);
  for (let at = 0; at < ids.length; at += MOST) await askFor(ids.slice(at, at + MOST));
}

function openSoon() {
  if (opening !== null) return;
  opening = setTimeout(async () => {
    leave ??= await enter();
    opening = null;
    if (leave) open();
    else askInstead();
  }, SOON_MS);
}

/** Takes a place among the streams of all tabs, and returns what gives it back; null if none is free. */
async function enter() {
  if (!navigator.locks) return () => {}; // no secure context: then tabs cannot know of each other
  for (let place = 0; place < MOST_STREAMS; place++) {
    const leave = await new Promise((resolve) =>
      navigator.locks.request(`animegan-stream-${place}`, { ifAvailable: true }, (lock) =>
        lock ? new Promise((end) => resolve(end)) : resolve(null),
      ),
    );
    if (leave) return leave;
  }
  return null;
}

function open() {
  stream?.close();
  const ids = unfinished()
    .slice(0, MOST)
    .map(([, version]) => version.jobId);
  if (!ids.length || !service.jobs) return close();
  followed = new Set(ids);
  stream = new EventSource(`v1/jobs/events?${query(ids)}`);
  for (const name of ["position", "running", "done", "failed"]) {
    stream.addEventListener(name, (event) => hear(JSON.parse(event.data)));
  }
  stream.onerror = () => {
    if (stream?.readyState !== EventSource.CLOSED) return; // it comes back by itself
    askInstead();
  };
}

/** Does without a stream for a while. */
function askInstead() {
  close();
  noStreamUntil = Date.now() + STREAM_AGAIN_MS;
  setTimeout(follow, STREAM_AGAIN_MS);
  ask().catch(() => {});
  follow();
}

function close() {
  stream?.close();
  stream = null;
  leave?.();
  leave = null;
  followed = new Set();
}

function hear(job) {
  const [found] = album.versions((version) => version.jobId === job.id);
  if (found) take(found[0], found[1], job);
}

function askSoon() {
  asking ??= setTimeout(async () => {
    asking = null;
    await ask().catch(() => {});
    follow();
  }, ASK_MS);
}

async function askFor(ids) {
  const { jobs } = await (await call(`v1/jobs?${query(ids)}`)).json();
  const known = new Set(jobs.map((job) => job.id));
  for (const job of jobs) hear(job);
  for (const id of ids) if (!known.has(id)) hear({ id, status: "expired", error: { code: "unknown-job" } });
}
