"""The model replica: batches frames of one size and paints them on a fraction of a GPU, or on a CPU.

The only deployment whose process imports torch, and only when it is constructed: torch costs 0.5 GB a process.
"""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.metrics import Gauge, Histogram

from serve_app.deployments import metrics
from serve_app.deployments.autoscaling import WorkReport
from serve_app.errors import RequestError
from serve_app.frames import Frame, Photo, Size
from serve_app.queueing.batching import Batcher
from serve_app.settings import Settings, StylizerSettings, load_settings
from serve_app.styles.catalogue import installed_styles

if TYPE_CHECKING:  # it imports torch
    from serve_app.engine.stylist import Stylist

Key = tuple[str, Size]  # (style, (height, width)): only such frames share a batch


@serve.deployment(user_config={})
class Stylizer:
    def __init__(self, settings: Settings) -> None:
        self.stylist = make_stylist(settings)
        print(self.stylist.describe(), flush=True)
        self.settings = StylizerSettings()
        self.watch = Watch()
        self.batcher: Batcher[Key, Frame, Frame] = Batcher(
            self._paint,
            self.settings.max_batch_size,
            limit=self._fitting,
            places=self.stylist.lanes.threads,
            observer=self.watch,
        )
        self.releasing: asyncio.TimerHandle | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.settings = load_settings(StylizerSettings, user_config, "Stylizer.user_config")
        self.batcher.max_batch_size = self.settings.max_batch_size
        self.batcher.linger_s = self.settings.linger_s

    async def paint(
        self, decoded: "list[ray.ObjectRef[Photo | RequestError]]", expires_s: float | None = None
    ) -> Photo | RequestError:
        """The same photo with its frame painted, and how long that took; a refusal passes as it is.

        Args:
            decoded: a reference to the photo.
            expires_s: seconds from now after which it is not to be painted any more.
        """
        photo: Photo | RequestError = await decoded[0]
        if isinstance(photo, RequestError):
            return photo
        height, width = photo.receipt.painted
        try:
            waiting = self.batcher.submit(
                (photo.receipt.style, photo.receipt.painted), photo.frame, height * width, expires_s
            )
            done = await waiting
        except RequestError as refusal:
            return refusal
        receipt = photo.receipt.timed(queue=1000 * done.queued_s, paint=1000 * done.ran_s)
        return replace(photo, frame=done.result, receipt=receipt)

    def _fitting(self, key: Key) -> int:
        _, (height, width) = key
        room = self.settings.max_batch_size - self.batcher.running
        return self.stylist.lanes.fitting(height, width, self.batcher.waiting, room)

    async def _paint(self, key: Key, frames: list[Frame]) -> list[Frame | Exception]:
        style, _ = key
        self.watch.tell(self.batcher)
        if self.releasing is not None:
            self.releasing.cancel()
        room = self.settings.max_batch_size - self.batcher.running + len(frames)
        waiting = min(self.batcher.waiting + len(frames), max(room, len(frames)))
        try:
            return await asyncio.wrap_future(self.stylist.start(style, frames, waiting))
        finally:
            self.releasing = asyncio.get_running_loop().call_later(self.settings.release_after_s, self.stylist.release)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.PixelBacklog` decides by."""
        self.watch.tell(self.batcher)
        return self.watch.work.report(self.batcher.waiting_pixels, self.batcher.running_for_s())

    def check_health(self) -> None:
        """By progress: a device that hangs would pass a check that only asks whether the process answers."""
        self.watch.tell(self.batcher)
        running_s = self.batcher.running_for_s()
        if running_s > self.settings.stuck_after_s:
            raise RuntimeError(f"a batch on the device has run for {running_s:.0f} s")


def make_stylist(settings: Settings) -> "Stylist":
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


class Watch:
    """Metrics of the batches, and what autoscaling goes by."""

    def __init__(self) -> None:
        self.work = WorkReport()
        self.batch_size = Histogram(metrics.BATCH_SIZE, "Pictures in a batch.", metrics.BATCH_SIZES)
        self.queue_s = Histogram(metrics.QUEUE_SECONDS, "From a picture's arrival to its batch.", metrics.SECONDS)
        self.batch_s = Histogram(metrics.BATCH_SECONDS, "Of a batch on the device.", metrics.SECONDS)
        self.waiting_pictures = Gauge(metrics.WAITING_PICTURES, "Pictures that wait for the device.")
        self.waiting_pixels = Gauge(metrics.WAITING_PIXELS, "Their pixels.")

    def on_batch(self, key: Key, size: int, pixels: int, waits_s: list[float], ran_s: float, busy_s: float) -> None:
        self.work.add_batch(size, pixels, busy_s)
        self.batch_size.observe(size)
        self.batch_s.observe(ran_s)
        for wait_s in waits_s:
            self.queue_s.observe(wait_s)

    def tell(self, batcher: Batcher[Key, Frame, Frame]) -> None:
        self.waiting_pictures.set(batcher.waiting)
        self.waiting_pixels.set(batcher.waiting_pixels)
