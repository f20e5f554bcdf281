"""The replica that works on jobs: it claims them from the store, and sends them down the same way as requests.

All that does not need Ray is in `jobs/runner.py`.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.cancellation import log_no_cancellations
from serve_app.deployments.graph import Graph, encoded_image, most_painted_pixels
from serve_app.deployments.idle import IdleRelease
from serve_app.deployments.logs import JobLog, log_to_serve
from serve_app.deployments.metrics import COUNT_JOBS_S, Interval, JobMetrics
from serve_app.deployments.tracing import root_span, start_tracing
from serve_app.engine.allocator import return_large_buffers
from serve_app.errors import StoreUnavailable
from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.images.header import read_header
from serve_app.jobs.runner import Runner
from serve_app.jobs.signing import read_secret
from serve_app.jobs.store import JobStore, open_store
from serve_app.jobs.words import Job, JobReport
from serve_app.settings import JobRunnerSettings, Settings, load_settings
from serve_app.web.receipts import job_info

if TYPE_CHECKING:  # aiohttp, which a service without webhooks does without
    from serve_app.jobs.courier import Courier

logger = logging.getLogger("ray.serve")

FOLLOW_S = 5.0  # between two looks at how many replicas there are, and two reports of what waits
OPEN_AGAIN_S = 5.0  # after an attempt to reach the database


@serve.deployment(user_config={}, ray_actor_options={"num_cpus": 0.1})
class JobRunner:
    """Runs a `jobs.runner.Runner`, and a `jobs.courier.Courier` where webhooks are sent.

    Serve stops it by `__del__`, which hands its jobs back.

    Args:
        settings: of the application.
        codec: decodes and encodes, and calls the Stylizer.
        stylizer: is told how much waits, for autoscaling.

    Raises:
        SettingsError: if the secret of webhooks cannot be read.
    """

    def __init__(self, settings: Settings, codec: DeploymentHandle[Any], stylizer: DeploymentHandle[Any]) -> None:
        return_large_buffers()
        log_to_serve()
        start_tracing()
        log_no_cancellations()
        self.jobs = settings.jobs
        self.secret = read_secret(settings.jobs.webhooks.secret)
        self.settings = JobRunnerSettings()
        self.graph = Graph(codec)
        self.stylizer = stylizer
        self.metrics = JobMetrics(settings.jobs)
        self.interval = Interval(self.publish)
        self.waiting_pixels = 0
        self.release = IdleRelease()
        self.store: JobStore | None = None
        self.runner: Runner | None = None
        self.courier: Courier | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes.

        Raises:
            SettingsError: if a setting is wrong. A database that does not answer is none: it is asked again.
        """
        self.settings = load_settings(JobRunnerSettings, user_config, "JobRunner.user_config")
        self.metrics.use(self.settings)
        self.interval.start()
        if self.runner is not None:
            self.runner.settings = self.settings
            self.runner.nudge()
        elif not self.tasks:
            try:
                self.begin(await asyncio.to_thread(open_store, self.jobs))
            except StoreUnavailable:
                self.tasks.append(asyncio.create_task(self.begin_later()))

    def begin(self, store: JobStore) -> None:
        """Begins to work."""
        self.store = store
        self.runner = Runner(store, self, self.settings, self.jobs.lease_s, self)
        self.runner.most_pictures = 1  # until it is known how many Stylizers there are
        self.runner.start()
        self.tasks.append(asyncio.create_task(self.follow(self.runner)))
        self.tasks.append(asyncio.create_task(self.count_jobs(store)))
        if self.secret is not None:
            self.tasks.append(asyncio.create_task(self.begin_webhooks(store, self.secret)))

    async def begin_later(self) -> None:
        """Begins to work when the database answers."""
        while self.runner is None:
            await asyncio.sleep(OPEN_AGAIN_S)
            try:
                self.begin(await asyncio.to_thread(open_store, self.jobs))
            except StoreUnavailable:  # the store has logged it
                continue

    async def begin_webhooks(self, store: JobStore, secret: bytes) -> None:
        """Begins to deliver webhooks, when it is known where the routes are."""
        from serve_app.jobs.courier import Courier

        place = await asyncio.to_thread(root_path, serve.get_replica_context().app_name)
        self.courier = Courier(store, self.jobs.webhooks, secret, partial(described, root_path=place), self.metrics)
        self.courier.start()

    async def follow(self, runner: Runner) -> None:
        """Follows the number of replicas while there is work, and tells a Stylizer what else waits."""
        application = serve.get_replica_context().app_name
        is_idle = True
        while True:
            await asyncio.sleep(FOLLOW_S)
            was_idle, is_idle = is_idle, not runner.pictures
            if is_idle != was_idle:
                self.release.update(is_idle)
            if is_idle:
                self.waiting_pixels = 0
                continue
            try:
                replicas = await asyncio.to_thread(running_replicas, application)
                places = self.settings.stylizer_places * replicas["Stylizer"]
                runner.most_pictures = places // max(replicas["JobRunner"], 1)
                runner.nudge()
                self.waiting_pixels = await runner.waiting_pixels()
                await asyncio.wait_for(self.stylizer.hear_of_jobs.remote(self.waiting_pixels), FOLLOW_S)
            except (StoreUnavailable, RayError, RayServeException, TimeoutError) as error:
                logger.warning("the service cannot be followed at this moment: %s", type(error).__name__)

    async def count_jobs(self, store: JobStore) -> None:
        """Counts the jobs in the table now and then, for the metrics."""
        while True:
            with suppress(StoreUnavailable):  # the store has logged it
                self.metrics.publish_table(await asyncio.to_thread(store.tally))
            await asyncio.sleep(COUNT_JOBS_S)

    def publish(self) -> None:
        """Publishes what it works on."""
        self.metrics.publish(0 if self.runner is None else self.runner.pictures, self.waiting_pixels)

    def pixels(self, photo: bytes, request: StylizeRequest) -> int:
        """Returns how many pixels will be painted; see `jobs.runner.Painter`."""
        return most_painted_pixels(read_header(photo), request)

    async def paint(self, photo: bytes, request: StylizeRequest) -> EncodedImage:
        """Has a photograph painted behind those of requests; see `jobs.runner.Painter`."""
        began = time.monotonic()
        wanted = replace(request, timeout_s=self.settings.timeout_s)
        with JobLog(request.style, len(photo)) as log, root_span("job"):
            stylized = await self.graph.stylize(photo, read_header(photo), wanted, background=True)
            log.painting = encoded_image(request, stylized, 1000 * (time.monotonic() - began))
            self.metrics.steps.observe(log.painting.receipt.timings_ms)
            return log.painting

    def ended(self, outcome: str) -> None:
        """Counts the end of an attempt, and has its webhook sent; see `jobs.runner.Observer`."""
        self.metrics.ended(outcome)
        if self.courier is not None:
            self.courier.nudge()

    def check_health(self) -> None:
        """Fails if the runner has ended by a fault of ours, so that Serve starts another replica."""
        faults = [part.fault() for part in (self.runner, self.courier) if part is not None]
        faults += [task.exception() for task in self.tasks if task.done() and not task.cancelled()]
        for fault in filter(None, faults):
            raise RuntimeError("the runner of jobs has ended") from fault

    async def __del__(self) -> None:
        """Hands the jobs at work back; Serve awaits it when the replica stops."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*(part.stop() for part in (self.runner, self.courier) if part is not None))
        if self.store is not None:
            await asyncio.to_thread(self.store.close)


def described(job: Job, root_path: str) -> dict[str, Any]:
    """Returns a finished job as `GET /v1/jobs/ID` shows it."""
    return job_info(JobReport(job), root_path).model_dump(mode="json", by_alias=True)


def root_path(application: str) -> str:
    """Returns what stands before the paths of the routes. Serve has no public call for it."""
    client = _get_global_client()
    assert client is not None  # this runs in a replica
    prefix: str = client.get_serve_details()["applications"][application]["route_prefix"]
    return f"{client.http_config.root_path}{prefix}"


def running_replicas(application: str) -> dict[str, int]:
    """Returns the number of running replicas of each deployment of an application."""
    deployments = serve.status().applications[application].deployments
    return {
        name: sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")
        for name, deployment in deployments.items()
    }
