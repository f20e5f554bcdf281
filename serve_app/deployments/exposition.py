"""The metrics of a node at one address, in Prometheus's text format.

Each process counts in files of its own, and the HTTP proxy of its node adds them up whenever it is asked: the
multiprocess mode of prometheus_client. Ray's own exporter is not used for them. It labels every series with the id of
its process, so that the series of all that were ever replaced stay; it knows the sums of histograms only roughly; and
it listens on every address.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from prometheus_client import CollectorRegistry, start_http_server, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue
from ray._private.worker import global_worker

from serve_app.settings import MetricsSettings

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it whenever a series is new
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_liveall", "gauge_livemax")  # of files; `metrics` uses no other
FILE_BYTES = 2**18  # of each: about 1,500 series
MOST_PROCESSES = 1024  # that count on a node at a time
NUMBER = "number"  # the label that tells processes of a node apart

logger = logging.getLogger("ray.serve")

_joining = threading.Lock()
_locks: list[int] = []  # file descriptors that are held until this process ends


def join() -> Path | None:
    """Has this process count where its node's metrics are; returns their folder, or None if it counts for itself.

    Call it before the first metric is made. A process outside of Ray counts for itself, and so does one that has no
    room for its files, which is logged.
    """
    with _joining:
        if _locks:
            return Path(os.environ[FOLDER_VARIABLE])
        if not ray.is_initialized():
            return None
        folder = node_folder()
        try:
            count_in(folder)
        except OSError as error:
            logger.warning("the metrics of this process are not published: %s", error)
            return None
        return folder


def node_folder() -> Path:
    """Returns the folder for the metrics of this process's node, which goes with Ray's session."""
    # Ray has no public call for the first.
    node = global_worker.node
    assert node is not None  # Ray is initialised
    session: str = node.get_session_dir_path()
    return Path(session) / "animegan-metrics" / ray.get_runtime_context().get_node_id()


def count_in(folder: Path) -> None:
    """Has this process count in the files of the lowest number that no living process has.

    So counters go on where those of a dead process ended, and there are never more files than processes at a time. The
    files are made as long as they get: a write to a part that the disk has no room for would kill the process.

    Raises:
        OSError: if the folder cannot be written to, or has no room.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = next((number for number in range(MOST_PROCESSES) if take(folder, number)), None)
    if number is None:
        raise OSError(f"there are {MOST_PROCESSES} processes in {folder} already")
    drop_gauges(folder, number)  # of its predecessor
    for kind in KINDS:
        make_file(folder / f"{kind}_{number}.db")
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.ValueClass = MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def take(folder: Path, number: int) -> bool:
    """Takes a number until this process ends; returns whether it was free."""
    lock = try_lock(folder, number)
    if lock is None:
        return False
    _locks.append(lock)
    return True


def try_lock(folder: Path, number: int) -> int | None:
    """Returns a file descriptor that holds a number; None if another process holds it."""
    lock = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def make_file(path: Path) -> None:
    """Makes a file of zeros whose space is allocated, unless it is there.

    Raises:
        OSError: if there is no room for it.
    """
    if path.exists():
        return
    unready = path.with_suffix(".new")  # nobody may read it before it is whole
    try:
        with unready.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
        unready.replace(path)
    except OSError:
        unready.unlink(missing_ok=True)
        raise


class NodeCollector(Collector):
    """Adds up the metrics of a node's processes, for a registry.

    Args:
        folder: of `count_in`.
        before: is called before each collection, to update what this process itself has to say.
    """

    def __init__(self, folder: Path, before: Callable[[], None]) -> None:
        self._folder = folder
        self._before = before

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics; of dead processes only what they have counted."""
        self._before()
        forget_dead(self._folder)
        collector = MultiProcessCollector(None, str(self._folder))  # type: ignore[no-untyped-call]
        metrics: Iterable[Metric] = collector.collect()  # type: ignore[no-untyped-call]
        for metric in metrics:
            for at, sample in enumerate(metric.samples):
                if (number := sample.labels.pop("pid", None)) is not None:  # it is none that the system knows
                    metric.samples[at] = sample._replace(labels={**sample.labels, NUMBER: number})
            yield metric


def forget_dead(folder: Path) -> None:
    """Removes the gauges of processes that have ended."""
    for path in folder.glob("*.lock"):
        number = int(path.stem)
        if (lock := try_lock(folder, number)) is not None:
            try:
                drop_gauges(folder, number)
            finally:
                os.close(lock)


def drop_gauges(folder: Path, number: int) -> None:
    """Removes the gauges of a number, and leaves what it has counted."""
    mark_process_dead(number, str(folder))  # type: ignore[no-untyped-call]


def serve(settings: MetricsSettings, folder: Path, before: Callable[[], None]) -> Any:
    """Answers a node's metrics at the address of the settings, in threads; returns the server, or None if it is taken.

    Args:
        settings: where to listen.
        folder: of `count_in`.
        before: see `NodeCollector`.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(folder, before))
    try:
        server, _ = start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        logger.error(
            "no metrics: %s cannot be listened at (%s); change `metrics` in the config file", settings.address, error
        )
        return None
    return server
