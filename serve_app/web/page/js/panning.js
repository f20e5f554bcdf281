/** Lets a large picture be dragged in its pane; wheels, fingers and arrow keys scroll it anyway. */

export function startPanning(pane) {
  let from = null;
  pane.addEventListener("pointerdown", (event) => {
    if (pane.tabIndex < 0 || event.pointerType !== "mouse" || event.target.matches("input")) return;
    from = { x: event.clientX + pane.scrollLeft, y: event.clientY + pane.scrollTop };
    pane.setPointerCapture(event.pointerId);
    event.preventDefault();
    pane.focus();
  });
  pane.addEventListener("pointermove", (event) => {
    if (from) pane.scrollTo(from.x - event.clientX, from.y - event.clientY);
  });
  for (const name of ["pointerup", "pointercancel"]) pane.addEventListener(name, () => (from = null));
}
