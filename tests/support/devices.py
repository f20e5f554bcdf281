"""Devices and a clock that a test of the queue controls."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

Batch = tuple[str, list[Any]]


class Clock:
    """Seconds that pass only when a test says so, for the timers of the running event loop too."""

    def __init__(self) -> None:
        self.now = 100.0
        asyncio.get_running_loop().time = self  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, eq=False)
class Reservation:
    count: int


@dataclass(frozen=True)
class Request:
    """The arguments of one call of `reserve`."""

    key: str
    same_key: int
    waiting: int
    room: int


class FakeDevice:
    """Runs each batch until the test finishes it. An item that is an exception is its own outcome.

    Args:
        counts: the largest batch of each key; a key that is missing cannot be run. None for any key and any number.
        parallel: batches that it can run at once.
        exclusive: a key whose batches run only alone.

    Attributes:
        batches: the key and the items of every batch that was started, in order.
        decided: every call of `reserve` that granted a number of items, or 0 if it raised an exception.
        running: batches that run, by number.
    """

    def __init__(self, counts: dict[str, int] | None = None, parallel: int = 1, exclusive: str | None = None) -> None:
        self.counts = counts
        self.parallel = parallel
        self.exclusive = exclusive
        self.batches: list[Batch] = []
        self.decided: list[tuple[Request, int]] = []
        self.running: dict[int, asyncio.Future[Exception | None]] = {}
        self.reservations: list[Reservation] = []  # that have not been passed to `run`
        self.reserved: list[str] = []  # keys of those, and of the batches that run

    def reserve(self, key: str, same_key: int, waiting: int, room: int) -> Reservation | None:
        request = Request(key, same_key, waiting, room)
        if self.counts is not None and key not in self.counts:
            self.decided.append((request, 0))
            raise KeyError(key)
        if self.is_full_for(key):
            return None
        count = room if self.counts is None else min(self.counts[key], room)
        self.decided.append((request, count))
        self.reserved.append(key)
        self.reservations.append(Reservation(count))
        return self.reservations[-1]

    def is_full_for(self, key: str) -> bool:
        """Returns whether a batch of the key has to wait until another one ends."""
        is_excluded = self.exclusive in self.reserved or (key == self.exclusive and bool(self.reserved))
        return len(self.reserved) == self.parallel or is_excluded

    async def run(self, reservation: Reservation, key: str, items: list[Any]) -> list[Any]:
        self.reservations.remove(reservation)  # raises if it is unknown, or is used twice
        assert 1 <= len(items) <= reservation.count
        number = len(self.batches)
        self.batches.append((key, items))
        self.running[number] = asyncio.get_running_loop().create_future()
        fault = await self.running[number]
        del self.running[number]
        self.reserved.remove(key)
        if fault is not None:
            raise fault
        return [item if isinstance(item, Exception) else f"{item} painted" for item in items]

    async def finish(self, fault: Exception | None = None, number: int | None = None) -> None:
        """Ends the oldest running batch, or the one with a number, well or with a fault, and lets others start."""
        if number is None:
            number = min(self.running)
        self.running[number].set_result(fault)
        await settle()


class RecordingObserver:
    """An observer that remembers its calls."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, int, int, list[float], float, float]] = []

    def on_batch(self, *figures: Any) -> None:
        self.batches.append(figures)


async def settle() -> None:
    """Lets everything run that can run without the device and without time."""
    for _ in range(10):
        await asyncio.sleep(0)


def in_loop(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        # A worker that died is logged when it is collected, perhaps while pytest parses a failed test's source; the
        # log parses source too, and Python 3.11 answers that nesting with a SystemError that ends the whole session.
        loop.set_exception_handler(lambda *_: None)
        task = asyncio.ensure_future(scene)
        # A hang is a failure, not a stuck test run; by a thread, since the loop's own time may stand still.
        guard = threading.Timer(10, loop.call_soon_threadsafe, [task.cancel])
        guard.start()
        try:
            await task
        finally:
            guard.cancel()

    asyncio.run(bounded())
