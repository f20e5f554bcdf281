/** Short forms of what every view does with the document. */

export const find = (id) => document.getElementById(id);

/** Returns a copy of the one element in a template. */
export const clone = (id) => find(id).content.firstElementChild.cloneNode(true);

/** Sets the text of an element, and leaves the document alone if it is that already. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets properties of an element that differ. */
export function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) if (element[name] !== value) element[name] = value;
}

/** Gives an element a name for those who do not see it. */
export function label(element, text) {
  if (element.getAttribute("aria-label") !== text) element.setAttribute("aria-label", text);
}

const addresses = new WeakMap();

/** Returns the address of a picture in memory; the same picture has the same address until it is forgotten. */
export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

/** Lets the memory of a picture go. */
export function forget(blob) {
  if (!blob || !addresses.has(blob)) return;
  URL.revokeObjectURL(addresses.get(blob));
  addresses.delete(blob);
}
