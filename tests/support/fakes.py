"""A pipeline without Ray and torch: real decoding, real encoding, and a negative for a painting."""

import asyncio
import threading
from pathlib import Path
from typing import Any

from serve_app.frames import Client, EncodedImage, ImageFormat, Receipt, StylizeRequest
from serve_app.images.decode import decode
from serve_app.images.encode import MEDIA_TYPES, encode
from serve_app.images.header import read_header, refuse_large
from serve_app.images.resize import painted_size
from serve_app.jobs.works import painter_name
from serve_app.settings import CodecSettings, IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style
from serve_app.web.events import Streams
from serve_app.web.keys import Keys, KeysOff
from serve_app.web.pipeline import Jobs


def fake_settings(**changes: Any) -> IngressSettings:
    """Settings whose default style a `FakePipeline` has."""
    return IngressSettings(**{"default_style": "toon", **changes})


class FakePipeline:
    """The routes' `Pipeline`, painting by inverting the frame.

    Attributes:
        fault: raised instead of painting, while it is set.
        may_paint: paintings wait while it is not set.
        requests: what was asked for, in the order in which they arrived.
        clients: their clients, in the same order.
        jobs: pictures that are painted later; None if they are switched off.
        painters: names of what would paint in a style, if it is not that of a style as installed at the start.
        stylizer: name of what paints in fact, if it is another.
        paint_ms: that painting takes, as the receipts say.
    """

    def __init__(
        self,
        settings: IngressSettings | None = None,
        max_pixels: int | None = None,
        fault: Exception | None = None,
        ready: bool = True,
        keys: Keys | None = None,
        jobs: Jobs | None = None,
    ) -> None:
        self.settings = settings or fake_settings()
        self.keys: Keys = keys or KeysOff()
        self.jobs: Jobs | None = None
        self.streams: Streams | None = None
        if jobs is not None:
            self.have(jobs)
        self.max_pixels = max_pixels or CodecSettings().max_pixels
        self.fault = fault
        self.ready = ready
        self.may_paint = threading.Event()
        self.may_paint.set()
        self.requests: list[StylizeRequest] = []
        self.clients: list[Client] = []
        self.painters: dict[str, str] = {}
        self.stylizer: str | None = None
        self.paint_ms = 0.0
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

    def have(self, jobs: Jobs) -> None:
        """Switches jobs on."""
        self.jobs = jobs
        self.streams = Streams(jobs.news, lambda: self.settings.max_streams)

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        self.requests.append(request)
        self.clients.append(client)
        if self.fault is not None:
            raise self.fault
        painter = self.painter(request.style) if self.stylizer is None else self.stylizer
        painting = paint(data, request, self.max_pixels, painter, self.paint_ms)
        await asyncio.to_thread(self.may_paint.wait, 60)
        return painting

    def painter(self, style: str) -> str:
        return self.painters.get(style, painter_name(f"digest of {style}", "auto"))

    async def check(self, data: bytes, request: StylizeRequest) -> int:
        header = read_header(data)
        if header.stored is None:
            return request.max_side**2
        refuse_large(header.stored, self.max_pixels)
        return painted_size(header.stored, request.max_side, request.multiple).pixels

    async def upright(self, data: bytes, request: StylizeRequest) -> tuple[bytes, str]:
        image = decode(data, request, self.max_pixels)
        format: ImageFormat = "jpeg" if image.alpha is None else "png"
        return encode(image.frame, image.alpha, format), MEDIA_TYPES[format]

    async def is_ready(self) -> bool:
        return self.ready


def paint(
    data: bytes,
    request: StylizeRequest,
    max_pixels: int = CodecSettings().max_pixels,
    painter: str = "",
    paint_ms: float = 0.0,
) -> EncodedImage:
    """Paints a photograph by inverting its frame."""
    image = decode(data, request, max_pixels)
    timings_ms = {"decode": 1.0, "queue": 0.0, "paint": paint_ms, "encode": 1.0}
    return EncodedImage(
        encode(255 - image.frame, image.alpha, request.format, request.quality),
        MEDIA_TYPES[request.format],
        Receipt(request.style, image.original, image.size, timings_ms, painter),
    )
