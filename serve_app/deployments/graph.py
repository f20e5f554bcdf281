"""One photograph through the deployments: within its deadline, and again if a replica is lost."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.calls import Callee
from serve_app.deployments.steps import LOST_RETRY_AFTER_S, SMALL_BYTES, Stylized, Upright
from serve_app.deployments.tracing import traceparent
from serve_app.errors import DeadlineExceeded, Lost, TooBusy
from serve_app.frames import EncodedImage, Receipt, StylizeRequest
from serve_app.images.encode import MEDIA_TYPES
from serve_app.images.header import ImageHeader
from serve_app.images.resize import fitted_size, painted_size

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # at one photograph: painting is pure, so it can be repeated after a replica has died
# Of a painting, so that its file, of up to four bytes a pixel and what the format adds, stays under gRPC's 4 MiB.
SMALL_PIXELS = 960 * 1024
CHECK_S = 5.0  # for the Codec's word on a header
TIMINGS = ("decode", "queue", "paint", "encode")


class Graph:
    """Codec and Stylizer, as those see them who want a photograph painted.

    Args:
        codec: the handle of the Codec, which calls the Stylizer.
    """

    def __init__(self, codec: DeploymentHandle[Any]) -> None:
        self._codec = Callee(codec)
        self._accepted_pixels = 0  # of the largest photograph that the Codec has let through by its header

    async def check(self, header: ImageHeader) -> None:
        """Asks the Codec whether a photograph is too large for it, unless it has let a larger one through.

        What it does not answer now it will say when the photograph is painted.

        Raises:
            TooManyPixels: if it is.
        """
        stored = header.stored.pixels if header.stored else 0
        if stored <= self._accepted_pixels:
            return
        with suppress(TimeoutError, TooBusy, Lost):
            async with asyncio.timeout(CHECK_S):
                await self._codec.call("check", header, is_small=True)
            self._accepted_pixels = stored

    async def upright(
        self, data: bytes, header: ImageHeader, request: StylizeRequest, timeout_s: float
    ) -> tuple[bytes, str]:
        """Returns a photograph upright, at the size that it is painted at, and the media type of its file.

        Raises:
            RequestError: if it cannot be decoded, or not within `timeout_s`.
            Lost: if the Codec was lost.
        """
        upload = np.frombuffer(data, np.uint8)
        try:
            async with asyncio.timeout(timeout_s):
                upright: Upright = await self._codec.call("upright", upload, header, request, is_small=False)
        except TimeoutError:
            raise DeadlineExceeded("The photograph could not be decoded in time. Try again later.") from None
        return upright.data, upright.media_type

    async def stylize(
        self, data: bytes, header: ImageHeader, request: StylizeRequest, background: bool = False
    ) -> Stylized:
        """Has a photograph painted within the request's `timeout_s`.

        Args:
            data: the file as it was uploaded.
            header: as `read_header` has read it.
            request: the client's options.
            background: it is a job's, and those of people who wait go first.

        Raises:
            DeadlineExceeded: if that has passed. An image that has not been painted by then never is.
            Lost: if replicas died with the photograph, `MAX_ATTEMPTS` times.
            RequestError: the refusal of a replica.
        """
        try:
            async with asyncio.timeout(request.timeout_s) as timeout:
                return await self._with_retries(data, header, request, timeout, background)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The picture was not painted within the {request.timeout_s:g} seconds that it was given. Allow more "
                "time, or try again later."
            ) from None

    async def _with_retries(
        self,
        data: bytes,
        header: ImageHeader,
        request: StylizeRequest,
        timeout: asyncio.Timeout,
        background: bool,
    ) -> Stylized:
        upload = np.frombuffer(data, np.uint8)  # an array goes to the object store as it is; bytes are pickled first
        is_small = upload.nbytes <= SMALL_BYTES and most_painted_pixels(header, request) <= SMALL_PIXELS
        for attempt in range(1, MAX_ATTEMPTS + 1):
            expires_s = (timeout.when() or 0) - asyncio.get_running_loop().time()
            try:
                stylized: Stylized = await self._codec.call(
                    "stylize", upload, header, request, expires_s, background, is_small=is_small, trace=traceparent()
                )
            except Lost:
                logger.warning("attempt %d at a picture was lost with what worked on it", attempt)
            else:
                return stylized
        raise Lost(
            "The processes that worked on the picture were lost, several times; try again later.",
            retry_after_s=LOST_RETRY_AFTER_S,
        )


def most_painted_pixels(header: ImageHeader, request: StylizeRequest) -> int:
    """Returns how many pixels of a photograph will be painted; the most there can be if its header does not tell.

    Raises:
        TooSmall: if a painted side would be under the generator's minimum.
    """
    if header.stored is None:
        return request.max_side**2
    pixels = painted_size(header.stored, request.max_side, request.multiple).pixels
    if request.box is None:
        return pixels
    either = (request.box, request.box.transposed)  # whether the photograph will be turned is not known here
    return max(fitted_size(header.stored, request.max_side, request.multiple, box).pixels for box in either)


def encoded_image(request: StylizeRequest, stylized: Stylized, total_ms: float) -> EncodedImage:
    """Returns the answer with its receipt; whatever was not work in one of the steps was waiting in queues."""
    worked_ms = stylized.worked_ms
    queue_ms = max(total_ms - sum(worked_ms.values()), 0.0)
    timings_ms = {step: queue_ms if step == "queue" else worked_ms[step] for step in TIMINGS}
    receipt = Receipt(request.style, stylized.original, stylized.painted, timings_ms, stylized.painter)
    return EncodedImage(stylized.data, MEDIA_TYPES[request.format], receipt)
