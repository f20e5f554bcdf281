"""A store for an event loop: every call runs in one of a few threads, so an fsync holds up nothing else."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from serve_app.errors import AnimeganError, StoreUnavailable
from serve_app.jobs.words import SchemaBehind

logger = logging.getLogger(__name__)

THREADS = 4  # as many as the connections that a store keeps open
REOPEN_AFTER_S = 5.0
MAX_PENDING = 64  # calls that run or wait for a thread; each holds a place of the service
SILENT_S = 1.0  # a call that fails after so long has found a database that does not answer,
REFUSE_S = 2.0  # and for this time nobody else waits for it


class Closable(Protocol):
    """What can be opened and closed."""

    def close(self) -> None:
        """Closes it."""


Store = TypeVar("Store", bound=Closable)
Result = TypeVar("Result")


class StoreThreads(Generic[Store]):
    """The threads that use a store. For one event loop.

    The store is opened when it is first needed. As long as it cannot be opened, calls are refused, and it is tried
    again.

    Args:
        open_store: opens it.
    """

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open_store = open_store
        self._threads = ThreadPoolExecutor(THREADS, "jobs")
        self._opening = threading.Lock()
        self._store: Store | None = None
        self._try_again_at = 0.0
        self._failure: StoreUnavailable = unavailable()  # of the last attempt to open it
        self._pending = 0
        self._refuse_until = 0.0

    def open_soon(self) -> None:
        """Begins to open the store, so that the first call need not wait for it."""

        def attempt() -> None:
            with suppress(StoreUnavailable):  # it was logged
                self.opened()

        self._threads.submit(attempt)

    async def call(self, work: Callable[[Store], Result]) -> Result:
        """Calls a function with the store.

        Raises:
            StoreUnavailable: if the store cannot be opened or does not answer, or too many calls wait.
        """
        began = time.monotonic()
        if self._pending >= MAX_PENDING or began < self._refuse_until:
            raise unavailable()
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(self.opened()))
        except StoreUnavailable:
            if time.monotonic() - began > SILENT_S:
                self._refuse_until = time.monotonic() + REFUSE_S
            raise
        finally:
            self._pending -= 1

    def opened(self) -> Store:
        """Returns the store; for threads.

        Raises:
            StoreUnavailable: if it cannot be opened. That is tried once in `REOPEN_AFTER_S`.
        """
        with self._opening:
            if self._store is None:
                if time.monotonic() < self._try_again_at:
                    raise type(self._failure)(*self._failure.args)
                self._store = self._open()
            return self._store

    def close(self) -> None:
        """Waits for calls that run, and closes the store."""
        self._threads.shutdown(cancel_futures=True)
        if self._store is not None:
            self._store.close()

    def _open(self) -> Store:
        from sqlalchemy.exc import SQLAlchemyError  # which a process without jobs does without

        try:
            return self._open_store()
        except (AnimeganError, SQLAlchemyError, OSError) as error:
            self._try_again_at = time.monotonic() + REOPEN_AFTER_S
            self._failure = error if isinstance(error, SchemaBehind) else unavailable()
            logger.error("the store of jobs cannot be opened: %s: %s", type(error).__name__, error)
            raise type(self._failure)(*self._failure.args) from None


def unavailable() -> StoreUnavailable:
    """Returns the refusal of everything while the store cannot be opened, or does not answer."""
    return StoreUnavailable("The store of jobs cannot be used at this moment. Try again.", retry_after_s=5)
