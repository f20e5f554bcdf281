/** Looks at files before anything is sent: by the limits of the service, and by their first bytes as it does. */

import { service } from "./service.js";

const AVIF = ["avif", "avis"];
const HEIF = ["heic", "heix", "hevc", "hevx", "heim", "heis", "hevm", "hevs", "mif1", "msf1", "mif2"];
const RAW = ["CR\x02", "IIII", "MMMM"]; // at byte 8 of a TIFF: a camera's raw file
const SIGNATURES = [
  ["JPEG", "\xff\xd8\xff"],
  ["PNG", "\x89PNG\r\n\x1a\n"],
  ["GIF", "GIF87a"],
  ["GIF", "GIF89a"],
  ["BMP", "BM"],
  ["TIFF", "II*\0"],
  ["TIFF", "MM\0*"],
  ["TIFF", "II+\0"],
  ["TIFF", "MM\0+"],
];

/** Returns the kind of a file, or the problem with it: `{kind}` or `{problem}`. */
export async function inspect(file) {
  if (file.size === 0) return { problem: (await isReadable(file)) ? { code: "no-image" } : { code: "unreadable" } };
  if (service.maxBytes !== null && file.size > service.maxBytes) return { problem: tooLarge(file) };
  const head = await firstBytes(file);
  if (head === null) return { problem: { code: "unreadable" } };
  const kind = kindOf(head);
  return kind ? { kind } : { problem: { code: "unsupported-format" } };
}

/** Returns the problem of a file above the limit. */
export const tooLarge = (file) => ({
  code: "too-many-bytes",
  limit: service.maxBytes,
  actual: file.size,
  unit: "bytes",
});

/** Returns the kind of a picture by the text of its first bytes; undefined if it is none that is read. */
export function kindOf(head) {
  if (head.startsWith("RIFF") && head.slice(8, 12) === "WEBP") return "WebP";
  if (head.slice(4, 8) === "ftyp") return brandOf(head);
  if (/^(II|MM)/.test(head) && RAW.some((signature) => head.startsWith(signature, 8))) return undefined;
  return SIGNATURES.find(([, signature]) => head.startsWith(signature))?.[0];
}

function brandOf(head) {
  const length = [...head.slice(0, 4)].reduce((sum, byte) => sum * 256 + byte.charCodeAt(0), 0);
  const box = head.slice(8, Math.min(length, 256));
  const brands = (box.match(/.{4}/gs) ?? []).filter((_, at) => at !== 1); // the second is a version
  if (brands.some((brand) => AVIF.includes(brand))) return "AVIF";
  return brands.some((brand) => HEIF.includes(brand)) ? "HEIC" : undefined;
}

async function firstBytes(file) {
  try {
    const data = new Uint8Array(await file.slice(0, 256).arrayBuffer());
    return String.fromCharCode(...data);
  } catch {
    return null; // a folder, or a file that was moved since
  }
}

async function isReadable(file) {
  return (await firstBytes(file)) !== null;
}
