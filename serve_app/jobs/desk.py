"""The store of jobs for an event loop: every call runs in one of a few threads, so an fsync holds up nothing else.

The store is opened when it is first needed. As long as it cannot be opened, calls are refused, and it is tried again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeVar

from serve_app.errors import AnimeganError, RequestError, StoreUnavailable
from serve_app.jobs.watch import Watch
from serve_app.jobs.words import Job, JobReport, NewJob, Outlook, SchemaBehind
from serve_app.settings import JobsSettings

if TYPE_CHECKING:  # SQLAlchemy and Alembic, which a process without jobs does without
    from serve_app.jobs.store import JobStore

logger = logging.getLogger(__name__)

THREADS = 4  # as many as the connections that the store keeps open
REOPEN_AFTER_S = 5.0
STATE_S = 2.0  # for the answer of the database to a health check
STATE_CACHED_S = 5.0
MAX_PENDING = 64  # calls that run or wait for a thread; each holds a place of the service
SILENT_S = 1.0  # a call that fails after so long has found a database that does not answer,
REFUSE_S = 2.0  # and for this time nobody else waits for it
MAX_WAITING = 16  # requests that wait for the end of a job; each holds a place of the service

Result = TypeVar("Result")
State = Literal["ready", "full", "unavailable", "schema-behind"]


class JobDesk:
    """Where the HTTP routes hand jobs in and ask for them. For one event loop.

    Every method raises StoreUnavailable if the database or the blob store cannot be reached, and StoreFull if a disk is
    full.

    Args:
        settings: of jobs, which are enabled.
        rate: returns the pixels per second that this process has measured otherwise, for estimates before any job was
            painted; 0 if it has not.
    """

    def __init__(self, settings: JobsSettings, rate: Callable[[], float] = lambda: 0.0) -> None:
        self._settings = settings
        self._rate = rate
        self._threads = ThreadPoolExecutor(THREADS, "jobs")
        self._opening = threading.Lock()
        self._store: JobStore | None = None
        self._try_again_at = 0.0
        self._failure: StoreUnavailable = unavailable()  # of the last attempt to open it
        self._pending = 0
        self._refuse_until = 0.0
        self._watch = Watch(self.find)
        self._state: State = "unavailable"
        self._state_asked_at: float | None = None

    def open_soon(self) -> None:
        """Begins to open the store, so that the first request need not wait for it."""

        def attempt() -> None:
            with suppress(StoreUnavailable):  # it was logged
                self._opened()

        self._threads.submit(attempt)

    async def submit(self, client: str, new: NewJob, key: str | None = None) -> JobReport:
        """Stores a photograph and queues its job. When it returns, both are on the disk.

        Args:
            client: name of the client or its key.
            new: the job.
            key: the client's idempotency key. The same key with the same job returns the job that it made before.

        Raises:
            KeyReused: if the key came with another job before.
            TooBusy: if the queue, or the client's share of it, is full.
            StoreFull: if there is no room for the photograph, and nothing that could go.
        """
        rate = self._rate()

        def work(store: "JobStore") -> JobReport:
            (job,) = store.submit(client, [new], key).jobs
            outlook: Outlook | None = None
            with suppress(RequestError):  # the job is safe, whatever happens now
                outlook = store.positions.outlook_now(job.id, rate)
            return JobReport(job, outlook)

        return await self._call(work)

    async def report(self, job_id: str) -> JobReport:
        """Returns a job with its outlook.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it has expired or was erased.
        """
        rate = self._rate()

        def work(store: "JobStore") -> JobReport:
            job = store.get(job_id)
            outlooks = store.positions.outlooks([job_id], rate) if job.status.is_unfinished else {}
            return JobReport(job, outlooks.get(job_id))

        return await self._call(work)

    async def reports(self, job_ids: Sequence[str]) -> list[JobReport]:
        """Returns those of some jobs that exist, expired ones too, in the order of the ids."""
        rate = self._rate()

        def work(store: "JobStore") -> list[JobReport]:
            found = store.find(job_ids)
            unfinished = [job.id for job in found.values() if job.status.is_unfinished]
            outlooks = store.positions.outlooks(unfinished, rate) if unfinished else {}
            return [JobReport(found[each], outlooks.get(each)) for each in dict.fromkeys(job_ids) if each in found]

        return await self._call(work)

    async def find(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        """Returns those of some jobs that exist, expired ones too, by their ids."""
        return await self._call(lambda store: store.find(job_ids))

    async def painting(self, job_id: str) -> tuple[Job, bytes]:
        """Returns a job and its painting.

        Raises:
            UnknownJob: if there is none of this id.
            NotFinished: if it waits or runs.
            Gone: if there is no painting: the job failed, was cancelled or has expired.
        """

        def work(store: "JobStore") -> tuple[Job, bytes]:
            job = store.get(job_id)
            return job, store.painting(job)

        return await self._call(work)

    async def photo(self, job_id: str) -> tuple[Job, bytes]:
        """Returns a job and its photograph, as it was sent.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it, or its photograph, has expired or was erased.
        """

        def work(store: "JobStore") -> tuple[Job, bytes]:
            job = store.get(job_id)
            return job, store.photo(job)

        return await self._call(work)

    async def remove(self, job_id: str) -> JobReport:
        """Cancels a job that waits or runs, and erases a finished one. Returns the job as it is then.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it has expired or was erased before.
        """
        return JobReport(await self._call(lambda store: store.remove(job_id)))

    async def wait(self, job_id: str, seconds: float) -> JobReport:
        """Returns a job when it is finished, or as it is after some seconds; at once if too many wait already."""
        if self._watch.waiting < MAX_WAITING:
            await self._watch.end(job_id, seconds)
        return await self.report(job_id)

    async def state(self) -> State:
        """Returns whether jobs work, as of the last few seconds."""
        now = time.monotonic()
        if self._state_asked_at is None or now - self._state_asked_at > STATE_CACHED_S:
            self._state_asked_at = now
            try:
                async with asyncio.timeout(STATE_S):
                    self._state = await self._call(state_of)
            except SchemaBehind:
                self._state = "schema-behind"
            except (StoreUnavailable, TimeoutError):
                self._state = "unavailable"
        return self._state

    def close(self) -> None:
        """Waits for calls that run, and closes the connections to the database."""
        self._threads.shutdown(cancel_futures=True)
        if self._store is not None:
            self._store.close()

    async def _call(self, work: Callable[["JobStore"], Result]) -> Result:
        began = time.monotonic()
        if self._pending >= MAX_PENDING or began < self._refuse_until:
            raise unavailable()
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(self._opened()))
        except StoreUnavailable:
            if time.monotonic() - began > SILENT_S:
                self._refuse_until = time.monotonic() + REFUSE_S
            raise
        finally:
            self._pending -= 1

    def _opened(self) -> "JobStore":
        """Returns the store; for threads.

        Raises:
            StoreUnavailable: if it cannot be opened. That is tried once in `REOPEN_AFTER_S`.
        """
        with self._opening:
            if self._store is None:
                if time.monotonic() < self._try_again_at:
                    raise type(self._failure)(*self._failure.args)
                self._store = self._open()
            return self._store

    def _open(self) -> "JobStore":
        from sqlalchemy.exc import SQLAlchemyError

        from serve_app.jobs.store import open_store

        try:
            return open_store(self._settings)
        except (AnimeganError, SQLAlchemyError, OSError) as error:
            self._try_again_at = time.monotonic() + REOPEN_AFTER_S
            self._failure = error if isinstance(error, SchemaBehind) else unavailable()
            logger.error("the store of jobs cannot be opened: %s: %s", type(error).__name__, error)
            raise type(self._failure)(*self._failure.args) from None


def state_of(store: "JobStore") -> State:
    """Returns the state of a store that could be opened."""
    if store.schema_state() == "behind":
        return "schema-behind"
    return "full" if store.is_disk_full() else "ready"


def unavailable() -> StoreUnavailable:
    """Returns the refusal of everything while the store cannot be opened, or does not answer."""
    return StoreUnavailable("The store of jobs cannot be used at this moment. Try again.", retry_after_s=5)
