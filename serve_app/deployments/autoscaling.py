"""How many Stylizers and Codecs there are.

The YAML names `PixelBacklog` and `Work` as the autoscaling policies of the two deployments. Serve applies its delays,
factors and bounds to the number that a policy returns. Stylizers are counted by pixels: one request may be sixty times
the work of another.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from serve_app.queueing.rate import DecayingRate

WORKING = "working"
RETIRING = "retiring"  # 1 of a replica that is to be replaced
STATS = ("busy", "waiting_pixels", "jobs_here", "jobs_queued", "pixels_per_second", "pixels_per_picture")

# Of the measured rates, in seconds of device time. As long as the Ingress's, so that both judge a backlog by the same
# measurement. On a CPU, where a batch takes seconds, it averages over several; on a GPU over hundreds of all sizes.
# A slow first batch is forgotten within minutes of work.
HALF_LIFE_S = 30.0

JOBS_NEWS_S = 15.0  # for which a Stylizer believes what a JobRunner has told it


class Context(Protocol):
    """The part of Serve's AutoscalingContext that the policies read."""

    current_num_replicas: int
    target_num_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None
    total_queued_requests: float | None


class PixelBacklog:
    """An autoscaling policy: enough replicas for the present work, and to paint the waiting images in time.

    Jobs count by what waits alone, and may wait for longer: they keep every replica busy for as long as any are left,
    so the time that painting them takes says nothing. Each pixel of a job counts once. Those that wait in a Stylizer
    (`jobs_here`) are added up. Those that wait in the database (`jobs_queued`) are the same for all: whichever
    Stylizers JobRunners have told of them, the largest figure counts.

    Args:
        drain_s: seconds within which the waiting images should be painted.
        busy: the part of its time that a replica should be painting for requests, above 0 and at most 1.
        jobs_drain_s: seconds within which the waiting jobs should be painted.
    """

    def __init__(self, drain_s: float = 4.0, busy: float = 0.85, jobs_drain_s: float = 60.0) -> None:
        self._drain_s = drain_s
        self._busy = busy
        self._jobs_drain_s = jobs_drain_s

    def __call__(self, ctx: Context) -> tuple[float, dict[str, Any]]:
        """Returns the number of replicas that are needed, not rounded, and an empty state."""
        stats = ctx.aggregated_metrics or {}
        busy, waiting, jobs_here, jobs_queued, rates, sizes = (list((stats.get(name) or {}).values()) for name in STATS)
        rates = [rate for rate in rates if rate > 0]
        if not rates:  # no replica has painted yet, so there is no rate to decide by
            return max(ctx.target_num_replicas, least_replicas(stats)), {}
        rate = sum(rates) / len(rates)
        size = sum(sizes) / len(sizes) if sizes else 0.0
        backlog = sum(waiting) + (ctx.total_queued_requests or 0) * size
        jobs = sum(jobs_here) + max(jobs_queued, default=0.0)
        needed = sum(busy) / self._busy + backlog / (rate * self._drain_s) + jobs / (rate * self._jobs_drain_s)
        return max(needed, least_replicas(stats)), {}


def least_replicas(stats: Mapping[str, Mapping[Any, float]]) -> int:
    """Returns 2 while a replica waits to be replaced, so that another one runs when it leaves; else 0."""
    return 2 if any((stats.get(RETIRING) or {}).values()) else 0


class WorkReport:
    """Measures the work of one Stylizer, for `PixelBacklog`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reported_s = clock()
        self._busy_s = 0.0
        self._pixels = DecayingRate(HALF_LIFE_S)
        self._images = DecayingRate(HALF_LIFE_S)
        self._queued = (0, -math.inf)  # pixels of jobs, and when a JobRunner has told of them

    def hear_of_jobs(self, queued_pixels: int) -> None:
        """Takes note of the pixels of all jobs that wait in the database."""
        self._queued = (queued_pixels, self._clock())

    def add_batch(self, images: int, pixels: int, busy_s: float, background_pixels: int = 0) -> None:
        """Counts one batch.

        Args:
            images: in the batch.
            pixels: of all of them.
            busy_s: how long the device was in use since the batch that ended before this one.
            background_pixels: of jobs.
        """
        self._busy_s += busy_s * (1 - background_pixels / pixels)
        for rate, amount in ((self._pixels, pixels), (self._images, images)):
            rate.advance(busy_s)
            rate.add(amount)

    def report(self, waiting_pixels: int, running_for_s: float, job_pixels: int = 0) -> dict[str, float]:
        """Returns the figures of `STATS`, and begins a new period.

        `busy` is the part of the period in which the device was in use for requests: 1 if one batch of them has run all
        the time. The period began with the last report. The rates cover the latest work, whenever that was.

        Args:
            waiting_pixels: pixels of the images that wait now, without jobs.
            running_for_s: seconds since the oldest batch of requests on the device was started, 0 if there is none.
            job_pixels: pixels of the jobs that wait in this Stylizer.
        """
        now = self._clock()
        period_s, self._reported_s = now - self._reported_s, now
        busy_s = max(self._busy_s, min(running_for_s, period_s))
        self._busy_s = 0.0
        pixels_per_second, images_per_second = self._pixels.per_second(), self._images.per_second()
        queued_pixels, heard_s = self._queued
        figures = (
            min(busy_s / period_s, 1.0) if period_s > 0 else 0.0,
            float(waiting_pixels),
            float(job_pixels),
            float(queued_pixels) if now - heard_s <= JOBS_NEWS_S else 0.0,
            pixels_per_second,
            pixels_per_second / images_per_second if images_per_second else 0.0,
        )
        return dict(zip(STATS, figures, strict=True))


class Work:
    """An autoscaling policy: enough replicas for the work in progress, which is less than the calls in progress.

    A call of a Codec lasts until its painting is encoded. While the Stylizer paints, the Codec has nothing to do.

    Args:
        target: photographs and paintings that one replica should be working on.
    """

    def __init__(self, target: float = 2.0) -> None:
        self._target = target

    def __call__(self, ctx: Context) -> tuple[float, dict[str, Any]]:
        """Returns the number of replicas that are needed, not rounded, and an empty state."""
        stats = ctx.aggregated_metrics or {}
        working = (stats.get(WORKING) or {}).values()
        if not working:  # no replica has reported yet
            return ctx.target_num_replicas, {}
        return max(sum(working) / self._target, least_replicas(stats)), {}


class Occupancy:
    """Measures how many things a replica works on at a time, for `Work`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._product_s = 0.0  # of the count and the seconds that it lasted, since the last report
        self._changed_s = self._reported_s = clock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one more inside the block."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def report(self) -> dict[str, float]:
        """Returns the average since the last report, and begins a new period."""
        self._change(0)
        period_s, self._reported_s = self._changed_s - self._reported_s, self._changed_s
        average = self._product_s / period_s if period_s > 0 else float(self._count)
        self._product_s = 0.0
        return {WORKING: average}

    def _change(self, by: int) -> None:
        now = self._clock()
        self._product_s += self._count * (now - self._changed_s)
        self._changed_s = now
        self._count += by
