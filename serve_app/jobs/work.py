"""A job at work, and the store as a runner uses it: in threads, and again and again while it cannot be used."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeVar

from serve_app.errors import RequestError, StoreFull, StoreUnavailable
from serve_app.frames import EncodedImage
from serve_app.jobs.outage import Outage
from serve_app.jobs.store import JobStore
from serve_app.jobs.words import Lease

THREADS = 4  # that wait for the database or the blob store
FULL_S = 120.0  # for which a painting is kept that cannot be stored, though others can
READ_S = 60.0  # for which an attempt waits for a photograph that cannot be read, though others can
MOST_ASIDE = 16  # jobs that wait for their own pictures, and hold no place meanwhile
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts at the store, the last one again and again

STORE_FAILED = (StoreUnavailable, StoreFull)

Answer = TypeVar("Answer")


class Unreadable(StoreUnavailable):
    """The photograph of one job cannot be read, though others can: the attempt counts."""


@dataclass(eq=False)
class Work:
    """A job at work.

    Attributes:
        lease: of the job.
        pixels: that are painted; the most there can be until the photograph's header was read.
        renew_at: by the runner's clock.
        task: that works on it.
        is_ending: its outcome is known and being written.
        is_void: the lease has passed on, or the job was cancelled.
        is_aside: it waits for a picture of its own that cannot be read or written, and holds no place.
    """

    lease: Lease
    pixels: int
    renew_at: float
    task: "asyncio.Task[None] | None" = None
    is_ending: bool = False
    is_void: bool = False
    is_aside: bool = False

    def abandon(self) -> None:
        """Cancels the work, because its lease is void."""
        self.is_void = True
        self.cancel()

    def cancel(self) -> None:
        """Cancels the work, and with it its calls, unless the outcome is being written: that needs the lease anyway."""
        if self.task is not None and not self.is_ending:
            self.task.cancel()


class PatientStore:
    """The store as a runner uses it: in threads, and again and again while it cannot be used. For one event loop.

    Args:
        store: of the jobs.
        clock: seconds, monotonic.
        on_aside: is called when a job has given its place up.

    Attributes:
        outage: whether trouble with a picture is everybody's.
    """

    def __init__(self, store: JobStore, clock: Callable[[], float], on_aside: Callable[[], None]) -> None:
        self.store = store
        self._on_aside = on_aside
        self.outage = Outage(self._probe, clock)
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, "jobs")
        self._lease_thread = ThreadPoolExecutor(1, "leases")  # pictures on a slow network must not hold up leases
        self._aside_threads = ThreadPoolExecutor(2, "aside")  # nor pictures that cannot be read hold up others
        self._aside = 0
        self._given_up_at = -float("inf")

    async def photo(self, work: Work) -> bytes:
        """Reads the photograph of a job. One that cannot be read, though others can, holds no place meanwhile.

        Raises:
            Unreadable: if that lasts.
            StoreUnavailable: if no photograph can be read.
            Gone: if it is not there.
        """
        try:
            return await self.in_thread(self.store.photo, work.lease.job)
        except StoreUnavailable:
            until = self._clock() + READ_S
        for pause_s in backoff():
            if await self.outage.is_everywhere():
                raise StoreUnavailable("No stored photograph can be read now.")
            with self._set_aside(work) as is_aside:
                if self._clock() >= until or not is_aside:
                    raise Unreadable("The stored photograph cannot be read, though others can. Send it again.")
                await asyncio.sleep(pause_s)
                with suppress(StoreUnavailable):
                    return await run_in(self._aside_threads, self.store.photo, work.lease.job)
        raise AssertionError("a backoff has no end")

    async def finish(self, work: Work, painting: EncodedImage) -> bool:
        """Stores a painting and ends its job; returns False if the lease is void.

        As long as no painting can be stored, this one waits for that.

        Raises:
            RequestError: if this one cannot be stored for some time, though others can.
        """
        until = self._clock() + FULL_S
        for pause_s in backoff():
            began = self._clock()
            try:
                return await self.in_thread(self.store.finish, work.lease, painting)
            except STORE_FAILED as error:
                if work.is_void:
                    return False
                is_everywhere = await self.outage.is_everywhere(len(painting.data))
                if is_everywhere and error.limit is None:
                    until = self._clock() + FULL_S
                # When one has given up, there may be room for another.
                elif self._clock() >= until and self._given_up_at < began:
                    self._given_up_at = float("inf")  # until `give_up` has ended the job
                    raise
            with self._set_aside(work) if not is_everywhere else nullcontext():
                await asyncio.sleep(pause_s)
        raise AssertionError("a backoff has no end")

    async def give_up(self, work: Work, error: RequestError) -> bool:
        """Fails a job whose painting cannot be stored; returns False if the lease is void."""
        try:
            return await self.insist(work, partial(self.store.queue.fail, work.lease, error))
        finally:
            self._given_up_at = self._clock()

    async def insist(self, work: Work, write: Callable[[], bool]) -> bool:
        """Writes to the database, again and again while that cannot be done; returns False if the lease is void."""
        for pause_s in backoff():
            try:
                return await self.in_thread(write)
            except STORE_FAILED:
                if work.is_void:
                    return False
                await asyncio.sleep(pause_s)
        raise AssertionError("a backoff has no end")

    def close(self) -> None:
        """Lets the threads end."""
        for threads in (self._threads, self._lease_thread, self._aside_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def in_lease_thread(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Calls a function that only needs the database, and in time."""
        return await run_in(self._lease_thread, function, *arguments)

    async def in_thread(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Calls a function that may take long."""
        return await run_in(self._threads, function, *arguments)

    async def _probe(self, size: int) -> None:
        await run_in(self._aside_threads, self.store.probe, size)

    @contextmanager
    def _set_aside(self, work: Work) -> Iterator[bool]:
        """Lets a job hold no place during a block; yields False if there are too many of the kind, and it does."""
        work.is_aside = self._aside < MOST_ASIDE
        self._aside += work.is_aside
        self._on_aside()
        try:
            yield work.is_aside
        finally:
            self._aside -= work.is_aside
            work.is_aside = False


def backoff() -> Iterator[float]:
    """Yields the pauses between attempts at the store, without end."""
    return chain(BACKOFF_S, repeat(BACKOFF_S[-1]))


async def run_in(threads: ThreadPoolExecutor, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Calls a function in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
