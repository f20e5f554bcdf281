"""How many bytes all decodes of one process may take together."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """A weighted semaphore in bytes, shared by threads: each waits until the bytes that it asks for are free.

    First come, first served, so that a large request is not overtaken for ever by small ones.

    Args:
        total_bytes: the budget; may be changed at any time, and what is reserved stays reserved.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._reserved = 0
        self._changed = threading.Condition()
        self._next_ticket = 0  # of the next thread that asks
        self._now_serving = 0  # ticket of the next thread to be admitted

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Holds `count` bytes inside the block; a request for more than the whole budget is admitted alone."""
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._changed.wait_for(
                lambda: (
                    ticket == self._now_serving and (self._reserved == 0 or self._reserved + count <= self.total_bytes)
                )
            )
            self._now_serving += 1
            self._reserved += count
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= count
                self._changed.notify_all()
