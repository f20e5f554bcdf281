"""The HTTP replica: bytes in, bytes out. It admits photographs, hands them to the Codec and never touches pixels."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from serve_app.deployments.cancellation import DisconnectOnCancel, log_no_cancellations
from serve_app.deployments.graph import Graph, encoded_image, most_painted_pixels
from serve_app.deployments.idle import IdleRelease
from serve_app.deployments.logs import log_to_serve
from serve_app.deployments.metrics import IngressMetrics, Interval
from serve_app.deployments.proxy import warn_without_guard
from serve_app.deployments.tracing import TraceRequests, start_tracing
from serve_app.engine.allocator import return_large_buffers
from serve_app.errors import TooBusy
from serve_app.frames import Client, EncodedImage, StylizeRequest
from serve_app.images.header import read_header
from serve_app.jobs.desk import JobDesk
from serve_app.jobs.works import painter_name
from serve_app.queueing.admission import AdmissionController, Limits, QueueFull
from serve_app.settings import IngressSettings, Settings, load_settings
from serve_app.styles.catalogue import find_style, installed_styles, read_catalogue
from serve_app.web.events import IN_SERVE_S, Streams
from serve_app.web.keys import KeyRing, Keys, load_keys
from serve_app.web.routes import create_app

READY_CACHE_S = 1.0  # load balancers ask often, and each question goes to Serve's one controller


@serve.deployment(user_config={})
@serve.ingress()
class Ingress:
    """Implements `serve_app.web.pipeline.Pipeline` over deployment handles.

    Args:
        settings: of the application.
        codec: decodes, has a Stylizer paint, and encodes.
        job_runner: where there are jobs. It looks for them in the database, so nothing is sent to it; Serve starts what
            a deployment is given.
    """

    jobs: JobDesk | None = None
    streams: Streams | None = None

    def __init__(
        self, settings: Settings, codec: DeploymentHandle[Any], job_runner: DeploymentHandle[Any] | None = None
    ) -> None:
        return_large_buffers()  # uploads, before all
        log_to_serve()
        start_tracing()
        log_no_cancellations()
        self.graph = Graph(codec)
        self.settings = IngressSettings()
        self.keys: Keys = KeyRing()  # lets nobody in, until `reconfigure` has read the settings
        self.admission = AdmissionController(admission_limits(self.settings))
        self.styles = installed_styles(settings.styles_dir)
        self.precision = settings.precision
        self.catalogue = read_catalogue()
        self.metrics = IngressMetrics()
        self.interval = Interval(lambda: self.metrics.publish(self.admission))
        self.release = IdleRelease()
        self._ready = (False, 0.0)  # the answer, and when it was asked for
        if settings.jobs.enabled:
            self.jobs = JobDesk(settings.jobs, lambda: self.admission.pixels_per_second)
            self.jobs.open_soon()
            self.streams = Streams(self.jobs.news, lambda: self.settings.max_streams, IN_SERVE_S)
        warn_without_guard()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self, self.metrics)
        app.add_middleware(DisconnectOnCancel)  # not around it: Serve looks at the app's routes, for logs and metrics
        app.user_middleware.append(Middleware(TraceRequests))  # the innermost: inside of the log of requests
        return app

    async def __del__(self) -> None:
        """Publishes its last counts, and closes the connections to the database of jobs; Serve awaits it at the end."""
        self.metrics.publish(self.admission)
        if self.jobs is not None:
            await asyncio.to_thread(self.jobs.close)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes."""
        settings = load_settings(IngressSettings, user_config, "Ingress.user_config")
        find_style(self.styles, settings.default_style, self.catalogue)
        self.keys = load_keys(settings, await asyncio.to_thread(http_host))
        self.settings = settings
        self.admission.limits = admission_limits(settings)
        self.metrics.use(settings)
        self.interval.start()

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        """Admits a photograph by its header, before anything is decoded, and runs it through the pipeline."""
        began = time.monotonic()
        header = read_header(data)
        with self.admitted(client, most_painted_pixels(header, request)):
            stylized = await self.graph.stylize(data, header, request)
        answer = encoded_image(request, stylized, 1000 * (time.monotonic() - began))
        self.metrics.steps.observe(answer.receipt.timings_ms)
        return answer

    def painter(self, style: str) -> str:
        """Returns the name of what would paint in a style now; empty if its file is no more the one that was read."""
        installed = self.styles[style]
        return painter_name(installed.digest, self.precision) if installed.is_current else ""

    async def check(self, data: bytes, request: StylizeRequest) -> int:
        """Refuses a photograph that can never be painted, by its header; returns the pixels that will be painted."""
        header = read_header(data)
        pixels = most_painted_pixels(header, request)
        await self.graph.check(header)
        return pixels

    async def upright(self, data: bytes, request: StylizeRequest) -> tuple[bytes, str]:
        """Returns a photograph upright, at the size that it is painted at, and the media type of its file."""
        return await self.graph.upright(data, read_header(data), request, self.settings.timeout_s)

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
        self.release.update(is_idle=False)
        try:
            with ticket, self.metrics.inside.one():
                yield
        finally:
            self.release.update(is_idle=not self.admission.occupancy.images)

    async def is_ready(self) -> bool:
        """Returns whether a model replica has painted its warm-up image."""
        answer, asked = self._ready
        if time.monotonic() - asked > READY_CACHE_S:
            answer = await asyncio.to_thread(has_running_replica, "Stylizer")
            self._ready = (answer, time.monotonic())
        return answer


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


def has_running_replica(deployment: str) -> bool:
    """Returns whether a replica of this application's deployment is in service, its warm-up done."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    states = application.deployments[deployment].replica_states
    return any(state == "RUNNING" and count > 0 for state, count in states.items())
