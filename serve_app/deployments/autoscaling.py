"""How many Stylizers there should be, by pixels: one request may hold sixty times another's work.

Used by name in the YAML, as the deployment's autoscaling policy. Serve applies its delays, factors and bounds to what
comes out.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

STATS = ("busy", "waiting_pixels", "pixels_per_second", "pixels_per_picture")


class Context(Protocol):
    """What is read of Serve's AutoscalingContext."""

    current_num_replicas: int
    target_num_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None
    total_queued_requests: float | None


class PixelBacklog:
    """Replicas for what is being painted, and for painting what waits in time.

    Args:
        drain_s: seconds within which what waits should be painted.
        busy: the part of its time that a replica should be painting, above 0 and at most 1.
    """

    def __init__(self, drain_s: float = 4.0, busy: float = 0.85) -> None:
        self._drain_s = drain_s
        self._busy = busy

    def __call__(self, ctx: Context) -> tuple[float, dict[str, Any]]:
        stats = ctx.aggregated_metrics or {}
        busy, waiting, rates, sizes = (list((stats.get(name) or {}).values()) for name in STATS)
        rates = [rate for rate in rates if rate > 0]
        if not rates:  # nobody has painted yet: nothing to go by
            return ctx.target_num_replicas, {}
        rate = sum(rates) / len(rates)
        size = sum(sizes) / len(sizes) if sizes else 0.0
        backlog = sum(waiting) + (ctx.total_queued_requests or 0) * size
        return sum(busy) / self._busy + backlog / (rate * self._drain_s), {}


class Work:
    """What one Stylizer reports for `PixelBacklog`: its device's time and pixels, old ones fading.

    Args:
        clock: seconds, monotonic.
    """

    FADING = 0.8  # kept of what was known of rate and size, at each batch

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_s = clock()
        self._busy_s = 0.0
        self._pixels = self._seconds = self._pictures = 0.0

    def painted(self, pictures: int, pixels: int, seconds: float) -> None:
        """One batch, and how long the device was in use since the one that ended before it."""
        self._busy_s += seconds
        self._pixels = self._pixels * self.FADING + pixels
        self._seconds = self._seconds * self.FADING + seconds
        self._pictures = self._pictures * self.FADING + pictures

    def report(self, waiting_pixels: int, running_for_s: float) -> dict[str, float]:
        """Since the last report; `busy` is 1 where a batch has been running all the time."""
        now = self._clock()
        span_s, self._told_s = now - self._told_s, now
        busy_s = max(self._busy_s, min(running_for_s, span_s))
        self._busy_s = 0.0
        figures = (
            min(busy_s / span_s, 1.0) if span_s > 0 else 0.0,
            float(waiting_pixels),
            self._pixels / self._seconds if self._seconds else 0.0,
            self._pixels / self._pictures if self._pictures else 0.0,
        )
        return dict(zip(STATS, figures, strict=True))
