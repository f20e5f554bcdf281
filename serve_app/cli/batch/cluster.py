"""Paints on a Ray cluster: a Ray of its own on this machine, or one that is joined."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import ray
import ray.data
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from serve_app.cli.batch.painters import CALLS, LINES, PaintingActor, Work, to_table
from serve_app.cli.batch.plan import Task
from serve_app.cli.one_machine import PERIODS, WITHOUT_DASHBOARD
from serve_app.cli.paint.local import Share
from serve_app.errors import AnimeganError

OBJECT_STORE_BYTES = 200 * 2**20  # of a Ray of its own: only paths and lines pass through it
BLOCKS_A_PAINTER = 32  # so that painters end at about the same time
LEAST_ROWS, MOST_ROWS = 8, 256  # of a block
TRIES = 3  # of a block, if its painter dies, or its node
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}  # of the driver: Ray Data itself causes one of Ray's errors in each run
ENVIRONMENT = {
    **PERIODS,
    **WITHOUT_DASHBOARD,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # from 15: painting is all that this Ray does
}


class Pool(NamedTuple):
    """The painters of a run.

    Attributes:
        least, most: how many there are at a time.
        cpus: of each.
        gpus: of each; a fraction shares a card.
        a_node: how many fit on one node at most.
    """

    least: int
    most: int
    cpus: int
    gpus: float
    a_node: int

    @property
    def share(self) -> Share:
        """The part of its node that each painter may take."""
        return Share("cuda" if self.gpus else "cpu", self.cpus, self.gpus, self.a_node)


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Joins a cluster inside the block, or starts a Ray of its own on this machine, and leaves or stops it.

    Raises:
        AnimeganError: if that fails.
    """
    # Of this user alone. At a short path, because the names of Unix sockets in it may have 107 characters at most.
    folder = tempfile.mkdtemp(prefix="animegan-", dir="/tmp")  # nosec B108 # made anew, with mode 0700
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is lost is told in words
    for name, value in (QUIET | ({} if address else ENVIRONMENT)).items():
        os.environ.setdefault(name, value)
    own: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": os.path.join(folder, "ray"),
    }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with silenced():
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
        yield
    except (ConnectionError, RayError) as error:
        raise AnimeganError(f"Ray has failed: {error}") from None
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def silenced() -> Iterator[None]:
    """Drops what is written to standard error, by libraries too: Ray announces each setting of its logs there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def nodes() -> list[dict[str, float]]:
    """Returns the resources of each node that lives."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def size_pool(
    nodes: list[dict[str, float]], gpus: float | None, cpus: int | None, painters: tuple[int, int] | None, tasks: int
) -> Pool:
    """Returns how many painters a cluster has, and what each of them takes.

    On CPUs a painter takes as many as the smallest node has, since one model uses all cores as well as several.

    Args:
        nodes: resources of each.
        gpus: of each painter; None for a card each if there are some, and 0 for CPUs.
        cpus: of each painter; None for what its node has for each.
        painters: how many there are at least and at most; None for as many as there is room for.
        tasks: photographs to be painted.

    Raises:
        AnimeganError: if there is no room for a painter.
    """
    if gpus is None:
        gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
    able = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    cards = [int(node["GPU"] / gpus + 1e-9) if gpus else 1 for node in able]
    if cpus is None and able:
        cpus = max(1, min(int(node["CPU"]) // count for node, count in zip(able, cards, strict=True)))
    rooms = [
        min(int(node["CPU"]) // (cpus or 1), count if gpus else int(node["CPU"]))
        for node, count in zip(able, cards, strict=True)
    ]
    if not sum(rooms) and painters is None:
        wanted = f"{gpus:g} GPUs and {cpus or 1} CPUs" if gpus else f"{cpus or 1} CPUs"
        raise AnimeganError(f"no node has the {wanted} that a painter takes; see --num-gpus and --num-cpus")
    least, most = painters or (sum(rooms), sum(rooms))
    blocks = max(1, -(-tasks // LEAST_ROWS))
    return Pool(min(least, blocks), min(most, blocks), cpus or 1, gpus, max([1, *rooms]))


def painted(tasks: list[Task], work: Work, pool: Pool) -> Iterator[str]:
    """Paints photographs, and yields lines of the manifest as they come; `lost_lines` are of those of which none has.

    Raises:
        RayError: if the cluster is lost.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a photograph of which every painter dies must not end the run for the others
    context.target_max_block_size = 1  # each row of lines is a block, which goes to the driver at once
    rows = min(max(len(tasks) // (pool.most * BLOCKS_A_PAINTER), LEAST_ROWS), MOST_ROWS)
    tables = [to_table(tasks[start : start + rows]) for start in range(0, len(tasks), rows)]
    dataset = mapped(ray.data.from_arrow(tables), rows, work, pool)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.column(LINES).to_pylist():
            yield from row.splitlines()


def mapped(dataset: ray.data.Dataset, rows: int, work: Work, pool: Pool) -> Any:
    """Returns a dataset of what painters tell of the photographs in another, whose blocks have so many rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # the number of tries has no other parameter yet
        return dataset.map_batches(
            PaintingActor,
            fn_constructor_args=[replace(work, share=pool.share)],
            batch_size=rows,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            max_task_retries=TRIES - 1,  # Ray Data's default is for ever
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.least,
                max_size=pool.most,
                max_tasks_in_flight_per_actor=CALLS,
                max_concurrent_calls_per_actor=CALLS,
                enable_true_multi_threading=True,
            ),
        )
