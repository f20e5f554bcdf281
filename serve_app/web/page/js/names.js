/** Names of files. */

const ENDINGS = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/avif": "avif" };

/** Returns the name under which a painting is saved. */
export function nameOf(photo, version) {
  const stem = photo.name.replace(/\.[^.]*$/, "") || "photo";
  return `${stem}-${version.style}.${ENDINGS[version.mediaType] ?? "jpg"}`;
}

/** Returns names that differ, for one folder. */
export function distinct(names) {
  const taken = new Set();
  return names.map((name) => {
    const [, stem, ending] = /^(.*?)(\.[^.]*)?$/s.exec(name);
    let free = name;
    for (let number = 2; taken.has(free.toLowerCase()); number += 1) free = `${stem} (${number})${ending ?? ""}`;
    taken.add(free.toLowerCase());
    return free;
  });
}
