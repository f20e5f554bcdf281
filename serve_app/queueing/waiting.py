"""Items that wait for a device, in two classes, and the choice of who goes next. No Ray.

The *foreground* is for people who wait for an answer. The *background* goes only where it takes nobody's place: when no
foreground item waits, or as a part of a batch that would otherwise have room. So that it never starves, a background
item that has waited for `background_after_s` goes first all the same, alone but for foreground items of its key. Each
foreground item is overtaken in this way once at most.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.errors import DeadlineExceeded

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result with its queue time, the running time of its batch, and the size of that batch."""

    result: Result
    queued_s: float
    ran_s: float
    batch_size: int


@dataclass(eq=False)
class Entry(Generic[Key, Item, Result]):
    """An item that waits or runs, with the future of its result. `expires_s` counts from its arrival."""

    key: Key
    item: Item
    pixels: int
    arrived_s: float
    expires_s: float
    is_background: bool
    future: "asyncio.Future[Done[Result]]" = field(repr=False)
    timer: asyncio.TimerHandle | None = None
    number: int = 0  # in order of arrival

    def resolve(self, outcome: Done[Result] | Exception) -> None:
        """Sets the result or the exception of the future, unless the future is cancelled or set already."""
        if self.future.done():
            return
        if isinstance(outcome, StopIteration):
            outcome = RuntimeError(repr(outcome))  # a future cannot hold a StopIteration
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


# In order of arrival. Not a plain dict: finding its first member passes over all that have been removed before it.
Entries = OrderedDict[Entry[Key, Item, Result], None]


class Waiting(Generic[Key, Item, Result]):
    """The items that wait.

    Args:
        clock: seconds, monotonic.

    Attributes:
        pixels: of all items.
        background_pixels: of those of the background.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.pixels = 0
        self.background_pixels = 0
        self._clock = clock
        self._classes: dict[bool, Entries[Key, Item, Result]] = {False: OrderedDict(), True: OrderedDict()}
        self._queues: dict[tuple[Key, bool], Entries[Key, Item, Result]] = {}  # the same by key; no queue is empty
        self._arrivals = 0
        self._overtaken = 0  # number of the newest foreground item that a background item has overtaken

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def add(self, entry: Entry[Key, Item, Result]) -> None:
        """Adds an item that has just arrived."""
        self._arrivals += 1
        entry.number = self._arrivals
        self._classes[entry.is_background][entry] = None
        self._queues.setdefault((entry.key, entry.is_background), OrderedDict())[entry] = None
        self._count(entry, 1)

    def remove(self, entry: Entry[Key, Item, Result]) -> bool:
        """Takes an item out, if it is still there; says whether it was."""
        if entry not in self._classes[entry.is_background]:
            return False
        del self._classes[entry.is_background][entry]
        queue = self._queues[entry.key, entry.is_background]
        del queue[entry]
        if not queue:
            del self._queues[entry.key, entry.is_background]
        self._count(entry, -1)
        if entry.timer is not None:
            entry.timer.cancel()
        return True

    def expire(self, entry: Entry[Key, Item, Result]) -> None:
        """Takes out an item whose time is over, and says so to whoever waits for it."""
        self.remove(entry)
        entry.resolve(
            DeadlineExceeded(
                f"The picture was still waiting for its turn after the {entry.expires_s:g} seconds that it was given."
                " Allow more time, or try again later."
            )
        )

    def head(self, background_after_s: float) -> Entry[Key, Item, Result] | None:
        """Returns the item that heads the next batch.

        Args:
            background_after_s: age from which a background item goes before foreground items.
        """
        foreground, background = self._oldest(self._classes[False]), self._oldest(self._classes[True])
        if foreground is None or background is None:
            return foreground or background
        is_aged = self._clock() - background.arrived_s >= background_after_s
        return background if is_aged and foreground.number > self._overtaken else foreground

    def counts(self, head: Entry[Key, Item, Result]) -> tuple[int, int]:
        """Returns how many items of a head's key may be in its batch, and how many wait in the head's class.

        A device that several batches share is divided among the latter: one foreground image alone gets all of it,
        however many wait in the background.
        """
        foreground = len(self._queues.get((head.key, False), ()))
        background = len(self._queues.get((head.key, True), ()))
        if not self._classes[False]:
            return background, len(self._classes[True])
        if head.is_background:
            return foreground + 1, len(self._classes[False]) + 1
        is_last = foreground == len(self._classes[False])
        return foreground + (background if is_last else 0), len(self._classes[False])

    def take(self, head: Entry[Key, Item, Result], most: int) -> list[Entry[Key, Item, Result]]:
        """Takes out a head and others of its key for one batch, foreground items first, each class in order.

        Args:
            head: that `head` has returned.
            most: items in all, at least 1.
        """
        self.remove(head)
        batch = [head]
        overtakes = head.is_background and bool(self._classes[False])
        self._take_others(batch, most, is_background=False)
        if overtakes:
            self._overtaken = next(reversed(self._classes[False])).number if self._classes[False] else self._overtaken
        elif not self._classes[False]:
            self._take_others(batch, most, is_background=True)
        return batch

    def _take_others(self, batch: list[Entry[Key, Item, Result]], most: int, is_background: bool) -> None:
        queue = self._queues.get((batch[0].key, is_background))
        while queue and len(batch) < most and (entry := self._oldest(queue)) is not None:
            self.remove(entry)
            batch.append(entry)

    def _oldest(self, entries: Entries[Key, Item, Result]) -> Entry[Key, Item, Result] | None:
        """Returns the first entry that still has to be run, and drops cancelled and expired ones before it."""
        while entries:
            entry = next(iter(entries))
            if self._clock() - entry.arrived_s >= entry.expires_s:
                self.expire(entry)
            elif entry.future.done():
                self.remove(entry)
            else:
                return entry
        return None

    def _count(self, entry: Entry[Key, Item, Result], sign: int) -> None:
        self.pixels += sign * entry.pixels
        if entry.is_background:
            self.background_pixels += sign * entry.pixels
