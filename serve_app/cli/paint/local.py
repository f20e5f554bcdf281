"""Paints photographs in this process, through the steps of the service: decode, batch by size, paint, encode.

Files are decoded in processes of their own, so one that crashes its decoder, takes too much memory or never ends is
refused, and the others are painted. Decoding and encoding go on while others are painted.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from serve_app.engine.host_memory import available_bytes
from serve_app.errors import AnimeganError
from serve_app.frames import DecodedImage, Device, EncodedImage, Frame, ImageFormat, Precision, Receipt, Size
from serve_app.images.encode import MEDIA_TYPES, encode
from serve_app.images.header import read_header
from serve_app.images.pool import DecodeLimits, DecoderPool
from serve_app.queueing.batching import Batcher
from serve_app.settings import CodecSettings

if TYPE_CHECKING:  # it imports torch
    from serve_app.engine.slots import Slot

MAX_BYTES = 512 * 2**20  # of one file
MAX_PIXELS = 256_000_000  # of one photograph: the largest cameras have 200 megapixels
DECODE_TIMEOUT_S = 60  # for files of one's own, on a machine that may be busy
DECODERS = 4  # processes at most: beyond some, decoding takes painting's cores
ENCODERS = 2
PAINTED_AT_ONCE = 8  # photographs on the device
AT_ONCE = 3 * PAINTED_AT_ONCE  # as many again wait to be painted, so batches fill, and as many are read or written
PIXEL_BYTES = 8  # of a decoded image and its painting, each with its transparency


@dataclass(frozen=True)
class Share:
    """The part of a machine that one of several painters may take.

    Attributes:
        device: auto (CUDA where there is a GPU), cpu or cuda.
        cpus: cores for painting and decoding; None for all.
        gpus: the part of a GPU.
        painters: as many take equal parts of the free memory.
    """

    device: Device = "auto"
    cpus: int | None = None
    gpus: float = 1
    painters: int = 1

    @property
    def available_bytes(self) -> int:
        """The free memory of this machine that is this painter's."""
        return available_bytes() // self.painters


class LocalPainter:
    """Paints in one style, in this process; a context manager, for one event loop. It is the `Device` of its batcher.

    Args:
        style: name of an installed style.
        precision: of the generator, as `Painter` has it.
        max_side: larger photographs are fitted to this longer side, in pixels.
        quality: 1 to 100; None for each format's default.
        share: of the machine; by default all of it.

    Raises:
        UnknownStyle: if the style is not installed.
        SettingsError, DeviceError: what `Painter` raises.
        AnimeganError: if no process can be started that decodes.
    """

    at_once = AT_ONCE
    max_bytes = MAX_BYTES

    def __init__(
        self, style: str, precision: Precision, max_side: int, quality: int | None, share: Share | None = None
    ) -> None:
        # Threads of torch that spin while they wait would take their cores from decoders.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from serve_app.painter import Painter

        share = share or Share()
        free_bytes = share.available_bytes
        self._painter = Painter(
            style,
            precision,
            share.device,
            max_side,
            memory_bytes=None if share.painters == 1 or share.device == "cuda" else free_bytes // 2,
            threads=share.cpus or "host",
            gpu_share=share.gpus,
        )
        self._limits = DecodeLimits(MAX_PIXELS, DECODE_TIMEOUT_S)
        self._quality = quality
        try:
            decoders = min(DECODERS, share.cpus or os.cpu_count() or 1)
            self._pool = DecoderPool(decoders, min(CodecSettings().memory_bytes, free_bytes // 4))
        except RuntimeError as error:
            raise AnimeganError(str(error)) from None
        self._batcher: Batcher[Size, Frame, Frame] = Batcher(self, PAINTED_AT_ONCE)
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")

    async def __aenter__(self) -> "LocalPainter":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._pool.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)
        if kind is None:
            self._painter.close()

    def held_bytes(self, file_bytes: int) -> int:
        """Returns an upper bound on the memory of a photograph, its decoded image and its painting."""
        return file_bytes + PIXEL_BYTES * self._painter.request.max_side**2

    async def paint(self, data: bytes, format: ImageFormat) -> EncodedImage:
        """Paints the bytes of a photograph.

        Raises:
            RequestError: if it cannot be decoded, or is too small or too large to paint.
            RuntimeError: if painting failed for another reason, which is in the log.
        """
        request = self._painter.request
        async with self._pool.decoded(data, read_header(data), request, self._limits) as shared:
            image = await asyncio.to_thread(copied, shared)
        done = await self._batcher.submit(image.size, image.frame, image.size.pixels)
        painting = await asyncio.get_running_loop().run_in_executor(
            self._encoders, encode, done.result, image.alpha, format, self._quality
        )
        return EncodedImage(painting, MEDIA_TYPES[format], Receipt(request.style, image.original, image.size))

    def reserve(self, size: Size, same_size: int, waiting: int, room: int) -> "Slot | None":
        """Reserves memory and threads for the next batch; see `queueing.batching.Device`."""
        return self._painter.stylist.reserve(self._painter.request.style, size, same_size, waiting, room)

    async def run(self, slot: "Slot", size: Size, frames: list[Frame]) -> list[Frame | Exception]:
        """Paints one batch; see `queueing.batching.Device`."""
        return await asyncio.wrap_future(self._painter.stylist.start(slot, self._painter.request.style, frames))


def copied(image: DecodedImage) -> DecodedImage:
    """Returns a decoded image that shares no memory with its decoder."""
    return DecodedImage(np.array(image.frame), None if image.alpha is None else np.array(image.alpha), image.original)
