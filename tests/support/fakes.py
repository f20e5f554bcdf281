"""A pipeline without Ray and torch: real decoding, real encoding, and a negative for a painting."""

import asyncio
from dataclasses import replace
from pathlib import Path

from serve_app.frames import Order, Picture
from serve_app.images.decode import decode
from serve_app.images.encode import encode
from serve_app.settings import CodecSettings, IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style


class FakePipeline:
    """The routes' `Pipeline`, painting by inverting the frame.

    Attributes:
        fault: raised instead of painting, while it is set.
        pause_s: seconds that a painting takes at least.
        orders: what was asked for, in order of arrival.
        clients: who asked, in the same order.
    """

    def __init__(
        self,
        settings: IngressSettings | None = None,
        max_pixels: int | None = None,
        fault: Exception | None = None,
        ready: bool = True,
        pause_s: float = 0,
    ) -> None:
        self.settings = settings or IngressSettings()
        self.max_pixels = max_pixels or CodecSettings().max_pixels
        self.fault = fault
        self.ready = ready
        self.pause_s = pause_s
        self.orders: list[Order] = []
        self.clients: list[str] = []
        self.styles = {
            "toon": InstalledStyle(
                name="toon",
                title="Toon",
                resize="align",
                eps=1e-5,
                licence="MIT",
                source="https://example.org/toon",
                credit="the fake studio",
                path=Path("/nowhere"),
            ),
            "papaya": InstalledStyle(
                name="papaya",
                title="Papaya (scenes)",
                resize="tf",
                eps=1e-12,
                licence="non-commercial",
                source="https://example.org/papaya",
                credit="the fake orchard",
                path=Path("/nowhere"),
            ),
        }
        self.catalogue = {
            "mango": Style(
                name="mango",
                title="Mango, which is not installed",
                resize="align",
                eps=1e-5,
                licence="MIT",
                source="https://example.org/mango",
                credit="the fake orchard",
            )
        }

    async def stylize(self, data: bytes, order: Order, client: str) -> Picture:
        self.orders.append(order)
        self.clients.append(client)
        if self.fault is not None:
            raise self.fault
        photo = decode(data, order, self.max_pixels)
        await asyncio.sleep(self.pause_s)
        receipt = photo.receipt.timed(queue=0.0, paint=1000 * self.pause_s)
        return encode(replace(photo, frame=255 - photo.frame, receipt=receipt), order.format, order.quality)

    async def is_ready(self) -> bool:
        return self.ready
