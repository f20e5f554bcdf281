"""The model replica: batches frames of one size and paints them on a fraction of a GPU, or on a CPU.

It is the only deployment whose process imports torch, and only when it is constructed: torch costs 0.5 GB per process.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.exceptions import RayError

from serve_app.deployments.logs import log_to_serve
from serve_app.deployments.metrics import Interval, StylizerMetrics
from serve_app.deployments.retirement import Retirement
from serve_app.deployments.steps import Handed, Painted, fetch_async, frame_lost, hand_over
from serve_app.deployments.tracing import BatchTraces, start_tracing
from serve_app.engine.slots import Slot
from serve_app.errors import RequestError, UnknownStyle
from serve_app.frames import Frame, Size
from serve_app.jobs.works import painter_name
from serve_app.queueing.batching import Batcher
from serve_app.settings import Settings, StylizerSettings, load_settings
from serve_app.styles.catalogue import installed_styles

if TYPE_CHECKING:  # it imports torch
    from serve_app.engine.stylist import Stylist

logger = logging.getLogger("ray.serve")  # Serve writes it to the replica's log file
LOG_S = 1.0  # a thread of Ray carries what this process prints to the console: it needs a moment

Key = tuple[str, Size]  # style and size: only such frames share a batch


@serve.deployment(user_config={})
class Stylizer:
    """Paints frames in batches; it is the `Device` of its own batcher."""

    def __init__(self, settings: Settings) -> None:
        log_to_serve()
        start_tracing()
        self.stylist = make_stylist(settings)
        self.precision = settings.precision
        print(self.stylist.describe(), flush=True)
        self.settings = StylizerSettings()
        self.metrics = StylizerMetrics()
        self.interval = Interval(self.publish)
        self.batcher: Batcher[Key, Frame, Frame] = Batcher(self, self.settings.max_batch_size, observer=self.metrics)
        self.traces = BatchTraces()
        self.releasing: asyncio.TimerHandle | None = None
        self.retirement = Retirement(self.metrics.retires)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes."""
        self.settings = load_settings(StylizerSettings, user_config, "Stylizer.user_config")
        self.batcher.max_batch_size = self.settings.max_batch_size
        self.batcher.linger_s = self.settings.linger_s
        self.batcher.background_after_s = self.settings.background_after_s
        self.interval.start()

    def publish(self) -> None:
        """Publishes what waits now, and what painting takes."""
        self.metrics.publish(self.batcher, len(self.stylist.styles), self.stylist.memory)

    async def paint(
        self,
        handed: Handed,
        style: str,
        expires_s: float | None = None,
        background: bool = False,
        trace: str | None = None,
    ) -> AsyncIterator[Painted | RequestError]:
        """Paints the frame of a decoded photograph.

        Args:
            handed: the frame, or a reference to it.
            style: name of an installed style.
            expires_s: seconds from now after which it must not be painted any more.
            background: it is a job's, and those of people who wait go first.
            trace: the `traceparent` of the request, if it is traced.

        Yields:
            The painted frame, or a refusal: raised, Serve would log a traceback of it.
        """
        try:
            yield await self.painted(handed, style, expires_s, background, trace)
        except RequestError as refusal:
            yield refusal

    async def painted(
        self, handed: Handed, style: str, expires_s: float | None, background: bool, trace: str | None = None
    ) -> Painted:
        """Paints a frame when its turn has come.

        Raises:
            UnknownStyle: on another node than the Ingress, a file may be missing or damaged.
            Lost: if the frame has gone with the process that made it.
            RequestError: the refusal of the batcher or of the device.
        """
        if style not in self.stylist.styles:
            raise UnknownStyle(f"The style {style!r} cannot be painted here: its file is missing or damaged.")
        try:
            frame: Frame = await fetch_async(handed)
        except RayError:
            raise frame_lost("decoded") from None
        size = Size(*frame.shape[:2])
        with self.traces.queued(frame, trace):
            done = await self.batcher.submit((style, size), frame, size.pixels, expires_s, background)
        painter = painter_name(self.stylist.digests[style], self.precision)
        return Painted(hand_over(done.result), 1000 * done.ran_s, painter)

    def reserve(self, key: Key, same_key: int, waiting: int, room: int) -> Slot | None:
        """Reserves memory and threads for the next batch; see `queueing.batching.Device`."""
        return self.stylist.reserve(*key, same_key, waiting, room)

    async def run(self, slot: Slot, key: Key, frames: list[Frame]) -> list[Frame | Exception]:
        """Paints one batch; see `queueing.batching.Device`."""
        if self.releasing is not None:
            self.releasing.cancel()
        try:
            with self.traces.batch(frames, style=key[0], pixels=key[1].pixels * len(frames), images=len(frames)):
                return await asyncio.wrap_future(self.stylist.start(slot, key[0], frames))
        finally:
            loop = asyncio.get_running_loop()
            self.releasing = loop.call_later(self.settings.release_after_s, self.stylist.release_memory)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the figures that `autoscaling.PixelBacklog` decides by."""
        batcher = self.batcher
        requests = batcher.waiting_pixels - batcher.background_pixels
        running_s = batcher.running_for_s(is_foreground=True)
        figures = self.metrics.work.report(requests, running_s, batcher.background_pixels)
        return figures | self.retirement.figures()

    def hear_of_jobs(self, queued_pixels: int) -> None:
        """Takes note of the pixels of all jobs that wait in the database, for autoscaling."""
        self.metrics.work.hear_of_jobs(queued_pixels)

    async def check_health(self) -> None:
        """Ends this process if a batch makes no progress: a device that hangs leaves the process itself responsive.

        Serve replaces a dead replica at once, and the Ingress sends its images again. For a replica that fails its
        checks, Serve would wait for a third failure, and then `graceful_shutdown_timeout_s` for the batch that hangs.

        Raises:
            Retiring: if this replica is to be replaced when it has painted what it has.
        """
        running_s, limit_s = self.batcher.running_for_s(), self.settings.stuck_after_s
        if running_s > limit_s:
            end_process(
                f"a batch on the device has run for {running_s:.0f} s, above stuck_after_s ({limit_s}); "
                "this replica ends, and Serve starts another"
            )
        await self.retirement.check(self.settings)


def end_process(reason: str) -> None:
    """Ends this process with a sentence in the log, without waiting for its threads, which may hang."""
    logger.error(reason)
    time.sleep(LOG_S)
    os._exit(1)


def make_stylist(settings: Settings) -> "Stylist":
    """Returns a Stylist with the resources that Ray has granted this replica, warmed up."""
    from serve_app.engine.stylist import Stylist

    granted = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    stylist = Stylist(
        installed_styles(settings.styles_dir),
        settings,
        granted.get("GPU", 0),
        granted.get("CPU", 1),
        granted.get("memory", 0),
    )
    stylist.warm_up()
    return stylist
