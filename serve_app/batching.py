"""Same-size batches, chosen only when the device is free. Pure asyncio, no Ray.

Ray Serve's own `@serve.batch` seals a batch while the device is still busy and cannot group by size. Here pictures wait
in one queue per key (style, height, width). When the device becomes free, the picture that has waited longest is taken,
with as many others of its key as the batch may hold: under light load nobody waits for company, under heavy load
batches fill by themselves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result and how it came about."""

    result: Result
    queued_s: float
    ran_s: float
    batch_size: int


@dataclass
class Entry(Generic[Item, Result]):
    item: Item
    arrival: int
    arrived_s: float
    future: "asyncio.Future[Done[Result]]" = field(repr=False)


class Batcher(Generic[Key, Item, Result]):
    """Runs items through `run` in batches of one key, one batch at a time.

    Args:
        run: takes a key and 1 to `max_batch_size` items; returns, in order, a result or an exception for each.
        max_batch_size: may be changed between batches.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run: Callable[[Key, list[Item]], Awaitable[list[Result | Exception]]],
        max_batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._run = run
        self._clock = clock
        self._queues: dict[Key, deque[Entry[Item, Result]]] = {}
        self._arrivals = 0
        self._worker: asyncio.Task[None] | None = None
        self._running_since: float | None = None

    async def submit(self, key: Key, item: Item) -> Done[Result]:
        """Waits for the item's turn and its result; cancelling this takes a waiting item out of the queue.

        Raises:
            Exception: the one that `run` returned for this item, or raised for its batch.
        """
        self._arrivals += 1
        future: asyncio.Future[Done[Result]] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key, deque()).append(Entry(item, self._arrivals, self._clock(), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    def running_for_s(self) -> float:
        """Seconds since the batch on the device was started; 0 when the device is free."""
        return 0.0 if self._running_since is None else self._clock() - self._running_since

    async def _work(self) -> None:
        while (chosen := self._choose()) is not None:
            await self._run_batch(*chosen)

    def _choose(self) -> tuple[Key, list[Entry[Item, Result]]] | None:
        """The oldest waiting entry and others of its key, in order of arrival; cancelled ones are dropped."""
        for key, queue in list(self._queues.items()):
            while queue and queue[0].future.done():
                queue.popleft()
            if not queue:
                del self._queues[key]
        if not self._queues:
            return None
        key = min(self._queues, key=lambda key: self._queues[key][0].arrival)
        queue = self._queues[key]
        batch: list[Entry[Item, Result]] = []
        while queue and len(batch) < self.max_batch_size:
            entry = queue.popleft()
            if not entry.future.done():
                batch.append(entry)
        return key, batch

    async def _run_batch(self, key: Key, batch: list[Entry[Item, Result]]) -> None:
        started = self._running_since = self._clock()
        outcomes: list[Result | Exception]
        try:
            outcomes = await self._run(key, [entry.item for entry in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} results for a batch of {len(batch)}")
        except Exception as error:  # whatever it was, everyone in the batch must hear of it and the queue go on
            outcomes = [error] * len(batch)
        finally:
            self._running_since = None
        ran_s = self._clock() - started
        for entry, outcome in zip(batch, outcomes, strict=True):
            if entry.future.done():
                continue
            if isinstance(outcome, Exception):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(Done(outcome, started - entry.arrived_s, ran_s, len(batch)))
