"""Batches of items with one key, chosen only when the device can take them. Pure asyncio, no Ray.

Ray Serve's own `@serve.batch` closes a batch while the device is still busy, and cannot group by size. Here images wait
in one queue per key (style, height, width). As soon as the device can take more, the oldest image is taken, with as
many others of its key as the device has room for. Under light load no image waits for others; under heavy load batches
fill by themselves. A device may run several batches at once, each of its own key.

No image starves. It waits for the batches that are on the device when it arrives, and then for at most

    sum over all keys of ceil(older waiting images of the key / number that the device reserves for a batch of the key)

batches more (the smallest number, if they differ), whatever arrives later: every batch is headed by the oldest waiting
image and holds the oldest of its key. While the device cannot take the oldest image, no other image overtakes it.

That is the foreground. Images of the background go behind it, but never starve: see `queueing/waiting.py`. To a
foreground image they add at most the batches on the device when it arrives, and one aged image of the background.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from serve_app.queueing.waiting import Done, Entry, Item, Key, Result, Waiting

Key_contra = TypeVar("Key_contra", contravariant=True)

logger = logging.getLogger(__name__)


class Reservation(Protocol):
    """A part of the device that is set aside for one batch."""

    @property
    def count(self) -> int:
        """Number of items that the batch may hold, at least 1."""


Reserved = TypeVar("Reserved", bound=Reservation)


class Device(Protocol[Key_contra, Item, Result, Reserved]):
    """Runs batches, one at a time or several at once."""

    def reserve(self, key: Key_contra, same_key: int, waiting: int, room: int) -> Reserved | None:
        """Reserves a part of the device for the next batch.

        `run` gets the reservation exactly once, in the event loop's next turn; more may be reserved before that.

        An item that was cancelled an instant ago may still be counted, so the batch may be smaller than reserved.

        Args:
            key: of the item that heads the batch.
            same_key: waiting items of this key that may be in the batch.
            waiting: waiting items of all keys, these included; without the background, if a foreground item waits.
            room: items that the device may take now, at least 1.

        Returns:
            The reservation; None if the batch has to wait until another one ends, so never while none runs.

        Raises:
            Exception: if the device can never run the oldest item. That item gets the exception, and the queue goes on.
        """

    async def run(self, reservation: Reserved, key: Key_contra, items: list[Item]) -> list[Result | Exception]:
        """Runs a batch and ends its reservation, also if it raises.

        Returns:
            A result or an exception for each item, in order.

        Raises:
            Exception: if the whole batch failed. Every item gets the exception.
        """


class Observer(Protocol[Key_contra]):
    """Receives the figures of every batch when it has ended, also if it failed."""

    def on_batch(
        self,
        key: Key_contra,
        size: int,
        pixels: int,
        background_pixels: int,
        waits_s: list[float],
        ran_s: float,
        busy_s: float,
    ) -> None:
        """Handles one batch.

        Args:
            key: of the batch.
            size: number of its images.
            pixels: of all of them.
            background_pixels: of those of the background.
            waits_s: the queue time of each image of the foreground.
            ran_s: how long the batch was on the device.
            busy_s: time in which the device was in use since the previous batch ended. The sum over all batches is the
                time that the device was in use, however many ran at once.
        """


@dataclass(frozen=True)
class SerialReservation:
    """The whole of a `SerialDevice`, for up to `count` items."""

    count: int


class SerialDevice(Generic[Key, Item, Result]):
    """A `Device` that runs one batch at a time.

    Args:
        run: takes a key and one or more items; returns a result or an exception for each item, in order.
    """

    def __init__(self, run: Callable[[Key, list[Item]], Awaitable[list[Result | Exception]]]) -> None:
        self._run = run
        self._is_reserved = False

    def reserve(self, key: Key, same_key: int, waiting: int, room: int) -> SerialReservation | None:
        """Reserves the device for as many items as there is room for; None while it is reserved."""
        if self._is_reserved:
            return None
        self._is_reserved = True
        return SerialReservation(min(same_key, room))

    async def run(self, reservation: SerialReservation, key: Key, items: list[Item]) -> list[Result | Exception]:
        """Runs the batch, and then ends the reservation."""
        try:
            return await self._run(key, items)
        finally:
            self._is_reserved = False


@dataclass(eq=False)
class Running:
    """A batch on the device."""

    size: int
    started_s: float
    has_foreground: bool


class Batcher(Generic[Key, Item, Result]):
    """Queues items and runs them on a device, in batches of one key.

    `Device.reserve` is called right before a batch starts, and every reservation is passed to `Device.run`.

    Args:
        device: runs the batches.
        max_batch_size: largest number of items on the device, in all its batches together; at least 1. It may be
            changed at any time and applies from the next batch on.
        clock: seconds, monotonic. It must keep pace with the event loop's own clock, whose timers expire and linger.
        linger_s: how long an item waits for others of its key, even if the device could take it at once.
        background_after_s: age from which an item of the background goes first.
        observer: receives the figures of every batch. An exception from it is logged and changes nothing else.
    """

    def __init__(
        self,
        device: Device[Key, Item, Result, Any],
        max_batch_size: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        linger_s: float = 0.0,
        background_after_s: float = float("inf"),
        observer: Observer[Key] | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.linger_s = linger_s
        self.background_after_s = background_after_s
        self._device = device
        self._clock = clock
        self._observer = observer
        self._waiting: Waiting[Key, Item, Result] = Waiting(clock)
        self._changed = asyncio.Event()  # an item has arrived or left, or a batch has ended
        self._worker: asyncio.Task[None] | None = None
        self._running: dict[Running, asyncio.Task[None]] = {}
        self._busy_reported_until_s = 0.0

    async def submit(
        self, key: Key, item: Item, pixels: int = 1, expires_s: float | None = None, background: bool = False
    ) -> Done[Result]:
        """Waits for the item's turn and returns its result; cancelling this takes a waiting item out of the queue.

        Args:
            key: only items with equal keys share a batch.
            item: what the device runs.
            pixels: of the item, for the counters.
            expires_s: seconds from now after which the item is not started any more.
            background: nobody waits for it, so others go first.

        Raises:
            DeadlineExceeded: the item waited for `expires_s`.
            Exception: what the device returned for this item, or raised for its batch.
        """
        loop = asyncio.get_running_loop()
        lifetime_s = float("inf") if expires_s is None else expires_s
        entry: Entry[Key, Item, Result] = Entry(
            key, item, pixels, self._clock(), lifetime_s, background, loop.create_future()
        )
        self._waiting.add(entry)
        self._changed.set()
        if expires_s is not None:
            entry.timer = loop.call_later(expires_s, self._expire, entry)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await entry.future
        finally:
            self._dequeue(entry)

    @property
    def waiting(self) -> int:
        """Number of images in the queue, without those on the device."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of images on the device."""
        return sum(batch.size for batch in self._running)

    @property
    def waiting_pixels(self) -> int:
        """Pixels of the images in the queue, without those on the device."""
        return self._waiting.pixels

    @property
    def background_pixels(self) -> int:
        """Pixels of the images of the background in the queue."""
        return self._waiting.background_pixels

    def running_for_s(self, is_foreground: bool = False) -> float:
        """Returns the seconds since the oldest batch on the device started; 0 if the device is free.

        Args:
            is_foreground: pass over batches that hold the background alone.
        """
        started = (batch.started_s for batch in self._running if batch.has_foreground or not is_foreground)
        return max((self._clock() - started_s for started_s in started), default=0.0)

    def _dequeue(self, entry: Entry[Key, Item, Result]) -> None:
        """Takes the entry out of the queue, if it is still there."""
        if self._waiting.remove(entry):
            self._changed.set()

    def _expire(self, entry: Entry[Key, Item, Result]) -> None:
        self._waiting.expire(entry)
        self._changed.set()

    def _head(self) -> Entry[Key, Item, Result] | None:
        return self._waiting.head(self.background_after_s)

    async def _work(self) -> None:
        """Starts batches until no item waits and none runs."""
        while self._waiting or self._running:
            await self._linger()
            if not self._start_batch() and (self._waiting or self._running):
                self._changed.clear()
                await self._changed.wait()

    async def _linger(self) -> None:
        """Returns when the next item has waited for `linger_s`, or when items of its key fill the room on the device.

        Returns at once if there is no lingering, no item, or no room.
        """
        while self.linger_s > 0 and (head := self._head()) is not None:
            left_s = head.arrived_s + self.linger_s - self._clock()
            if left_s <= 0 or self._waiting.counts(head)[0] >= self._room():
                return
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)

    def _start_batch(self) -> bool:
        """Starts a batch of the next item and others of its key, in order of arrival; says whether it could."""
        while (room := self._room()) >= 1 and (head := self._head()) is not None:
            try:
                reservation = self._device.reserve(head.key, *self._waiting.counts(head), room)
                if reservation is None and not self._running:  # no batch will end, so waiting would last for ever
                    raise RuntimeError(f"{type(self._device).__name__} reserved nothing although no batch runs")
            except Exception as error:  # whatever the device raises, the queue must go on
                self._dequeue(head)
                head.resolve(error)
                continue
            if reservation is None:
                return False
            batch = self._waiting.take(head, min(reservation.count, room))
            now = self._clock()
            if not self._running:
                self._busy_reported_until_s = now
            running = Running(len(batch), now, has_foreground=not all(entry.is_background for entry in batch))
            self._running[running] = asyncio.create_task(self._run_batch(batch, reservation, running))
            return True
        return False

    def _room(self) -> int:
        return self.max_batch_size - self.running

    async def _run_batch(
        self, batch: list[Entry[Key, Item, Result]], reservation: Reservation, running: Running
    ) -> None:
        outcomes: list[Result | Exception]
        task = asyncio.current_task()
        try:
            outcomes = await self._device.run(reservation, batch[0].key, [entry.item for entry in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} results for a batch of {len(batch)}")
        except Exception as error:  # whatever it is, every item must get it and the queue must go on
            outcomes = [error] * len(batch)
        except asyncio.CancelledError:
            if task is not None and task.cancelling():  # the event loop ends, and with it all that wait
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
                entry.resolve(outcome)
            else:
                entry.resolve(Done(outcome, wait_s, ran_s, len(batch)))
        busy_s, self._busy_reported_until_s = ended_s - self._busy_reported_until_s, ended_s
        self._notify_observer(batch, waits_s, ran_s, busy_s)

    def _notify_observer(
        self, batch: list[Entry[Key, Item, Result]], waits_s: list[float], ran_s: float, busy_s: float
    ) -> None:
        if self._observer is None:
            return
        pixels = sum(entry.pixels for entry in batch)
        background_pixels = sum(entry.pixels for entry in batch if entry.is_background)
        waits_s = [wait_s for entry, wait_s in zip(batch, waits_s, strict=True) if not entry.is_background]
        try:
            self._observer.on_batch(batch[0].key, len(batch), pixels, background_pixels, waits_s, ran_s, busy_s)
        except Exception:
            logger.exception("an observer of batches failed")
