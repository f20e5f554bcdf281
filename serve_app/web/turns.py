"""Requests that hold much memory take turns, so that a route which anybody may call holds a bounded part of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.errors import TooBusy

RETRY_AFTER_S = 3


class Turns:
    """A bounded number of requests at a time, and a bounded number that wait. For one event loop.

    Args:
        at_once: requests that have a turn.
        waiting: requests that wait for one; others are refused.
        refusal: the sentence that they are told.
    """

    def __init__(self, at_once: int, waiting: int, refusal: str) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._refusal = refusal
        self._count = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Holds a turn inside the block.

        Raises:
            TooBusy: if too many wait.
        """
        if self._count >= self._most:
            raise TooBusy(self._refusal, retry_after_s=RETRY_AFTER_S)
        self._count += 1
        try:
            async with self._turns:
                yield
        finally:
            self._count -= 1
