"""The HTTP replica: bytes in, bytes out. It sends a photograph along the road and never touches pixels."""

import asyncio
import functools
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Gauge
from starlette.types import ASGIApp

from serve_app.deployments import metrics
from serve_app.errors import DeadlineExceeded, RequestError, TooBusy
from serve_app.frames import Order, Picture
from serve_app.images.decode import painted_pixels
from serve_app.queueing.admission import AdmissionController, Limits, QueueFull
from serve_app.settings import IngressSettings, Settings, load_settings
from serve_app.styles.catalogue import find_style, installed_styles, read_catalogue
from serve_app.web.routes import create_app

logger = logging.getLogger(__name__)

READY_CACHE_S = 1.0  # load balancers ask often, and each question goes to Serve's one controller
WAITING_THREADS = 256  # made as needed; more than any max_ongoing_requests of an Ingress
Boxed = list["ray.ObjectRef[Any]"]  # one reference, out of Serve's sight

BEHIND_THE_DOOR_S = (
    3  # Retry-After of Serve's own queues, as in prod.yaml: they are full only if the settings do not fit
)
WALKS = 3  # of one photograph: painting is pure, so what was on a process that died is sent again


@serve.deployment(user_config={})
@serve.ingress()
class Ingress:
    """Implements `serve_app.web.routes.Pipeline` over deployment handles."""

    def __init__(self, settings: Settings, codec: DeploymentHandle[Any], stylizer: DeploymentHandle[Any]) -> None:
        self.codec = codec
        self.stylizer = stylizer
        self.settings = IngressSettings()
        self.admission = AdmissionController(limits_of(self.settings))
        self.styles = installed_styles(settings.styles_dir)
        self.catalogue = read_catalogue()
        self.waiting = ThreadPoolExecutor(WAITING_THREADS, "waiting")
        self.refusals = Counter(metrics.REFUSALS, "Requests refused, by code.", ("code",))
        self.gauges = [
            Gauge(metrics.INSIDE_PICTURES, "Pictures let in and not yet answered."),
            Gauge(metrics.INSIDE_PIXELS, "Their pixels, as they are painted."),
            Gauge(metrics.PIXELS_PER_SECOND, "Painted while anything was inside, lately."),
        ]
        self._ready = (False, 0.0)  # answer, when it was asked

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        settings = load_settings(IngressSettings, user_config, "Ingress.user_config")
        find_style(self.styles, settings.default_style)
        self.settings = settings
        self.admission.limits = limits_of(settings)

    async def stylize(self, data: bytes, order: Order, client: str) -> Picture:
        """Lets the photograph in, before anything is decoded, and sends it along the road."""
        began = time.monotonic()
        try:
            pixels = await asyncio.to_thread(painted_pixels, data, order)
            with self.admitted(client, pixels):
                answer = await self.in_time(data, order)
                if isinstance(answer, RequestError):
                    raise answer
                return with_waits(answer, time.monotonic() - began)
        except RequestError as refusal:
            self.refusals.inc(tags={"code": refusal.code})
            raise

    @contextmanager
    def admitted(self, client: str, pixels: int) -> Iterator[None]:
        """A place inside, given back on every way out.

        Raises:
            TooBusy: if there is none.
        """
        try:
            ticket = self.admission.admit(client, pixels)
        except QueueFull as full:
            reason = "and there is no room for another"
            if full.is_share:
                reason = f"{full.own} of them yours, as many as leave room for others"
            raise TooBusy(
                f"{full.position} pictures are waiting, {reason}; try again in {full.retry_after_s} s.",
                full.limit_pixels,
                full.actual_pixels,
                full.retry_after_s,
                full.position,
            ) from None
        self.tell()
        try:
            with ticket:
                yield
        finally:
            self.tell()

    def tell(self) -> None:
        occupancy = self.admission.occupancy
        values = (occupancy.images, occupancy.pixels, self.admission.pixels_per_second)
        for gauge, value in zip(self.gauges, values, strict=True):
            gauge.set(value)

    async def in_time(self, data: bytes, order: Order) -> Picture | RequestError:
        """
        Raises:
            DeadlineExceeded: once `timeout_s` have passed; what has not been painted by then never is.
        """
        try:
            async with asyncio.timeout(order.timeout_s) as limit:
                return await self.walk_again(data, order, limit)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The picture was not painted within the {order.timeout_s:g} seconds that it was given. Allow more "
                "time, or try again later."
            ) from None

    async def walk_again(self, data: bytes, order: Order, limit: asyncio.Timeout) -> Picture | RequestError:
        """Walks anew when a replica or its node has died with the photograph on it."""
        for _ in range(WALKS - 1):
            try:
                return await self.walk(data, order, limit)
            except (RayError, RayServeException) as error:  # the latter where a step's input died with its maker
                if not is_lost(error):
                    raise
                logger.warning("a replica was lost with a picture on it (%s); it is sent again", type(error).__name__)
        return await self.walk(data, order, limit)

    async def walk(self, data: bytes, order: Order, limit: asyncio.Timeout) -> Picture | RequestError:
        """The whole road: encode(stylize(decode(photo))). Frames pass by reference, from replica to replica."""
        step: Any = None
        try:
            step = self.codec.decode.remote(data, order)
            decoded = await self.finished(step)
            expires_s = (limit.when() or 0) - asyncio.get_running_loop().time()
            step = self.stylizer.paint.remote(decoded, expires_s)
            painted = await self.finished(step)
            step = self.codec.encode.remote(painted, order.format, order.quality)
            answer: Picture | RequestError = await step
            return answer
        except BackPressureError:  # Serve's own queues, which stand behind the door
            raise TooBusy("Too many pictures are waiting; try again shortly.", None, None, BEHIND_THE_DOOR_S) from None
        except asyncio.CancelledError:  # the client has gone away, or its time is over
            if step is not None:
                step.cancel()
            raise

    async def finished(self, response: Any) -> Boxed:
        """Waits for a step without fetching its frame; its reference is for the next step to open.

        Ray starts an actor's calls in the order of one caller: an encode that was sent before its painting is there
        holds up every decode behind it, and batches never fill. And an argument whose maker was lost would be taken for
        the loss of whom it is sent to, and sent again without end.
        """
        reference = await response._to_object_ref()
        wait = functools.partial(ray.wait, [reference], fetch_local=False)
        await asyncio.get_running_loop().run_in_executor(self.waiting, wait)
        return [reference]

    async def is_ready(self) -> bool:
        answer, asked = self._ready
        if time.monotonic() - asked > READY_CACHE_S:
            answer = await asyncio.to_thread(has_running_replica, "Stylizer")
            self._ready = (answer, time.monotonic())
        return answer


def with_waits(picture: Picture, took_s: float) -> Picture:
    """The picture with all that was not work as its `queue`: waits before each step, and the ways between them."""
    worked_ms = sum(ms for step, ms in picture.receipt.timings_ms.items() if step != "queue")
    return replace(picture, receipt=picture.receipt.timed(queue=max(1000 * took_s - worked_ms, 0.0)))


def limits_of(settings: IngressSettings) -> Limits:
    return Limits(
        settings.queue_time_s,
        settings.queue_least_pictures,
        settings.queue_most_pictures,
        settings.queue_most_pixels,
    )


def is_lost(error: Exception) -> bool:
    """Whether a process, a node or an object is gone, which says nothing about the photograph."""
    if isinstance(error, RayTaskError):  # raised inside a replica: by its code, or by an argument that was lost
        return isinstance(error.cause, RayError | RayServeException) and is_lost(error.cause)
    return not isinstance(error, TaskCancelledError)


def has_running_replica(deployment: str) -> bool:
    """Whether a replica of this application's deployment has been constructed, warm-up included, and is in service."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    states = application.deployments[deployment].replica_states
    return any(state == "RUNNING" and count > 0 for state, count in states.items())
