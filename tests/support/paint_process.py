"""`animegan paint` as a program with a backend that needs no torch: it inverts.

Run with the arguments of `animegan paint`. With PAINT_MOST=N in the environment, it hangs after N paintings.
"""

import asyncio
import os
import sys
from argparse import Namespace
from types import TracebackType

from fakes import paint

from serve_app.cli.main import main
from serve_app.cli.paint import command
from serve_app.frames import EncodedImage, ImageFormat, StylizeRequest

MAX_BYTES = 10**6


class InvertingBackend:
    """A `Backend` that inverts.

    Attributes:
        fault: raised instead of painting, while it is set.
        together: the first ones wait until so many are at work.
        pause_s: of every painting.
        painted: photographs until now.
        now, most: bytes of photographs at work, now and at most.
        most_at_work: photographs at a time.
    """

    at_once = 4
    max_bytes = MAX_BYTES

    def __init__(self, style: str = "toon", max_side: int = 1024, most: int | None = None) -> None:
        self.style, self.max_side = style, max_side
        self.fault: Exception | None = None
        self.together = 1
        self.pause_s = 0.0
        self.painted = 0
        self.now = self.most = 0
        self._left = most
        self._at_work = self.most_at_work = 0
        self._are_together = asyncio.Event()

    async def __aenter__(self) -> "InvertingBackend":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        pass

    def held_bytes(self, file_bytes: int) -> int:
        return file_bytes

    async def paint(self, data: bytes, format: ImageFormat) -> EncodedImage:
        self._at_work += 1
        self.most_at_work = max(self.most_at_work, self._at_work)
        if self._at_work >= self.together:
            self._are_together.set()
        self.now += len(data)
        self.most = max(self.most, self.now)
        try:
            if self._left is not None and self.painted >= self._left:
                await asyncio.Event().wait()
            self.painted += 1
            await self._are_together.wait()
            await asyncio.sleep(self.pause_s)
            if self.fault is not None:
                raise self.fault
            return paint(data, StylizeRequest(self.style, self.max_side, 1, format))
        finally:
            self.now -= len(data)
            self._at_work -= 1


def open_inverting(options: Namespace) -> InvertingBackend:
    most = os.environ.get("PAINT_MOST")
    return InvertingBackend(options.style or "toon", options.max_side or 1024, int(most) if most else None)


if __name__ == "__main__":
    command.open_backend = open_inverting
    sys.argv[:1] = ["animegan", "paint"]
    sys.exit(main())
