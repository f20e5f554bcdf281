"""The store of jobs as the HTTP routes use it, on an event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from serve_app.errors import RequestError, StoreUnavailable
from serve_app.jobs.cache import PaintingCache
from serve_app.jobs.callbacks import check_callback_url
from serve_app.jobs.news import News
from serve_app.jobs.threads import StoreThreads
from serve_app.jobs.words import Job, JobReport, NewJob, Outlook, SchemaBehind
from serve_app.settings import JobsSettings

if TYPE_CHECKING:  # SQLAlchemy and Alembic, which a process without jobs does without
    from serve_app.jobs.store import JobStore

STATE_S = 2.0  # for the answer of the database to a health check
STATE_CACHED_S = 5.0
MAX_WAITING = 16  # requests that wait for the end of a job; each holds a place of the service

State = Literal["ready", "full", "unavailable", "schema-behind"]


class JobDesk:
    """Where the HTTP routes hand jobs in and ask for them. For one event loop.

    The store is opened when it is first needed. As long as it cannot be opened, calls are refused, and it is tried
    again.

    Every method raises StoreUnavailable if the database or the blob store cannot be reached, and StoreFull if a disk is
    full.

    Args:
        settings: of jobs, which are enabled.
        rate: returns the pixels per second that this process has measured otherwise, for estimates before any job was
            painted; 0 if it has not.

    Attributes:
        settings: of jobs.
        news: what happens to jobs, for those who watch.
        paintings: that may be used again.
    """

    def __init__(self, settings: JobsSettings, rate: Callable[[], float] = lambda: 0.0) -> None:
        self.settings = settings
        self._rate = rate
        self._threads = StoreThreads(lambda: open_store(settings))
        self.news = News(self._threads, lambda store: store.reader)
        self._waiting = 0
        self._state: State = "unavailable"
        self._state_asked_at: float | None = None
        self.paintings = PaintingCache(self._threads, settings)

    def open_soon(self) -> None:
        """Begins to open the store, so that the first request need not wait for it."""
        self._threads.open_soon()

    def check_callback_url(self, url: str) -> str:
        """Returns a URL that the end of a job may be sent to, as it will be called.

        Raises:
            BadOption: if this service does not call it.
        """
        return check_callback_url(url, self.settings.webhooks)

    async def submit(self, client: str, new: Sequence[NewJob], key: str | None = None) -> list[JobReport]:
        """Stores photographs and queues their jobs. When it returns, all of them are on the disk.

        Args:
            client: name of the client or its key.
            new: the jobs; either all or none of them are made.
            key: the client's idempotency key. The same key with the same jobs returns the jobs that it made before.

        Raises:
            KeyReused: if the key came with other jobs before.
            TooBusy: if the queue, or the client's share of it, is full.
            StoreFull: if there is no room for the photographs, and nothing that could go.
            UnknownJob, Gone: if a source, or its photograph, is not there.
        """
        rate = self._rate()

        def work(store: "JobStore") -> list[JobReport]:
            made = store.submit(client, new, key).jobs
            outlooks: dict[str, Outlook] = {}
            unfinished = [job for job in made if job.status.is_unfinished]
            with suppress(RequestError):  # the jobs are safe, whatever happens now
                if len(unfinished) == 1:
                    outlook = store.positions.outlook_now(unfinished[0].id, rate)
                    outlooks = {} if outlook is None else {unfinished[0].id: outlook}
                elif unfinished:
                    outlooks = store.positions.outlooks(unfinished, rate, is_fresh=True)
            return [JobReport(job, outlooks.get(job.id)) for job in made]

        return await self._threads.call(work)

    async def report(self, job_id: str) -> JobReport:
        """Returns a job with its outlook.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it has expired or was erased.
        """
        rate = self._rate()

        def work(store: "JobStore") -> JobReport:
            job = store.get(job_id)
            outlooks = store.positions.outlooks([job], rate) if job.status.is_unfinished else {}
            return JobReport(job, outlooks.get(job_id))

        return await self._threads.call(work)

    async def reports(self, job_ids: Sequence[str]) -> list[JobReport]:
        """Returns those of some jobs that exist, expired ones too, in the order of the ids."""
        rate = self._rate()

        def work(store: "JobStore") -> list[JobReport]:
            found = store.find(job_ids)
            unfinished = [job for job in found.values() if job.status.is_unfinished]
            outlooks = store.positions.outlooks(unfinished, rate) if unfinished else {}
            return [JobReport(found[each], outlooks.get(each)) for each in dict.fromkeys(job_ids) if each in found]

        return await self._threads.call(work)

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

        return await self._threads.call(work)

    async def photo(self, job_id: str) -> tuple[Job, bytes]:
        """Returns a job and its photograph, as it was sent.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it, or its photograph, has expired or was erased.
        """

        def work(store: "JobStore") -> tuple[Job, bytes]:
            job = store.get(job_id)
            return job, store.photo(job)

        return await self._threads.call(work)

    async def remove(self, job_id: str) -> JobReport:
        """Cancels a job that waits or runs, and erases a finished one. Returns the job as it is then.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it has expired or was erased before.
        """
        return JobReport(await self._threads.call(lambda store: store.remove(job_id)))

    async def wait(self, job_ids: Sequence[str], seconds: float) -> list[JobReport]:
        """Returns jobs when all are finished, or as they are after some seconds; at once if too many wait already."""
        if self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                with self.news.watching(job_ids) as watcher, suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        while not watcher.is_over:
                            await watcher.news()
            finally:
                self._waiting -= 1
        return await self.reports(job_ids)

    async def state(self) -> State:
        """Returns whether jobs work, as of the last few seconds."""
        now = time.monotonic()
        if self._state_asked_at is None or now - self._state_asked_at > STATE_CACHED_S:
            self._state_asked_at = now
            try:
                async with asyncio.timeout(STATE_S):
                    self._state = await self._threads.call(state_of)
            except SchemaBehind:
                self._state = "schema-behind"
            except (StoreUnavailable, TimeoutError):
                self._state = "unavailable"
        return self._state

    def close(self) -> None:
        """Waits for calls that run, and closes the connections to the database."""
        self.paintings.close()
        self._threads.close()


def state_of(store: "JobStore") -> State:
    """Returns the state of a store that could be opened."""
    if store.schema_state() == "behind":
        return "schema-behind"
    return "full" if store.is_disk_full() else "ready"


def open_store(settings: JobsSettings) -> "JobStore":
    """Opens the store; SQLAlchemy is imported only now."""
    from serve_app.jobs.store import open_store as open_now

    return open_now(settings)
