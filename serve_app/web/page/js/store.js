/**
 * What the browser keeps: the photos' cards, and the files of those that are not yet uploaded.
 *
 * A browser may refuse to keep anything, in a private window for example. Then the page works, and forgets at its end.
 */

const PHOTOS = "photos"; // cards, with ids of jobs and small pictures
const FILES = "files"; // by the id of their photo
let database = null;

const finished = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Opens the database. Services under several prefixes of a host have one each. */
export async function open() {
  try {
    const request = indexedDB.open(`animegan ${location.pathname}`, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(PHOTOS, { keyPath: "id" });
      request.result.createObjectStore(FILES);
    };
    database = await finished(request);
  } catch {
    database = null;
  }
}

async function use(name, mode, work) {
  if (!database) return undefined;
  try {
    return await finished(work(database.transaction(name, mode).objectStore(name)));
  } catch {
    return undefined; // no room, or the browser is closing
  }
}

export const photo = (id) => use(PHOTOS, "readonly", (table) => table.get(id));
export const photos = async () => (await use(PHOTOS, "readonly", (table) => table.getAll())) ?? [];
export const save = (photo) => use(PHOTOS, "readwrite", (table) => table.put(photo));
export const saveFile = (id, file) => use(FILES, "readwrite", (table) => table.put(file, id));
export const file = (id) => use(FILES, "readonly", (table) => table.get(id));
export const eraseFile = (id) => use(FILES, "readwrite", (table) => table.delete(id));
export const erase = (id) => Promise.all([use(PHOTOS, "readwrite", (table) => table.delete(id)), eraseFile(id)]);
