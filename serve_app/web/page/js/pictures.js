/** Small pictures for the cards, made one after another: fifty large photos at once would fill the memory. */

const SIDE = 640;
const QUALITY = 0.82;
let last = Promise.resolve();

/** Returns a small copy of a picture; null if this browser cannot draw it. */
export function shrink(blob) {
  const made = last.then(() => draw(blob, SIDE, "image/webp")).catch(() => null);
  last = made;
  return made;
}

/** Returns a picture as PNG, which is what clipboards take. */
export const toPng = (blob) => draw(blob, Number.POSITIVE_INFINITY, "image/png");

async function draw(blob, side, type) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, type, QUALITY));
}
