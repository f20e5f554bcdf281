/** The slider of before and after: a range input over two pictures, of which the upper one is cut off. */

import { t } from "./i18n.js";

/** Makes an element with `data-compare` work. */
export function makeCompare(element) {
  const input = element.querySelector("input");
  const show = () => {
    const { value } = input;
    element.style.setProperty("--at", `${value}%`);
    element.classList.toggle("at-left", value < 12);
    element.classList.toggle("at-right", value > 88);
    input.setAttribute("aria-valuetext", t("compareValue", { photo: Number(value), painting: 100 - value }));
  };
  input.addEventListener("input", show);
  show();
  return show;
}

/** Moves a slider to the middle. */
export function center(element) {
  const input = element.querySelector("input");
  input.value = 50;
  input.dispatchEvent(new Event("input"));
}
