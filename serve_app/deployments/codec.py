"""The CPU preprocessing replica: decodes photographs in processes of its own, and encodes painted frames."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError

from serve_app.deployments.steps import Decoded, Encoded, Painted, fetch, frame_lost, hand_over
from serve_app.errors import RequestError
from serve_app.frames import DecodedImage, ImageFormat, StylizeRequest
from serve_app.images.encode import encode
from serve_app.images.header import ImageHeader, refuse_large
from serve_app.images.pool import DecodeLimits, DecoderPool
from serve_app.settings import CodecSettings, load_settings

ENCODERS = 4  # paintings encoded at a time


@serve.deployment(user_config={})
class Codec:
    """Decodes in processes that can be killed, since uploads may be hostile; encodes its own frames in threads.

    A refusal is returned, not raised: Serve logs a traceback for every exception, and a user's mistake is not a fault.
    """

    def __init__(self) -> None:
        self.settings = CodecSettings()
        self.pool = DecoderPool(self.settings.decoder_processes, self.settings.memory_bytes)
        self.encoders = ThreadPoolExecutor(ENCODERS, "encode")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes."""
        self.settings = load_settings(CodecSettings, user_config, "Codec.user_config")
        self.pool.resize(self.settings.decoder_processes, self.settings.memory_bytes)

    async def decode(
        self, upload: NDArray[np.uint8], header: ImageHeader, request: StylizeRequest
    ) -> Decoded | RequestError:
        """Decodes a photograph and resizes it to the size it is painted at; ends at once when the call is cancelled."""
        began = time.perf_counter()
        limits = DecodeLimits(self.settings.max_pixels, self.settings.decode_timeout_s)
        try:
            async with self.pool.decoded(upload.data, header, request, limits) as image:
                return await asyncio.to_thread(stored, image, began)
        except RequestError as refusal:
            return refusal

    async def check(self, header: ImageHeader) -> RequestError | None:
        """Returns the refusal of a photograph that is never decoded, by its header; None if it may be."""
        try:
            if header.stored is not None:
                refuse_large(header.stored, self.settings.max_pixels)
        except RequestError as refusal:
            return refusal
        return None

    async def encode(
        self, painted: Painted, decoded: Decoded, format: ImageFormat, quality: int | None
    ) -> Encoded | RequestError:
        """Encodes a painting, with the transparency of its photograph where the format has any."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.encoders, encoded, painted, decoded, format, quality)


def stored(image: DecodedImage, began: float) -> Decoded:
    """Hands a decoded image over to the replica that paints it."""
    return Decoded(
        hand_over(image.frame),
        None if image.alpha is None else hand_over(image.alpha),
        image.original,
        image.size,
        elapsed_ms(began),
    )


def encoded(painted: Painted, decoded: Decoded, format: ImageFormat, quality: int | None) -> Encoded | RequestError:
    """Encodes a painting."""
    began = time.perf_counter()
    try:
        alpha = None if decoded.alpha is None else fetch(decoded.alpha)
        frame = fetch(painted.frame)
    except RayError:
        return frame_lost("painted")
    return Encoded(encode(frame, alpha, format, quality), elapsed_ms(began))


def elapsed_ms(began: float) -> float:
    """Returns the milliseconds since a `time.perf_counter()`."""
    return 1000 * (time.perf_counter() - began)
