"""Whether trouble with one picture is its own, or everybody's: another picture is stored, read and deleted to see."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serve_app.errors import RequestError

logger = logging.getLogger(__name__)

FRESH_S = 1.0  # for which the answer of a probe counts


class Outage:
    """What a runner knows of the state of its store. For one event loop.

    Args:
        probe: stores a picture of so many bytes as any other, and raises RequestError if that fails.
        clock: seconds, monotonic.

    Attributes:
        error: of the last probe that failed; None unless the store is down or full for everybody.
    """

    def __init__(self, probe: Callable[[int], Awaitable[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self.error: RequestError | None = None
        self._probe = probe
        self._clock = clock
        self._lock = asyncio.Lock()
        self._size = 0
        self._probed_at = -float("inf")

    @property
    def is_bound(self) -> bool:
        """Whether it is the bound of bytes alone that is met, so that smaller pictures may still be stored."""
        return self.error is not None and self.error.limit is not None

    async def is_everywhere(self, size: int | None = 1) -> bool:
        """Probes, unless that was done just now; returns whether a picture of so many bytes cannot be stored.

        Args:
            size: None for that of the last probe.
        """
        async with self._lock:
            size = self._size if size is None else size
            is_answered = size >= self._size if self.error is not None else size <= self._size
            if not is_answered or self._clock() - self._probed_at >= FRESH_S:
                was_down = self.error is not None
                self.error, self._size = await self._failure(size), size
                self._probed_at = self._clock()
                self._tell(was_down)
            return self.error is not None

    async def _failure(self, size: int) -> RequestError | None:
        try:
            await self._probe(size)
        except RequestError as error:
            return error
        return None

    def _tell(self, was_down: bool) -> None:
        if self.error is not None and not was_down:
            logger.error("no further job is begun, because nothing can be stored: %s", self.error)
        elif self.error is None and was_down:
            logger.warning("pictures can be stored again, and jobs go on")
