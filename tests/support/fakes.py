"""A pipeline without Ray and torch: real decoding, real encoding, and a negative for a painting."""

import asyncio
import threading
from pathlib import Path

from serve_app.frames import Client, EncodedImage, Receipt, StylizeRequest
from serve_app.images.decode import decode
from serve_app.images.encode import MEDIA_TYPES, encode
from serve_app.settings import CodecSettings, IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style
from serve_app.web.keys import Keys, KeysOff


class FakePipeline:
    """The routes' `Pipeline`, painting by inverting the frame.

    Attributes:
        fault: raised instead of painting, while it is set.
        may_paint: paintings wait while it is not set.
        requests: what was asked for, in the order in which they arrived.
        clients: their clients, in the same order.
    """

    def __init__(
        self,
        settings: IngressSettings | None = None,
        max_pixels: int | None = None,
        fault: Exception | None = None,
        ready: bool = True,
        keys: Keys | None = None,
    ) -> None:
        self.settings = settings or IngressSettings()
        self.keys: Keys = keys or KeysOff()
        self.max_pixels = max_pixels or CodecSettings().max_pixels
        self.fault = fault
        self.ready = ready
        self.may_paint = threading.Event()
        self.may_paint.set()
        self.requests: list[StylizeRequest] = []
        self.clients: list[Client] = []
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

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        self.requests.append(request)
        self.clients.append(client)
        if self.fault is not None:
            raise self.fault
        image = decode(data, request, self.max_pixels)
        await asyncio.to_thread(self.may_paint.wait, 60)
        timings_ms = {"decode": 1.0, "queue": 0.0, "paint": 0.0, "encode": 1.0}
        return EncodedImage(
            encode(255 - image.frame, image.alpha, request.format, request.quality),
            MEDIA_TYPES[request.format],
            Receipt(request.style, image.original, image.size, timings_ms),
        )

    async def is_ready(self) -> bool:
        return self.ready
