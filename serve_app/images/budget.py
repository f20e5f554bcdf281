"""How many bytes all decodes of one replica may take together."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """A weighted semaphore in bytes, for the tasks of one event loop: each waits until what it asks for is free.

    An eighth of the budget is kept for requests of at most an eighth. So a small one never waits for large ones, which
    may hold the rest for as long as a decode may take; and small ones leave that rest to a large one that waits. Among
    its like each request is served first come, first served.

    Args:
        total_bytes: the budget; may be changed at any time, and what is reserved stays reserved.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._small = Line()
        self._large = Line()

    @property
    def most_bytes(self) -> int:
        """The most that one request may ask for: the budget without the part kept for small ones."""
        return self.total_bytes - self._kept_bytes

    @property
    def _kept_bytes(self) -> int:
        return self.total_bytes // 8

    @asynccontextmanager
    async def reserve(self, count: int) -> AsyncIterator[None]:
        """Holds `count` bytes inside the block; more than `most_bytes` are granted beside small requests only."""
        line = self._small if count <= self._kept_bytes else self._large
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append((count, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                line.held -= count
            self._admit()

    def _admit(self) -> None:
        """Admits whoever is at the head of a line and fits."""
        while (count := self._large.next_count()) is not None and self._large_fits(count):
            self._large.admit()
        while (count := self._small.next_count()) is not None and self._small_fits(count):
            self._small.admit()

    def _large_fits(self, count: int) -> bool:
        if self._large.held == 0 and self._small.held <= self._kept_bytes:
            return True
        return self._large.held + max(self._small.held, self._kept_bytes) + count <= self.total_bytes

    def _small_fits(self, count: int) -> bool:
        has_large = self._large.held > 0 or self._large.next_count() is not None
        limit = self._kept_bytes if has_large else self.total_bytes
        return self._small.held == 0 or self._small.held + count <= limit


class Line:
    """Requests of one kind: those that hold bytes, and those that wait, in the order of their coming."""

    def __init__(self) -> None:
        self.held = 0  # bytes
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def next_count(self) -> int | None:
        """Returns what the next one asks for; those who have given up meanwhile are dropped."""
        while self.waiting and self.waiting[0][1].cancelled():
            self.waiting.popleft()
        return self.waiting[0][0] if self.waiting else None

    def admit(self) -> None:
        """Lets the next one go on."""
        count, turn = self.waiting.popleft()
        self.held += count
        turn.set_result(None)
