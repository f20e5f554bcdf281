"""Works on jobs: claims them, has them painted, and ends them. Asyncio, without Ray.

Several runners may work over one store: each job has one lease, and whoever ends it without that lease changes nothing.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from serve_app.errors import (
    DeadlineExceeded,
    DecodeTimeout,
    Gone,
    NotReady,
    RequestError,
    StoreUnavailable,
    TooBusy,
)
from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.jobs.store import JobStore
from serve_app.jobs.sweeper import Sweeper
from serve_app.jobs.words import Lease
from serve_app.jobs.work import PatientStore, Unreadable, Work
from serve_app.settings import JobRunnerSettings

logger = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at whether the jobs at work were cancelled
RENEWALS = 3  # of a lease, in the time that it lasts
PAUSE_S = 3.0  # without claims, after a sign that the service or the store is overloaded or gone
PROBE_S = 5.0  # between two looks at whether pictures can be stored again
CLAIM_S = 2.0  # for which a runner that stops waits for a claim
ENDING_S = 5.0  # for which a runner that stops waits for jobs that are being ended
MEAN_OVER = 20  # jobs, of the mean number of pixels

NOT_ITS_FAULT = (TooBusy, NotReady, StoreUnavailable)  # the attempt does not count
MAY_PASS = (DeadlineExceeded, DecodeTimeout)  # 4xx, but on a busy machine another attempt may succeed


class Painter(Protocol):
    """Paints one photograph, behind those of people who wait."""

    def pixels(self, photo: bytes, request: StylizeRequest) -> int:
        """Returns how many pixels will be painted, by the header; raises RequestError if there are too few."""

    async def paint(self, photo: bytes, request: StylizeRequest) -> EncodedImage:
        """Decodes, paints and encodes; cancelling this cancels the work.

        Raises:
            RequestError: a refusal.
        """


class Observer(Protocol):
    """Is told how jobs end."""

    def ended(self, outcome: str) -> None:
        """Handles one end: `succeeded`, `failed`, `retried`, `released` or `void`."""


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


def is_final(error: RequestError) -> bool:
    """Returns whether another attempt at the same photograph would end the same way."""
    return error.status < 500 and not isinstance(error, MAY_PASS)
