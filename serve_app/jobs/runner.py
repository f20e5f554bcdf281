"""Works on jobs: claims them, has them painted, and ends them. Asyncio, without Ray.

Several runners may work over one store: each job has one lease, and whoever ends it without that lease changes nothing.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar

from serve_app.errors import (
    DeadlineExceeded,
    DecodeTimeout,
    Gone,
    NotReady,
    RequestError,
    StoreFull,
    StoreUnavailable,
    TooBusy,
)
from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.jobs.outage import Outage
from serve_app.jobs.silences import Silences
from serve_app.jobs.store import JobStore
from serve_app.jobs.words import Lease
from serve_app.settings import JobRunnerSettings

logger = logging.getLogger(__name__)

THREADS = 4  # that wait for the database or the blob store
LOOK_S = 1.0  # between two looks at whether the jobs at work were cancelled
RENEWALS = 3  # of a lease, in the time that it lasts
REAPS = 3  # looks at lost leases, in the time that one lasts
PAUSE_S = 3.0  # without claims, after a sign that the service or the store is overloaded or gone
FULL_S = 120.0  # for which a painting is kept that cannot be stored, though others can
READ_S = 60.0  # for which an attempt waits for a photograph that cannot be read, though others can
PROBE_S = 5.0  # between two looks at whether pictures can be stored again
MOST_ASIDE = 16  # jobs that wait for their own pictures, and hold no place meanwhile
CLAIM_S = 2.0  # for which a runner that stops waits for a claim
STRAYS_S = 86_400.0  # between two looks at all files, for those that a writer left which was very slow
ENDING_S = 5.0  # for which a runner that stops waits for jobs that are being ended
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts at the store, the last one again and again
MEAN_OVER = 20  # jobs, of the mean number of pixels

NOT_ITS_FAULT = (TooBusy, NotReady, StoreUnavailable)  # the attempt does not count
STORE_FAILED = (StoreUnavailable, StoreFull)
MAY_PASS = (DeadlineExceeded, DecodeTimeout)  # 4xx, but on a busy machine another attempt may succeed

Answer = TypeVar("Answer")


class Painter(Protocol):
    """Paints one photograph, behind those of people who wait."""

    def pixels(self, photo: bytes, request: StylizeRequest) -> int:
        """Returns how many pixels will be painted, by the header; raises RequestError if there are too few."""

    async def paint(self, photo: bytes, request: StylizeRequest) -> EncodedImage:
        """Decodes, paints and encodes; cancelling this cancels the work.

        Raises:
            RequestError: a refusal.
        """


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


class Observer(Protocol):
    """Is told how jobs end."""

    def ended(self, outcome: str) -> None:
        """Handles one end: `succeeded`, `failed`, `retried`, `released` or `void`."""


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


class Sweeper:
    """Looks for lost leases and for what has expired. Every runner does, at times of its own.

    Args:
        store: of the jobs.
        own: returns the tokens of the leases that this process holds.
        lease_s: of the store's leases.
        clock: seconds, monotonic.
        jitter: a random number from 0 to 1, so that runners do not sweep in step.
    """

    def __init__(
        self,
        store: PatientStore,
        own: Callable[[], set[str]],
        lease_s: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._own = own
        self._look_s = lease_s / REAPS
        self._clock = clock
        self._jitter = jitter
        self._silences = Silences(clock)

    async def run(self, sweep_s: Callable[[], float]) -> None:
        """Looks again and again.

        Args:
            sweep_s: returns the seconds between two looks for what has expired.
        """
        swept_at, looked_at = -float("inf"), self._clock()
        while True:
            await asyncio.sleep(self._look_s * (0.5 + self._jitter()))
            await self._reap()
            if self._clock() - swept_at >= sweep_s():
                swept_at = self._clock()
                strays = swept_at - looked_at >= STRAYS_S
                looked_at = swept_at if strays else looked_at
                with suppress(RequestError):  # the store has logged it
                    await self._store.in_thread(partial(self._store.store.sweep, strays, reaps=False))

    async def _reap(self) -> None:
        queue = self._store.store.queue
        try:
            lost = self._silences.look(await self._store.in_lease_thread(queue.leases), self._own())
            if lost:
                await self._store.in_lease_thread(queue.reap, lost)
        except RequestError:
            self._silences.forget()


class Runner:
    """Works on jobs until it is stopped. For one event loop.

    Args:
        store: of the jobs.
        painter: paints them.
        settings: may be replaced at any time.
        lease_s: of the store's leases.
        observer: is told how jobs end.
        clock: seconds, monotonic.
        jitter: a random number from 0 to 1, so that runners do not sweep in step.

    Attributes:
        settings: of the runner.
        most_pictures: jobs to work on at a time, at most `settings.most_pictures`; whoever knows the number of
            Stylizers lowers it.
    """

    def __init__(
        self,
        store: JobStore,
        painter: Painter,
        settings: JobRunnerSettings,
        lease_s: float,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.most_pictures = settings.most_pictures
        self._store = PatientStore(store, clock, self.nudge)
        self._queue = store.queue
        self._sweeper = Sweeper(self._store, self._tokens, lease_s, clock, jitter)
        self._painter = painter
        self._lease_s = lease_s
        self._observer = observer
        self._clock = clock
        self._works: set[Work] = set()
        self._changed = asyncio.Event()  # a job may have come, or one has ended, or become smaller
        self._has_begun = asyncio.Event()
        self._is_stopping = False
        self._paused_until = 0.0
        self._loops: list[asyncio.Task[None]] = []
        self._mean_pixels = 0.0
        self._seen = 0

    @property
    def pictures(self) -> int:
        """Number of jobs at work."""
        return sum(not work.is_aside for work in self._works)

    @property
    def pixels(self) -> int:
        """Pixels of the jobs at work."""
        return sum(work.pixels for work in self._works if not work.is_aside)

    def start(self) -> None:
        """Begins to work."""
        self._loops = [
            asyncio.create_task(loop)
            for loop in (self._claim_all(), self._keep_leases(), self._sweeper.run(lambda: self.settings.sweep_s))
        ]

    def fault(self) -> BaseException | None:
        """Returns what ended one of the loops that should never end, if anything did."""
        if self._is_stopping:
            return None
        ended = (loop for loop in self._loops if loop.done())
        return next((loop.exception() or RuntimeError("a loop ended") for loop in ended if not loop.cancelled()), None)

    def nudge(self) -> None:
        """Says that a job has come, so that an idle runner need not wait for its next look."""
        self._changed.set()

    async def stop(self) -> None:
        """Stops working, and hands back the leases of all jobs that have not ended. Safe to call again."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._changed.set()
        for loop in self._loops[1:]:
            loop.cancel()
        for claiming in self._loops[:1]:
            await asyncio.wait([claiming], timeout=CLAIM_S)  # it may be about to get one more lease
        works = set(self._works)
        for work in works:
            work.cancel()
        tasks = [work.task for work in works if work.task is not None]
        if tasks:
            _, insisting = await asyncio.wait(tasks, timeout=ENDING_S)
            for task in insisting:
                task.cancel()
        for work in works:
            await self._hand_back(work)
        self._store.close()

    async def waiting_pixels(self) -> int:
        """Estimates the pixels of all jobs that wait, for every runner together: their number, and the mean of late.

        Raises:
            StoreUnavailable: if the database cannot be reached.
        """
        return int(await self._store.in_thread(self._queue.waiting) * self._mean_pixels)

    async def _claim_all(self) -> None:
        while not self._is_stopping:
            self._changed.clear()
            if not self._has_room():
                paused_s = self._paused_until - self._clock()
                await self._wait_for_change(paused_s if paused_s > 0 or self._works else self.settings.poll_s)
                continue
            try:
                if not await self._may_claim():
                    await self._wait_for_change(PROBE_S)
                    continue
                lease = await self._store.in_lease_thread(self._queue.claim)
            except RequestError:  # the store has logged it
                self._pause(PAUSE_S)
                continue
            if lease is not None:
                self._begin(lease)
            else:
                await self._wait_for_change(self.settings.poll_s)

    async def _may_claim(self) -> bool:
        """Whether what would be painted could be stored, as far as is known."""
        outage = self._store.outage
        if outage.error is None or (outage.is_bound and not self._works):  # its painting may be small enough
            return True
        return not await outage.is_everywhere(None if self._works else 1)

    def _has_room(self) -> bool:
        most_pictures = max(min(self.most_pictures, self.settings.most_pictures), 1)
        is_full = self.pictures >= most_pictures or self.pixels >= self.settings.most_pixels
        return not is_full and self._clock() >= self._paused_until

    async def _wait_for_change(self, most_s: float) -> None:
        """Returns when a job has come or ended, or after some seconds if they are more than 0."""
        try:
            await asyncio.wait_for(self._changed.wait(), most_s if most_s > 0 else None)
        except TimeoutError:
            return

    def _begin(self, lease: Lease) -> None:
        request = lease.job.request
        most = 0 if request is None else request.max_side**2
        work = Work(lease, most, self._clock() + self._lease_s / RENEWALS)
        self._works.add(work)
        self._has_begun.set()
        work.task = asyncio.create_task(self._work(work))
        work.task.add_done_callback(lambda task: self._ended(work, task))

    def _ended(self, work: Work, task: "asyncio.Task[None]") -> None:
        if not self._is_stopping:
            self._works.discard(work)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a job was given up, and waits until its lease has run out", exc_info=error)

    async def _work(self, work: Work) -> None:
        """Works on one job until it has ended in the store, or its lease is void."""
        job = work.lease.job
        try:
            if job.request is None:
                raise Gone("The options of this job are gone.")
            photo = await self._store.photo(work)
            work.pixels = self._painter.pixels(photo, job.request)
            self._count(work.pixels)
            self._changed.set()  # they may be fewer than the most there could be
            async with asyncio.timeout(self.settings.timeout_s):
                painting = await self._painter.paint(photo, job.request)
        except TimeoutError:
            error: RequestError = DeadlineExceeded(
                f"The picture was not painted within the {self.settings.timeout_s:g} seconds that jobs are given."
            )
        except RequestError as refusal:
            error = refusal
        except Exception:  # a fault of ours must not leave the job unfinished
            logger.exception("a job could not be painted")
            error = RequestError("The picture could not be painted, for a reason that is not its own.")
        else:
            work.is_ending = True
            await self._finish(work, painting)
            return
        work.is_ending = True
        await self._end_unpainted(work, error)

    async def _finish(self, work: Work, painting: EncodedImage) -> None:
        try:
            is_kept = await self._store.finish(work, painting)
        except RequestError as error:  # painting it again would not help
            is_held = await self._store.give_up(work, error)
            self._tell("failed" if is_held else "void")
        else:
            self._tell("succeeded" if is_kept else "void")

    async def _end_unpainted(self, work: Work, error: RequestError) -> None:
        queue, lease = self._queue, work.lease
        if isinstance(error, NOT_ITS_FAULT) and not isinstance(error, Unreadable):
            self._pause(error.retry_after_s or PAUSE_S)
            end, outcome = partial(queue.release, lease), "released"
        elif is_final(error):
            end, outcome = partial(queue.fail, lease, error), "failed"
        else:
            end, outcome = partial(queue.retry, lease, error), "retried"
        is_held = await self._store.insist(work, end)
        self._tell(outcome if is_held else "void")

    async def _hand_back(self, work: Work) -> None:
        try:
            if await self._store.in_lease_thread(self._queue.release, work.lease):
                self._tell("released")
        except RequestError:
            logger.warning("a job could not be handed back, and waits until its lease has run out")

    async def _keep_leases(self) -> None:
        """Renews leases, and stops the work on jobs whose lease is void: they were cancelled, or given to another."""
        while True:
            if not self._works:
                self._has_begun.clear()
                await self._has_begun.wait()
            await asyncio.sleep(min(LOOK_S, self._lease_s / RENEWALS))
            works = list(self._works)
            try:
                valid = await self._store.in_lease_thread(self._queue.valid, [work.lease for work in works])
                for work in works:
                    if work.lease.token not in valid:
                        work.abandon()
                for work in works:
                    if work.lease.token in valid and self._clock() >= work.renew_at:
                        await self._store.in_lease_thread(self._queue.renew, work.lease)
                        work.renew_at = self._clock() + self._lease_s / RENEWALS
            except RequestError:
                continue  # the store has logged it; whether a lease was lost shows when it is back

    def _tokens(self) -> set[str]:
        return {work.lease.token for work in self._works}

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _count(self, pixels: int) -> None:
        self._seen = min(self._seen + 1, MEAN_OVER)
        self._mean_pixels += (pixels - self._mean_pixels) / self._seen

    def _tell(self, outcome: str) -> None:
        if self._observer is not None:
            self._observer.ended(outcome)


def backoff() -> Iterator[float]:
    """Yields the pauses between attempts at the store, without end."""
    return chain(BACKOFF_S, repeat(BACKOFF_S[-1]))


async def run_in(threads: ThreadPoolExecutor, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Calls a function in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def is_final(error: RequestError) -> bool:
    """Returns whether another attempt at the same photograph would end the same way."""
    return error.status < 500 and not isinstance(error, MAY_PASS)
