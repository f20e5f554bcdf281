/** Takes paintings out of the page: all as a zip, one to the clipboard or to another app. */

import * as album from "./album.js";
import { picture } from "./api.js";
import { distinct, nameOf } from "./names.js";
import { imageOf } from "./painting.js";
import { toPng } from "./pictures.js";

/** Returns a painting in full. */
export const fullOf = (version) => (version.full ? Promise.resolve(version.full) : picture(imageOf(version)));

/** Saves all paintings as one zip; `onProgress` hears the number of each and of all. */
export async function downloadAll(onProgress) {
  const { downloadZip } = await import("../vendor/client-zip.js");
  const painted = album.versions((version) => version.phase === "done");
  const names = distinct(painted.map(([photo, version]) => nameOf(photo, version)));
  async function* files() {
    for (const [at, [, version]] of painted.entries()) {
      onProgress(at + 1, painted.length);
      yield { name: names[at], input: await fullOf(version), lastModified: new Date() };
    }
  }
  save(await downloadZip(files()).blob(), "paintings.zip");
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
}

export const canCopy = () => Boolean(navigator.clipboard?.write && window.ClipboardItem);

/** Copies a painting. The clipboard takes a promise, because it must be asked before the painting is here. */
export function copy(version) {
  const png = fullOf(version).then(toPng);
  return navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
}

const fileOf = (photo, version, blob) => new File([blob], nameOf(photo, version), { type: blob.type });

/** Whether this device has a share sheet for pictures. */
export function canShare() {
  return Boolean(navigator.canShare?.({ files: [new File([], "painting.jpg", { type: "image/jpeg" })] }));
}

export const share = (photo, version, blob) => navigator.share({ files: [fileOf(photo, version, blob)] });
