"""What happens to jobs, for all who watch in this process: one look at the store, again and again, for everybody.

PostgreSQL says when there is something to look at. On SQLite, and while PostgreSQL cannot be listened to, looks are a
quarter of a second apart.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serve_app.errors import RequestError, StoreUnavailable
from serve_app.jobs.threads import StoreThreads
from serve_app.jobs.words import Job, JobReport, Status

if TYPE_CHECKING:  # SQLAlchemy, which a process without jobs does without
    from serve_app.jobs.positions import Look
    from serve_app.jobs.reader import JobReader, Seen

LOOK_S = 0.25  # between two looks
TOLD_S = 5.0  # between two looks while the database says when something happens
GATHER_S = 0.05  # from such a word to the look, so that one look serves for several
EVERYTHING_S = 15.0  # between two looks at all jobs, for what no look at changes shows: that one was erased
QUEUE_S = 1.0  # between two looks at the queue,
QUEUE_SHARE = 20  # which take a twentieth of one thread at most
LISTEN_AGAIN_S = 5.0


@dataclass(eq=False)
class Watched:
    """A job that somebody watches.

    Attributes:
        job: as it was seen last; None if it does not exist.
        is_seen: whether it was looked at.
        watchers: of the job.
    """

    job: Job | None = None
    is_seen: bool = False
    watchers: "set[Watcher]" = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.is_seen and (self.job is None or not self.job.status.is_unfinished)


class Watcher:
    """Somebody who watches some jobs.

    Args:
        news: where.
        jobs: see below.

    Attributes:
        jobs: by id, in the order in which they were asked for.
        has_news: is set when a job has changed, or at the watcher's own wish.
    """

    def __init__(self, news: "News", jobs: dict[str, Watched]) -> None:
        self._news = news
        self.jobs = jobs
        self.has_news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to any of the jobs."""
        return all(each.is_over for each in self.jobs.values())

    async def news(self) -> None:
        """Returns when a job has changed since the last call."""
        await self.has_news.wait()
        self.has_news.clear()

    def report(self, job_id: str) -> JobReport | None:
        """Returns a job as it was seen last; None if it does not exist, or is not watched."""
        watched = self.jobs.get(job_id)
        return None if watched is None or watched.job is None else self._news.report(watched.job)


class News:
    """Looks at jobs while anybody watches. For one event loop.

    Args:
        threads: of a store.
        reader: returns the part of the store that reads jobs.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        threads: StoreThreads[Any],
        reader: "Callable[[Any], JobReader]",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = threads
        self._reader = reader
        self._clock = clock
        self._jobs: dict[str, Watched] = {}
        self._open: dict[str, Job] = {}  # the unfinished ones
        self._unseen: set[str] = set()
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._is_told = False
        self._gaps: set[str] = set()  # jobs that wait, and that the last look at the queue was too old for
        self._since_ms: int | None = None
        self._queue: Look | None = None
        self._everything_at = self._queue_at = 0.0
        self._first: asyncio.Future[None] | None = None  # the next look, for those who wait for their first

    @property
    def watched(self) -> int:
        """The number of jobs that somebody watches."""
        return len(self._jobs)

    @contextmanager
    def watching(self, job_ids: Iterable[str]) -> Iterator[Watcher]:
        """Watches some jobs for the length of a block."""
        watcher = Watcher(self, {each: self._jobs.setdefault(each, Watched()) for each in job_ids})
        for job_id, watched in watcher.jobs.items():
            watched.watchers.add(watcher)
            if not watched.is_seen:
                self._unseen.add(job_id)
        if self._looking is None or self._looking.done():
            self._wake = asyncio.Event()
            self._looking = asyncio.create_task(self._look_on())
        if self._unseen:
            self._wake.set()
        try:
            yield watcher
        finally:
            for job_id, watched in watcher.jobs.items():
                watched.watchers.discard(watcher)
                if not watched.watchers:
                    self._jobs.pop(job_id, None)
                    self._open.pop(job_id, None)
                    self._unseen.discard(job_id)

    def report(self, job: Job) -> JobReport:
        """Returns a job with its outlook by the last look at the queue."""
        is_open = job.status.is_unfinished and self._queue is not None
        return JobReport(job, self._queue.outlook(job) if is_open and self._queue else None)

    async def first_look(self, watcher: Watcher) -> None:
        """Returns when each of a watcher's jobs was looked at.

        Raises:
            StoreUnavailable: if that cannot be done now.
        """
        while not all(watched.is_seen for watched in watcher.jobs.values()):
            if self._first is None or self._first.done():
                self._first = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._first)

    async def _look_on(self) -> None:
        is_over = threading.Event()
        listening = asyncio.create_task(self._listen_on(is_over))
        try:
            while self._jobs:
                await self._pause()
                try:
                    await self._look()
                except RequestError as error:
                    self._end_first(error)
                else:
                    self._end_first(None)
        finally:
            is_over.set()
            listening.cancel()
            self._since_ms, self._is_told = None, False

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), TOLD_S if self._is_told and not self._gaps else LOOK_S)
            await asyncio.sleep(GATHER_S)
        self._wake.clear()

    async def _look(self) -> None:
        began = self._clock()
        known, unseen = dict(self._open), list(self._unseen)
        if not unseen and not known:
            return
        is_everything = began >= self._everything_at
        with_queue = began >= self._queue_at or bool(self._gaps)
        seen = await self._threads.call(
            lambda store: look(
                self._reader(store), known, unseen, None if is_everything else self._since_ms, with_queue
            )
        )
        self._since_ms = seen.now_ms
        if is_everything:
            self._everything_at = began + EVERYTHING_S
        if seen.queue is not None:
            self._queue = seen.queue
            self._queue_at = self._clock() + max(QUEUE_S, QUEUE_SHARE * (self._clock() - began))
        self._take(seen)

    def _take(self, seen: "Seen") -> None:
        for job_id, job in seen.jobs.items():
            watched = self._jobs.get(job_id)
            if watched is None:
                continue
            is_new = not watched.is_seen or status_of(watched.job) != status_of(job)
            watched.job, watched.is_seen = job, True
            self._unseen.discard(job_id)
            if job is not None and not watched.is_over:
                self._open[job_id] = job
            else:
                self._open.pop(job_id, None)
            self._gaps.add(job_id)
            if is_new:
                for watcher in watched.watchers:
                    watcher.has_news.set()
        self._gaps = {each for each in self._gaps if self._is_gap(self._open.get(each))}

    def _is_gap(self, job: Job | None) -> bool:
        return job is not None and job.status is Status.QUEUED and self.report(job).outlook is None

    def _end_first(self, error: RequestError | None) -> None:
        first, self._first = self._first, None
        if first is None or first.done():
            return
        if error is None:
            first.set_result(None)
        else:
            first.set_exception(error)
            first.exception()  # taken, even if nobody waits any more

    async def _listen_on(self, is_over: threading.Event) -> None:
        """Lets the database say when something happens, where it can."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "jobs-news")

        def heard() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._hear)

        def listen() -> bool:
            return self._reader(self._threads.opened()).listen(heard, is_over.is_set)

        try:
            while True:
                try:
                    if not await loop.run_in_executor(thread, listen):
                        return
                except StoreUnavailable:
                    self._is_told = False
                    await asyncio.sleep(LISTEN_AGAIN_S)
        finally:
            self._is_told = False
            thread.shutdown(wait=False)

    def _hear(self) -> None:
        self._is_told = True
        self._wake.set()


def look(
    reader: "JobReader", known: dict[str, Job], unseen: list[str], since_ms: int | None, with_queue: bool
) -> "Seen":
    """Looks at jobs; for a thread."""
    from serve_app.jobs.reader import Ask

    return reader.look(Ask(known, unseen, since_ms, with_queue))


def status_of(job: Job | None) -> str:
    """Returns the status of a job, and nothing for one that does not exist."""
    return "" if job is None else job.status
