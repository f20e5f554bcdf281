"""Private memory of the service's processes over time, by their role, though they are killed and started again."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import psutil

from benchmarks.reporting import MB, Row
from benchmarks.servers import DECODER, role
from benchmarks.soak import private_bytes

SAMPLE_S = 10.0
WARM_UP_S = 60.0  # of a process: it grows while it loads and meets its first requests
LEAST_SAMPLES = 4  # of a process, for a slope
RAY = ("gcs_server", "raylet")  # Ray's own processes that live as long as it does
WITH_DESCRIPTORS = ("ProxyActor", "Ingress", "Codec")


def named_processes(tree: Sequence[psutil.Process]) -> Iterator[tuple[str, psutil.Process]]:
    """Yields the processes of a service that have a role, decoders aside, and Ray's own that are always there."""
    for process in tree:
        with suppress(psutil.Error):
            name = role(process) or (process.name() if process.name() in RAY else None)
            if name not in (None, DECODER):
                yield str(name), process


class MemorySampler(threading.Thread):
    """Samples the private memory of a service's processes while a `with` block runs.

    Args:
        processes: returns those that there are now.
        now: seconds since the load began.

    Attributes:
        samples: each with `s`, `role`, `pid` and `bytes`.
    """

    def __init__(self, processes: Callable[[], Sequence[psutil.Process]], now: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self.samples: list[Row] = []
        self._processes = processes
        self._now = now
        self._over = threading.Event()

    def __enter__(self) -> "MemorySampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Takes samples until the block ends."""
        while not self._over.wait(SAMPLE_S):
            for name, process in named_processes(self._processes()):
                with suppress(psutil.Error, OSError):
                    figures = {"pid": process.pid, "bytes": private_bytes(process)}
                    self.samples.append({"s": round(self._now(), 1), "role": name} | figures)


def slopes(samples: Sequence[Row], since_s: float, warm_up_s: float = WARM_UP_S) -> dict[str, float | None]:
    """Returns MB a minute by role, of the samples since then (least squares).

    A process that takes the place of a killed one begins at another level, which is no growth. So all processes of a
    role share one slope, and each has an intercept of its own; the first `warm_up_s` of each do not count. None where
    no process lived long enough.
    """
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(sample["role"] for sample in samples):
        over_mean: list[tuple[float, float]] = []
        own = [sample for sample in samples if sample["role"] == name]
        for pid in {sample["pid"] for sample in own}:
            life = [sample for sample in own if sample["pid"] == pid]
            begun_s = life[0]["s"] + warm_up_s
            points = [(s["s"] / 60, s["bytes"] / MB) for s in life if s["s"] >= max(since_s, begun_s)]
            if len(points) >= LEAST_SAMPLES:
                over_mean += [tuple(point) for point in np.array(points) - np.mean(points, axis=0)]
        spread = sum(minutes**2 for minutes, _ in over_mean)
        found[name] = float(sum(x * y for x, y in over_mean) / spread) if spread else None
    return found


def memory_rows(samples: Sequence[Row], since_s: float) -> list[Row]:
    """Returns a row for each role: how many processes it had, their memory, and how it grew since then."""
    rows = []
    for name, slope in slopes(samples, since_s).items():
        own = [sample for sample in samples if sample["role"] == name]
        megabytes = [sample["bytes"] / MB for sample in own]
        rows.append(
            {
                "role": name,
                "processes": len({sample["pid"] for sample in own}),
                "first MB": round(megabytes[0]),
                "last MB": round(megabytes[-1]),
                "most MB": round(max(megabytes)),
                "last half, MB a minute": "too short" if slope is None else slope,
            }
        )
    return rows


def once_a_minute(samples: Sequence[Row]) -> list[Row]:
    """Returns the first sample of each process in each minute: enough for a report."""
    first: dict[tuple[int, int], Row] = {}
    for sample in samples:
        first.setdefault((sample["pid"], int(sample["s"] // 60)), sample)
    return list(first.values())


def descriptors(tree: Sequence[psutil.Process]) -> dict[str, int]:
    """Returns the open descriptors of the processes that hold connections, by their role."""
    counts: dict[str, int] = {}
    for name, process in named_processes(tree):
        if name in WITH_DESCRIPTORS:
            with suppress(psutil.Error):
                counts[name] = counts.get(name, 0) + process.num_fds()
    return counts


def settled(figures: Callable[[], dict[str, int]], seconds: float) -> dict[str, int]:
    """Returns the least of each figure within some seconds, which leaves out what is in use only for a moment."""
    least, end = figures(), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)
        for name, value in figures().items():
            least[name] = min(value, least.get(name, value))
    return least
