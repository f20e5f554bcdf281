/** Talks to the service: addresses are relative, so that the page works under any prefix. */

const KEY = "animegan-key"; // in the session's storage

/** A refusal of the service, or a failure on the way there. Its members are those of a problem document. */
export class Refusal extends Error {
  constructor(problem) {
    super(problem.detail ?? problem.code);
    this.problem = problem;
    this.code = problem.code;
    this.retryAfter = problem.retry_after_s ?? null;
  }
}

export const OFFLINE = "offline";
export const offline = () => new Refusal({ code: OFFLINE });

/** The API key: kept until the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

const keyHeader = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

/** Asks the service for something; raises a Refusal unless the answer is good. */
export async function call(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { ...options, headers: { ...keyHeader(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw offline();
  }
  if (!answer.ok) throw refusal(answer.status, await textOf(answer), answer.headers.get("Retry-After"));
  return answer;
}

/** Fetches a picture. */
export async function picture(address, options) {
  const answer = await call(address, options);
  try {
    return await answer.blob();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw offline();
  }
}

const textOf = (answer) => answer.text().catch(() => "");

function refusal(status, text, retryAfter) {
  let problem = null;
  try {
    problem = JSON.parse(text);
  } catch {
    // something between here and the service answered, in its own format
  }
  if (!problem?.code) problem = { code: status >= 500 ? "no-answer" : "unknown", status };
  const after = Number.parseInt(retryAfter ?? "", 10);
  if (Number.isFinite(after)) problem.retry_after_s = after;
  return new Refusal(problem);
}

/**
 * Posts a photo. XMLHttpRequest, because fetch does not tell how much has been sent.
 *
 * Returns the answer's body and its headers.
 */
export function send(address, { body, headers = {}, responseType = "json", onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.responseType = "blob"; // whatever comes: a refusal of a painting is no picture
    for (const [name, value] of Object.entries({ ...keyHeader(), ...headers })) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress?.(event.loaded / event.total);
    request.onerror = () => reject(offline());
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onload = () => read(request, responseType).then(resolve, reject);
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

async function read(request, responseType) {
  const isGood = request.status >= 200 && request.status < 300;
  const header = (name) => request.getResponseHeader(name);
  if (!isGood) throw refusal(request.status, await request.response.text(), header("Retry-After"));
  if (responseType === "blob") return { body: request.response, header };
  try {
    return { body: JSON.parse(await request.response.text()), header };
  } catch {
    throw new Refusal({ code: "no-answer" });
  }
}
