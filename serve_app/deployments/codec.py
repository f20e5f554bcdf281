"""The CPU preprocessing replica: decodes photographs in processes of its own, has them painted, and encodes them."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.autoscaling import Occupancy
from serve_app.deployments.calls import Callee
from serve_app.deployments.logs import log_to_serve
from serve_app.deployments.metrics import CodecMetrics, Interval
from serve_app.deployments.retirement import Retirement
from serve_app.deployments.steps import Handed, Painted, Stylized, Upright, fetch, frame_lost, hand_over, is_small
from serve_app.deployments.tracing import start_tracing, step_span
from serve_app.errors import RequestError
from serve_app.frames import DecodedImage, Size, StylizeRequest
from serve_app.images.encode import MEDIA_TYPES, encode
from serve_app.images.header import ImageHeader, refuse_large
from serve_app.images.pool import DecodeLimits, DecoderPool
from serve_app.jobs.works import confirmed
from serve_app.settings import CodecSettings, load_settings

ENCODERS = 4  # paintings encoded at a time


@serve.deployment(user_config={})
class Codec:
    """Decodes in processes that can be killed, since uploads may be hostile; encodes the Stylizer's frames in threads.

    A refusal is yielded, not raised: Serve logs a traceback for every exception, and a user's mistake is not a fault.
    """

    def __init__(self, stylizer: DeploymentHandle[Any]) -> None:
        self.metrics = CodecMetrics()
        log_to_serve()
        start_tracing()
        self.settings = CodecSettings()
        self.pool = DecoderPool(self.settings.decoder_processes, self.settings.memory_bytes)
        self.encoders = ThreadPoolExecutor(ENCODERS, "encode")
        self.stylizer = Callee(stylizer)
        self.occupancy = Occupancy()
        self.background = asyncio.Semaphore(self.settings.background_places)
        self.retirement = Retirement(self.metrics.retires)
        self.interval = Interval(lambda: self.metrics.publish(self.pool.server.pid))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes."""
        self.settings = load_settings(CodecSettings, user_config, "Codec.user_config")
        self.background = asyncio.Semaphore(self.settings.background_places)
        self.pool.resize(self.settings.decoder_processes, self.settings.memory_bytes)
        self.interval.start()

    async def stylize(
        self,
        upload: NDArray[np.uint8],
        header: ImageHeader,
        request: StylizeRequest,
        expires_s: float,
        background: bool = False,
        trace: str | None = None,
    ) -> AsyncIterator[Stylized | RequestError]:
        """Decodes a photograph, has it painted and encodes the painting; ends at once when the call is cancelled.

        Args:
            upload: the file as it was uploaded.
            header: as `read_header` has read it.
            request: the client's options.
            expires_s: seconds from now after which it must not be painted any more.
            background: it is a job's, and those of people who wait go first.
            trace: the `traceparent` of the request, if it is traced.
        """
        turns: AbstractAsyncContextManager[Any] = self.background if background else nullcontext()
        expires_at = time.monotonic() + expires_s
        try:
            async with turns:
                with step_span("decode", trace):
                    decoded = await self.decode(upload, header, request)
            left_s = expires_at - time.monotonic()
            frame = decoded.frame
            painted: Painted = await self.stylizer.call(
                "paint", frame, request.style, left_s, background, is_small=is_small(frame), trace=trace
            )
            async with turns:
                with step_span("encode", trace):
                    stylized = await self.encode(painted, decoded, request)
            yield stylized
        except RequestError as refusal:
            yield refusal

    async def decode(self, upload: NDArray[np.uint8], header: ImageHeader, request: StylizeRequest) -> "Decoded":
        """Decodes a photograph and resizes it to the size it is painted at.

        Raises:
            RequestError: what `DecoderPool.decoded` raises.
        """
        limits = DecodeLimits(self.settings.max_pixels, self.settings.decode_timeout_s)
        with self.occupancy.one():
            began = time.perf_counter()
            async with self.pool.decoded(upload.data, header, request, limits) as image:
                return await asyncio.to_thread(Decoded, image, began)

    async def encode(self, painted: Painted, decoded: "Decoded", request: StylizeRequest) -> Stylized:
        """Encodes a painting, with the transparency of its photograph where the format has any.

        Raises:
            Lost: if the painting has gone with the process that made it.
        """
        loop = asyncio.get_running_loop()
        with self.occupancy.one():
            return await loop.run_in_executor(self.encoders, encoded, painted, decoded, request)

    async def check(self, header: ImageHeader) -> AsyncIterator[RequestError | None]:
        """Yields the refusal of a photograph that is never decoded, by its header; None if it may be."""
        try:
            if header.stored is not None:
                refuse_large(header.stored, self.settings.max_pixels)
            yield None
        except RequestError as refusal:
            yield refusal

    async def upright(
        self, upload: NDArray[np.uint8], header: ImageHeader, request: StylizeRequest
    ) -> AsyncIterator[Upright | RequestError]:
        """Yields a photograph upright, at the size that it is painted at: a JPEG, or a PNG if it is transparent."""
        try:
            async with self.background:
                decoded = await self.decode(upload, header, request)
                wanted = replace(request, format="jpeg" if decoded.alpha is None else "png", quality=None)
                encoded = await self.encode(Painted(decoded.frame, 0.0), decoded, wanted)
            yield Upright(encoded.data, MEDIA_TYPES[wanted.format])
        except RequestError as refusal:
            yield refusal

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the figure that `autoscaling.Work` decides by."""
        return self.occupancy.report() | self.retirement.figures()

    async def check_health(self) -> None:
        """Looks whether this replica should be replaced.

        Raises:
            Retiring: if it should, once its photographs are done.
        """
        await self.retirement.check(self.settings)


class Decoded:
    """A decoded photograph on its way to the Stylizer and back.

    Attributes:
        frame: that is to be painted.
        alpha: the transparency; None where the photograph is opaque.
        original: its upright size before resizing.
        painted: the size of its frame.
        took_ms: milliseconds of decoding and resizing.
    """

    def __init__(self, image: DecodedImage, began: float) -> None:
        self.frame: Handed = hand_over(image.frame)
        self.alpha: Handed | None = None if image.alpha is None else hand_over(image.alpha)
        self.original: Size = image.original
        self.painted: Size = image.size
        self.took_ms = elapsed_ms(began)


def encoded(painted: Painted, decoded: Decoded, request: StylizeRequest) -> Stylized:
    """Encodes a painting."""
    began = time.perf_counter()
    try:
        alpha = None if decoded.alpha is None else fetch(decoded.alpha)
        frame = fetch(painted.frame)
    except RayError:
        raise frame_lost("painted") from None
    data = encode(frame, alpha, request.format, request.quality)
    worked_ms = {"decode": decoded.took_ms, "paint": painted.took_ms, "encode": elapsed_ms(began)}
    return Stylized(data, decoded.original, decoded.painted, worked_ms, confirmed(painted.painter))


def elapsed_ms(began: float) -> float:
    """Returns the milliseconds since a `time.perf_counter()`."""
    return 1000 * (time.perf_counter() - began)
