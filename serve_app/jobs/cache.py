"""Earlier paintings for requests that wait: whatever the store does, a request is painted all the same, and soon."""

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from serve_app.errors import RequestError
from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.jobs.threads import StoreThreads
from serve_app.settings import JobsSettings

if TYPE_CHECKING:  # SQLAlchemy and Alembic, which a process without jobs does without
    from serve_app.jobs.store import JobStore

logger = logging.getLogger(__name__)

FIND_S = 0.5  # that a request waits for an earlier painting; after that it is painted,
FIND_AGAIN_S = 5.0  # and for this time nobody else waits for one
MAX_KEEPING = 4  # paintings that are being kept; others are let go
KEEP_FROM_MS = 300  # of painting: what took less costs more to keep than it saves


class PaintingCache:
    """Finds and keeps paintings in the store of jobs. For one event loop. Its methods raise nothing.

    Args:
        threads: that use the store.
        settings: of jobs.
    """

    def __init__(self, threads: StoreThreads["JobStore"], settings: JobsSettings) -> None:
        self._threads = threads
        self._settings = settings
        self._find_after = 0.0
        self._thread = ThreadPoolExecutor(1, "keep")  # nobody waits behind it
        self._keeping: set[Future[None]] = set()

    async def find(self, client: str, work: str) -> EncodedImage | None:
        """Returns what a client was painted before, by the digest of the work; None if it is not there at once."""
        if time.monotonic() < self._find_after:
            return None
        try:
            async with asyncio.timeout(FIND_S):
                return await self._threads.call(lambda store: store.paintings.find(client, work))
        except TimeoutError:
            self._find_after = time.monotonic() + FIND_AGAIN_S
        except RequestError:  # the store has logged it
            return None
        except Exception:  # a fault of ours must not keep a picture from being painted
            logger.exception("an earlier painting could not be looked for")
        return None

    def keep(self, client: str, work: str, request: StylizeRequest, painting: EncodedImage) -> None:
        """Begins to keep a painting that was no job's, unless it took little time, or too many are being kept."""
        is_worth_it = painting.receipt.timings_ms.get("paint", 0) >= KEEP_FROM_MS
        if not is_worth_it or not self._settings.keep_stylized_for_s or len(self._keeping) >= MAX_KEEPING:
            return

        def work_in_thread() -> None:
            try:
                self._threads.opened().paintings.keep(client, work, request, painting)
            except RequestError:  # there is no room, or the store has logged it
                return
            except Exception:  # nobody asks for the outcome
                logger.exception("a painting could not be kept")

        kept = self._thread.submit(work_in_thread)
        self._keeping.add(kept)
        kept.add_done_callback(self._keeping.discard)

    def close(self) -> None:
        """Waits for a painting that is being kept."""
        self._thread.shutdown(cancel_futures=True)
