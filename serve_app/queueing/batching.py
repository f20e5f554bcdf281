"""Same-size batches, chosen only when the device is free. Pure asyncio, no Ray.

Ray Serve's own `@serve.batch` seals a batch while the device is still busy and cannot group by size. Here pictures wait
in one queue per key (style, height, width). When the device has a place free, the picture that has waited longest is
taken, with as many others of its key as the batch may hold: under light load nobody waits for company, under heavy load
batches fill by themselves. A device may have several places, each for a batch of its own key.

Nobody starves. A picture waits for the batches that are on the device when it comes, and for at most

    sum over all keys of ceil(older waiting pictures of the key / batch size of the key)

batches more, whatever others send later: every one of them is headed by an older picture, and takes the oldest of its
key. Where the oldest finds no place, nobody overtakes it.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from serve_app.errors import DeadlineExceeded, NotReady

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")
ToldKey = TypeVar("ToldKey", contravariant=True)

logger = logging.getLogger(__name__)


class Observer(Protocol[ToldKey]):
    """Is told of every batch when it has ended, well or badly."""

    def on_batch(self, key: ToldKey, size: int, pixels: int, waits_s: list[float], ran_s: float, busy_s: float) -> None:
        """
        Args:
            size: pictures in the batch.
            pixels: of all of them.
            waits_s: the queue time of each.
            ran_s: how long it was on the device.
            busy_s: since a batch last ended, or since it began where the device was free then: the sum of these is the
                time that the device was in use, by however many batches at once.
        """


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result and how it came about."""

    result: Result
    queued_s: float
    ran_s: float
    batch_size: int


@dataclass(eq=False)
class Entry(Generic[Key, Item, Result]):
    key: Key
    item: Item
    pixels: int
    arrived_s: float
    expires_s: float  # from arrival
    future: "asyncio.Future[Done[Result]]" = field(repr=False)
    timer: asyncio.TimerHandle | None = None

    def answer(self, outcome: Done[Result] | Exception) -> None:
        """Nothing happens where the future has been cancelled."""
        if self.future.done():
            return
        if isinstance(outcome, StopIteration):
            outcome = RuntimeError(repr(outcome))  # a future cannot hold a StopIteration
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


# In order of arrival. Not a plain dict: finding its first member passes over all that have been removed before it.
Waiting = OrderedDict[Entry[Key, Item, Result], None]


@dataclass(eq=False)
class Running:
    """A batch on the device."""

    size: int
    pixels: int
    started_s: float


class Batcher(Generic[Key, Item, Result]):
    """Runs items through `run` in batches of one key, one batch at a time or as many as there are places.

    Args:
        run: takes a key and 1 to `max_batch_size` items; returns, in order, a result or an exception for each. It is
            begun before `limit` is asked about the next batch.
        max_batch_size: may be changed between batches.
        clock: seconds, monotonic, at the pace of the event loop's own clock, whose timers expire and linger.
        limit: how many items of a key may be run together now, by memory say; a batch holds no more. 0 lets the oldest
            wait until a batch has ended; where none runs, one item is tried all the same. Where it raises, the oldest
            picture of the key gets the exception and the queue goes on.
        places: for batches that run at the same time.
        linger_s: how long a picture on an idle device waits for others of its key, unless they fill a batch before.
        observer: what it raises is logged and changes nothing.
    """

    def __init__(
        self,
        run: Callable[[Key, list[Item]], Awaitable[list[Result | Exception]]],
        max_batch_size: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        limit: Callable[[Key], int] | None = None,
        places: int = 1,
        linger_s: float = 0.0,
        observer: Observer[Key] | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.linger_s = linger_s
        self._run = run
        self._clock = clock
        self._limit = limit
        self._places = places
        self._observer = observer
        self._waiting: Waiting[Key, Item, Result] = OrderedDict()
        self._queues: dict[Key, Waiting[Key, Item, Result]] = {}  # the same entries by key; no queue is empty
        self._waiting_pixels = 0
        self._changed = asyncio.Event()  # somebody came or left, or a batch has ended
        self._worker: asyncio.Task[None] | None = None
        self._running: dict[Running, asyncio.Task[None]] = {}
        self._counted_s = 0.0  # until when the device's time has been told
        self._is_draining = False

    async def submit(self, key: Key, item: Item, pixels: int = 1, expires_s: float | None = None) -> Done[Result]:
        """Waits for the item's turn and its result; cancelling this takes a waiting item out of the queue.

        Args:
            pixels: of the item, for the counters.
            expires_s: seconds from now after which an item that still waits is not to be run any more.

        Raises:
            DeadlineExceeded: the item waited for `expires_s`.
            NotReady: the queue is being drained.
            Exception: the one that `run` returned for this item, or raised for its batch.
        """
        if self._is_draining:
            raise NotReady("This part of the service is shutting down: send the picture again.")
        loop = asyncio.get_running_loop()
        lifetime_s = float("inf") if expires_s is None else expires_s
        entry: Entry[Key, Item, Result] = Entry(key, item, pixels, self._clock(), lifetime_s, loop.create_future())
        self._enter(entry)
        if expires_s is not None:
            entry.timer = loop.call_later(expires_s, self._expire, entry)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await entry.future
        finally:
            self._leave(entry)

    async def drain(self) -> None:
        """Refuses what comes from now on, and returns when everything that was accepted has its answer."""
        self._is_draining = True
        self._changed.set()
        while self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker])

    @property
    def waiting(self) -> int:
        """Pictures in the queue, without those on the device."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Pictures on the device."""
        return sum(batch.size for batch in self._running)

    @property
    def waiting_pixels(self) -> int:
        """Pixels in the queue, without those on the device."""
        return self._waiting_pixels

    @property
    def backlog_pixels(self) -> int:
        """Pixels in the queue and on the device."""
        return self._waiting_pixels + sum(batch.pixels for batch in self._running)

    def running_for_s(self) -> float:
        """Seconds since the oldest batch on the device was started; 0 when the device is free."""
        return max((self._clock() - batch.started_s for batch in self._running), default=0.0)

    def _enter(self, entry: Entry[Key, Item, Result]) -> None:
        self._queues.setdefault(entry.key, OrderedDict())[entry] = None
        self._waiting[entry] = None
        self._waiting_pixels += entry.pixels
        self._changed.set()

    def _leave(self, entry: Entry[Key, Item, Result]) -> None:
        """Takes the entry out of the queue, if it is still there."""
        if entry not in self._waiting:
            return
        del self._waiting[entry]
        queue = self._queues[entry.key]
        del queue[entry]
        if not queue:
            del self._queues[entry.key]
        self._waiting_pixels -= entry.pixels
        if entry.timer is not None:
            entry.timer.cancel()
        self._changed.set()

    def _expire(self, entry: Entry[Key, Item, Result]) -> None:
        self._leave(entry)
        entry.answer(
            DeadlineExceeded(
                f"The picture was still waiting for its turn after the {entry.expires_s:g} seconds that it was given."
                " Allow more time, or try again later."
            )
        )

    async def _work(self) -> None:
        while self._waiting or self._running:
            while len(self._running) < self._places:
                await self._linger()
                batch = self._choose()
                if not batch:
                    break
                self._start(batch)
                await asyncio.sleep(0)  # it is on the device before the next one is chosen
            if self._waiting or self._running:
                self._changed.clear()
                await self._changed.wait()

    async def _linger(self) -> None:
        """Returns when the oldest has waited `linger_s`, or its batch is full; at once where no lingering is asked."""
        while self.linger_s > 0 and not self._is_draining and (head := self._oldest(self._waiting)) is not None:
            left_s = head.arrived_s + self.linger_s - self._clock()
            try:
                is_full = len(self._queues[head.key]) >= self._batch_size(head.key)
            except Exception:  # told when choosing
                return
            if is_full or left_s <= 0:
                return
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)

    def _choose(self) -> list[Entry[Key, Item, Result]]:
        """The oldest waiting entry and others of its key, in order of arrival; none where nobody waits or may begin."""
        while (head := self._oldest(self._waiting)) is not None:
            queue = self._queues[head.key]
            try:
                size = self._batch_size(head.key)
            except Exception as error:  # whoever wrote `limit`, the queue must go on
                self._leave(head)
                head.answer(error)
                continue
            if size < 1 and self._running:
                return []
            self._leave(head)
            batch = [head]
            while len(batch) < size and (entry := self._oldest(queue)) is not None:
                self._leave(entry)
                batch.append(entry)
            return batch
        return []

    def _oldest(self, entries: Waiting[Key, Item, Result]) -> Entry[Key, Item, Result] | None:
        """The first that still wants to be run; the cancelled and the expired before it are dropped."""
        while entries:
            entry = next(iter(entries))
            if self._clock() - entry.arrived_s >= entry.expires_s:
                self._expire(entry)
            elif entry.future.done():
                self._leave(entry)
            else:
                return entry
        return None

    def _batch_size(self, key: Key) -> int:
        return self.max_batch_size if self._limit is None else min(self.max_batch_size, self._limit(key))

    def _start(self, batch: list[Entry[Key, Item, Result]]) -> None:
        now = self._clock()
        if not self._running:
            self._counted_s = now
        running = Running(len(batch), sum(entry.pixels for entry in batch), now)
        self._running[running] = asyncio.create_task(self._run_batch(batch, running))

    async def _run_batch(self, batch: list[Entry[Key, Item, Result]], running: Running) -> None:
        outcomes: list[Result | Exception]
        task = asyncio.current_task()
        try:
            outcomes = await self._run(batch[0].key, [entry.item for entry in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} results for a batch of {len(batch)}")
        except Exception as error:  # whatever it was, everyone in the batch must hear of it and the queue go on
            outcomes = [error] * len(batch)
        except asyncio.CancelledError:
            if task is not None and task.cancelling():  # the event loop ends, and everyone who waits with it
                raise
            outcomes = [RuntimeError("the batch was cancelled on the device")] * len(batch)
        finally:
            del self._running[running]
            self._changed.set()
        ended_s = self._clock()
        ran_s = ended_s - running.started_s
        waits_s = [running.started_s - entry.arrived_s for entry in batch]
        for entry, wait_s, outcome in zip(batch, waits_s, outcomes, strict=True):
            if isinstance(outcome, Exception):
                entry.answer(outcome)
            else:
                entry.answer(Done(outcome, wait_s, ran_s, len(batch)))
        busy_s, self._counted_s = ended_s - self._counted_s, ended_s
        self._tell(batch, running.pixels, waits_s, ran_s, busy_s)

    def _tell(
        self, batch: list[Entry[Key, Item, Result]], pixels: int, waits_s: list[float], ran_s: float, busy_s: float
    ) -> None:
        if self._observer is None:
            return
        try:
            self._observer.on_batch(batch[0].key, len(batch), pixels, waits_s, ran_s, busy_s)
        except Exception:
            logger.exception("an observer of batches failed")
