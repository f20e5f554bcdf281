"""The HTTP replica: bytes in, bytes out. It sends a photograph from step to step and never touches pixels."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Gauge
from starlette.types import ASGIApp

from serve_app.deployments import metrics
from serve_app.deployments.cancellation import DisconnectOnCancel, is_cancellation, log_no_cancellations
from serve_app.deployments.idle import IdleRelease
from serve_app.deployments.proxy import warn_without_guard
from serve_app.deployments.steps import LOST_RETRY_AFTER_S, Decoded, Encoded, Painted, frame_lost
from serve_app.engine.allocator import return_large_buffers
from serve_app.errors import DeadlineExceeded, Lost, RequestError, TooBusy
from serve_app.frames import Client, EncodedImage, ImageFormat, Receipt, StylizeRequest
from serve_app.images.encode import MEDIA_TYPES
from serve_app.images.header import ImageHeader, read_header
from serve_app.images.resize import painted_size
from serve_app.jobs.desk import JobDesk
from serve_app.queueing.admission import AdmissionController, Limits, QueueFull
from serve_app.settings import IngressSettings, Settings, load_settings
from serve_app.styles.catalogue import find_style, installed_styles, read_catalogue
from serve_app.web.keys import KeyRing, Keys, load_keys
from serve_app.web.routes import create_app

logger = logging.getLogger(__name__)

READY_CACHE_S = 1.0  # load balancers ask often, and each question goes to Serve's one controller
# Retry-After of Serve's own queues, as in prod.yaml. Admission is stricter, so they fill only if the settings disagree.
SERVE_RETRY_AFTER_S = 3
CHECK_S = 5.0  # for the Codec's word on a header
MAX_UPRIGHTS = 2  # photographs that are decoded at a time only to be shown
MAX_ATTEMPTS = 3  # at one photograph: painting is pure, so it can be repeated after a replica has died


@serve.deployment(user_config={})
@serve.ingress()
class Ingress:
    """Implements `serve_app.web.pipeline.Pipeline` over deployment handles."""

    def __init__(self, settings: Settings, codec: DeploymentHandle[Any], stylizer: DeploymentHandle[Any]) -> None:
        return_large_buffers()  # uploads, before all
        log_no_cancellations()
        self.codec = codec
        self.stylizer = stylizer
        self.settings = IngressSettings()
        self.keys: Keys = KeyRing()  # lets nobody in, until `reconfigure` has read the settings
        self.admission = AdmissionController(admission_limits(self.settings))
        self.styles = installed_styles(settings.styles_dir)
        self.catalogue = read_catalogue()
        self.refusals = Counter(metrics.REFUSALS, "Requests refused, by code.", ("code",))
        self.gauges = [
            Gauge(metrics.INSIDE_PICTURES, "Images admitted and not yet answered."),
            Gauge(metrics.INSIDE_PIXELS, "Their pixels, as they are painted."),
            Gauge(metrics.PIXELS_PER_SECOND, "Pixels painted per second of work, lately."),
        ]
        self.release = IdleRelease()
        self._ready = (False, 0.0)  # the answer, and when it was asked for
        self.accepted_pixels = 0  # of the largest photograph that the Codec has let through by its header
        self.uprights = asyncio.Semaphore(MAX_UPRIGHTS)
        self.jobs: JobDesk | None = None
        if settings.jobs.enabled:
            self.jobs = JobDesk(settings.jobs, lambda: self.admission.pixels_per_second)
            self.jobs.open_soon()
        warn_without_guard()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self)
        app.add_middleware(DisconnectOnCancel)  # not around it: Serve looks at the app's routes, for logs and metrics
        return app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes."""
        settings = load_settings(IngressSettings, user_config, "Ingress.user_config")
        find_style(self.styles, settings.default_style, self.catalogue)
        self.keys = load_keys(settings, await asyncio.to_thread(http_host))
        self.settings = settings
        self.admission.limits = admission_limits(settings)

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        """Admits a photograph by its header, before anything is decoded, and runs it through the pipeline."""
        began = time.monotonic()
        try:
            header = read_header(data)
            with self.admitted(client, most_painted_pixels(header, request)):
                steps = await self.with_deadline(data, header, request)
                return encoded_image(request, steps, 1000 * (time.monotonic() - began))
        except RequestError as refusal:
            self.refusals.inc(tags={"code": refusal.code})
            raise

    async def check(self, data: bytes, request: StylizeRequest) -> int:
        """Refuses a photograph that can never be painted, by its header; returns the pixels that will be painted."""
        try:
            header = read_header(data)
            pixels = most_painted_pixels(header, request)
            await self.refuse_large(header)
        except RequestError as refusal:
            self.refusals.inc(tags={"code": refusal.code})
            raise
        return pixels

    async def refuse_large(self, header: ImageHeader) -> None:
        """Asks the Codec whether a photograph is too large for it, unless it has let a larger one through.

        What it does not answer now it will say when the job is run.

        Raises:
            TooManyPixels: if it is.
        """
        stored = header.stored.pixels if header.stored else 0
        if stored <= self.accepted_pixels:
            return
        with suppress(TimeoutError, TooBusy, RayError, RayServeException):
            async with asyncio.timeout(CHECK_S):
                await call(self.codec.check, header)
            self.accepted_pixels = stored

    async def upright(self, data: bytes, request: StylizeRequest) -> tuple[bytes, str]:
        """Returns a photograph upright, at the size that it is painted at, and the media type of its file.

        Only some are decoded at a time: they wait outside of the queue, and photographs that are to be painted come
        first.

        Raises:
            RequestError: if it cannot be decoded, or not within `timeout_s`.
            Lost: if the Codec was lost.
        """
        header, upload = read_header(data), np.frombuffer(data, np.uint8)
        try:
            async with asyncio.timeout(self.settings.timeout_s), self.uprights:
                decoded: Decoded = await call(self.codec.decode, upload, header, request)
                format: ImageFormat = "jpeg" if decoded.alpha is None else "png"
                unpainted = Painted(decoded.frame, 0.0)
                encoded: Encoded = await call(self.codec.encode, unpainted, decoded, format, None)
        except TimeoutError:
            raise DeadlineExceeded("The photograph could not be decoded in time. Try again later.") from None
        except (RayError, RayServeException) as error:
            if not is_lost(error):
                raise
            raise frame_lost("decoded") from None
        return encoded.data, MEDIA_TYPES[format]

    @contextmanager
    def admitted(self, client: Client, pixels: int) -> Iterator[None]:
        """Holds a place in the queue, and gives it back however the block ends.

        Raises:
            TooBusy: if there is none.
        """
        try:
            ticket = self.admission.admit(client, pixels)
        except QueueFull as full:
            reason = "and there is no room for another"
            if full.is_share and full.own:
                reason = f"{full.own} of them yours, as many as leave room for others"
            elif full.is_share:
                reason = "and clients without an API key hold their whole share"
            raise TooBusy(
                f"{full.position} pictures are waiting, {reason}; try again in {full.retry_after_s} s.",
                full.limit_pixels,
                full.actual_pixels,
                "pixels",
                full.retry_after_s,
                full.position,
            ) from None
        self.update_gauges()
        try:
            with ticket:
                yield
        finally:
            self.update_gauges()

    def update_gauges(self) -> None:
        """Publishes what is admitted now, and the rate that admission decides by."""
        admitted = self.admission.occupancy
        self.release.update(is_idle=not admitted.images)
        for gauge, value in zip(
            self.gauges, (admitted.images, admitted.pixels, self.admission.pixels_per_second), strict=True
        ):
            gauge.set(value)

    async def with_deadline(
        self, data: bytes, header: ImageHeader, request: StylizeRequest
    ) -> tuple[Decoded, Painted, Encoded]:
        """Runs the pipeline within the request's `timeout_s`.

        Raises:
            DeadlineExceeded: if that has passed. An image that has not been painted by then never is.
        """
        try:
            async with asyncio.timeout(request.timeout_s) as timeout:
                return await self.run_with_retries(data, header, request, timeout)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The picture was not painted within the {request.timeout_s:g} seconds that it was given. Allow more "
                "time, or try again later."
            ) from None

    async def run_with_retries(
        self, data: bytes, header: ImageHeader, request: StylizeRequest, timeout: asyncio.Timeout
    ) -> tuple[Decoded, Painted, Encoded]:
        """Runs the pipeline again if a replica or its node has died while it held the photograph or its frame.

        Raises:
            Lost: if that has happened `MAX_ATTEMPTS` times.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return await self.run_pipeline(data, header, request, timeout)
            except (RayError, RayServeException, Lost) as error:
                if not is_lost(error):
                    raise
                reason = str(error).partition("\n")[0][:200]
                logger.warning(
                    "attempt %d at a picture was lost with what worked on it (%s: %s)",
                    attempt,
                    type(error).__name__,
                    reason,
                )
        raise Lost(
            "The processes that worked on the picture were lost, several times; try again later.",
            retry_after_s=LOST_RETRY_AFTER_S,
        )

    async def run_pipeline(
        self, data: bytes, header: ImageHeader, request: StylizeRequest, timeout: asyncio.Timeout
    ) -> tuple[Decoded, Painted, Encoded]:
        """Decodes, paints and encodes.

        Each step is sent when the one before has ended: Ray starts the calls of one caller to an actor in order, so an
        encode that was sent before its painting is there would hold up every decode behind it.
        """
        upload = np.frombuffer(data, np.uint8)  # an array goes to the object store as it is; bytes are pickled first
        decoded: Decoded = await call(self.codec.decode, upload, header, request)
        expires_s = (timeout.when() or 0) - asyncio.get_running_loop().time()
        painted: Painted = await call(self.stylizer.paint, decoded, request.style, expires_s)
        encoded: Encoded = await call(self.codec.encode, painted, decoded, request.format, request.quality)
        return decoded, painted, encoded

    async def is_ready(self) -> bool:
        """Returns whether a model replica has painted its warm-up image."""
        answer, asked = self._ready
        if time.monotonic() - asked > READY_CACHE_S:
            answer = await asyncio.to_thread(has_running_replica, "Stylizer")
            self._ready = (answer, time.monotonic())
        return answer


async def call(method: Any, *args: Any) -> Any:
    """Calls a replica's method and returns its answer.

    Raises:
        RequestError: the refusal that the replica answered.
        TooBusy: if Serve's own queue before the replica is full.
    """
    response = method.remote(*args)
    try:
        answer = await response
    except BackPressureError:
        detail = "Too many pictures are waiting; try again shortly."
        raise TooBusy(detail, retry_after_s=SERVE_RETRY_AFTER_S) from None
    except asyncio.CancelledError:  # the client has disconnected, or the deadline has passed
        response.cancel()
        raise
    if isinstance(answer, RequestError):
        raise answer
    return answer


def most_painted_pixels(header: ImageHeader, request: StylizeRequest) -> int:
    """Returns how many pixels of a photograph will be painted; the most there can be if its header does not tell.

    Raises:
        TooSmall: if a painted side would be under the generator's minimum.
    """
    if header.stored is None:
        return request.max_side**2
    return painted_size(header.stored, request.max_side, request.multiple).pixels


def encoded_image(request: StylizeRequest, steps: tuple[Decoded, Painted, Encoded], total_ms: float) -> EncodedImage:
    """Returns the answer with its receipt; whatever was not work in one of the steps was waiting in queues."""
    decoded, painted, encoded = steps
    worked_ms = decoded.took_ms + painted.took_ms + encoded.took_ms
    timings_ms = {
        "decode": decoded.took_ms,
        "queue": max(total_ms - worked_ms, 0.0),
        "paint": painted.took_ms,
        "encode": encoded.took_ms,
    }
    receipt = Receipt(request.style, decoded.original, decoded.painted, timings_ms)
    return EncodedImage(encoded.data, MEDIA_TYPES[request.format], receipt)


def admission_limits(settings: IngressSettings) -> Limits:
    """Returns the limits of the queue that the settings ask for."""
    return Limits(
        settings.queue_time_s,
        settings.queue_least_pictures,
        settings.queue_most_pictures,
        settings.queue_most_pixels,
    )


def http_host() -> str | None:
    """Returns the address that Serve's proxies listen on; None if there are none. Serve has no public call for it."""
    client = _get_global_client()
    assert client is not None  # this runs in a replica
    host: str | None = client.http_config.host
    return host


def is_lost(error: Exception) -> bool:
    """Returns whether a process, a node or an object was lost, which says nothing about the photograph."""
    if isinstance(error, RayTaskError):  # raised inside a replica: by its code, or because an argument was lost
        return isinstance(error.cause, RayError | RayServeException) and is_lost(error.cause)
    return not is_cancellation(error)


def has_running_replica(deployment: str) -> bool:
    """Returns whether a replica of this application's deployment is in service, its warm-up done."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    states = application.deployments[deployment].replica_states
    return any(state == "RUNNING" and count > 0 for state, count in states.items())
