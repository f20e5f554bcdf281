"""Paints with a Stylist as a queue does: reserves a slot, starts, and waits when none is free."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from serve_app.engine.stylist import Stylist
from serve_app.errors import TooLargeToPaint
from serve_app.frames import Frame, Size


def paint_all(stylist: Stylist, style: str, frames: Sequence[Frame]) -> list[Frame | Exception]:
    """Paints frames of one size, side by side where slots allow; returns each painted frame, or its error, in order."""
    outcomes: list[Frame | Exception] = []
    begun: deque[Future[list[Frame | Exception]]] = deque()
    size = Size(*frames[0].shape[:2])
    at = 0
    while at < len(frames) or begun:
        left = len(frames) - at
        try:
            slot = stylist.reserve(style, size, left, left, left)
        except TooLargeToPaint as refusal:  # raised only while nothing is painted
            outcomes.append(refusal)
            at += 1
            continue
        if slot is None:
            outcomes += begun.popleft().result()
            continue
        begun.append(stylist.start(slot, style, frames[at : at + slot.count]))
        at += slot.count
    return outcomes
