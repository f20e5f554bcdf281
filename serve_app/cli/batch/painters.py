"""What runs on the nodes: an actor that reads photographs, paints them and writes their paintings.

One actor does all of it, so pictures never pass through Ray's object store: what comes in are paths, and what goes out
are lines of the manifest. Inside, it works as `animegan paint` does. Files are decoded in processes of their own, and
decoding, painting and encoding overlap, also those of several calls, so batches fill whatever blocks Ray Data makes.
"""

import asyncio
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from serve_app.cli.batch.plan import Task
from serve_app.cli.batch.storage import open_storage
from serve_app.cli.paint.local import LocalPainter, Share
from serve_app.cli.paint.photographs import Photograph, PhotographError
from serve_app.cli.paint.reports import as_json
from serve_app.cli.paint.work import Backend, Outcome
from serve_app.errors import AnimeganError, RequestError
from serve_app.frames import Precision
from serve_app.images.budget import ByteBudget

if TYPE_CHECKING:
    import pyarrow

CALLS = 4  # of one actor at a time: the next ones begin while the last photographs of others are painted
LINES = "lines"  # the column of what comes out
END = "end"  # the member of a line that ends the run, with the reason
TELL_S = 1.0  # between two rows of what comes out
MAX_HELD_BYTES = 2**30  # of files and paintings at work, or an eighth of what is free if that is less
TRANSFERS = 8  # threads that read, and as many that write: a bucket answers slowly, and many at a time


@dataclass(frozen=True)
class Work:
    """What all actors are told.

    Attributes:
        source, destination: addresses of `open_storage`.
        style, precision, max_side, quality: as `LocalPainter` takes them.
        overwrite: whether paintings are replaced.
        share: the part of its node that each actor may take.
    """

    source: str
    destination: str
    style: str
    precision: Precision
    max_side: int
    quality: int | None
    overwrite: bool
    share: Share


class PaintingActor:
    """Paints the rows of tables that Ray Data hands it, in several threads at a time."""

    def __init__(self, work: Work) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="paint", daemon=True).start()
        self._overwrite = work.overwrite
        self._node = node_id()
        self._problem: AnimeganError | None = None
        try:
            self._source, self._destination = open_storage(work.source), open_storage(work.destination)
            self._backend: Backend = LocalPainter(work.style, work.precision, work.max_side, work.quality, work.share)
        except AnimeganError as error:  # told to the driver in words, where Ray would tell a traceback
            self._problem = error
            return
        self._places = asyncio.Semaphore(self._backend.at_once)
        self._budget = ByteBudget(min(MAX_HELD_BYTES, work.share.available_bytes // 8))
        self._readers, self._writers = ThreadPoolExecutor(TRANSFERS, "read"), ThreadPoolExecutor(TRANSFERS, "write")

    def __call__(self, table: "pyarrow.Table") -> Iterator[dict[str, list[str]]]:
        """Paints photographs; yields lines of the manifest as soon as there are some, many in one row."""
        if self._problem is not None:
            yield {LINES: [end_line(self._problem)]}
            return
        tasks = from_table(table)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        asyncio.run_coroutine_threadsafe(self._paint_all(tasks, lines), self._loop)
        left = len(tasks)
        while left:
            ready = [lines.get()]
            until_s = time.monotonic() + TELL_S
            while len(ready) < left and (wait_s := until_s - time.monotonic()) > 0:
                try:
                    ready.append(lines.get(timeout=wait_s))
                except queue.Empty:
                    break
            left -= len(ready)
            yield {LINES: ["\n".join(ready)]}

    async def _paint_all(self, tasks: list[Task], lines: "queue.SimpleQueue[str]") -> None:
        async def paint(task: Task) -> None:
            try:
                lines.put(json.dumps(as_json(await self._outcome(task)) | {"node": self._node}))
            except AnimeganError as error:
                lines.put(end_line(error))
            except BaseException as error:  # whatever it is, the call waits for a line
                lines.put(end_line(error))
                raise

        await asyncio.gather(*(paint(task) for task in tasks), return_exceptions=True)

    async def _outcome(self, task: Task) -> Outcome:
        """Paints one photograph; what is wrong with it is its outcome.

        Raises:
            AnimeganError: if no other one can be painted either.
        """
        photograph = Photograph(Path(task.photo), Path(task.painting), task.format)
        try:
            async with self._places:
                return await self._painted(task, photograph)
        except (RequestError, PhotographError) as error:
            return Outcome(photograph, "failed", error=error)
        except RuntimeError as error:  # of painting: the others must not suffer
            detail = f"Painting it failed ({type(error).__name__}: {error})."  # nobody sees the log of a node
            return Outcome(photograph, "failed", error=PhotographError("internal-error", detail))

    async def _painted(self, task: Task, photograph: Photograph) -> Outcome:
        loop, most = asyncio.get_running_loop(), self._backend.max_bytes
        async with self._budget.reserve(self._backend.held_bytes(min(task.bytes, most))):
            # Ray repeats the calls of an actor that was lost, and some of their photographs were painted before.
            if not self._overwrite and await loop.run_in_executor(
                self._readers, self._destination.is_file, task.painting
            ):
                return Outcome(photograph, "skipped")
            data = await loop.run_in_executor(self._readers, self._source.read, task.photo, most)
            painting = await self._backend.paint(data, task.format)
            await loop.run_in_executor(self._writers, self._destination.write, task.painting, painting.data)
        return Outcome(photograph, "painted", painting.receipt)


def node_id() -> str:
    """Returns the id of this node in its cluster."""
    return str(ray.get_runtime_context().get_node_id())


def end_line(error: BaseException) -> str:
    """Returns the line that ends the run."""
    return json.dumps({END: str(error) or type(error).__name__})


def to_table(tasks: list[Task]) -> "pyarrow.Table":
    """Returns tasks as a table. Paths are bytes, as those of files need not be text."""
    import pyarrow

    rows = {
        "photo": [os.fsencode(task.photo) for task in tasks],
        "painting": [os.fsencode(task.painting) for task in tasks],
        "format": [task.format for task in tasks],
        "bytes": [task.bytes for task in tasks],
    }
    return pyarrow.table(rows)


def from_table(table: "pyarrow.Table") -> list[Task]:
    """Returns the tasks of a table."""
    return [
        Task(os.fsdecode(row["photo"]), os.fsdecode(row["painting"]), row["format"], row["bytes"])
        for row in table.to_pylist()
    ]
