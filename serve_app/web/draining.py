"""A proxy that drains: it finishes what it has in hand, and takes nothing new that would be painted."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import Stopping
from serve_app.web.request_log import PROBES

ALIVE = "/livez"
RETRY_AFTER_S = 5  # by then another node answers, or this one has been started again


class Draining:
    """What one proxy has in hand, and whether it drains. For one event loop.

    Attributes:
        is_on: whether it drains.
        has_guard: whether there is a guard that minds it.
        in_hand: requests that have arrived and are not yet answered; health checks and streams of events do not count.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.has_guard = False
        self.in_hand = 0

    @contextmanager
    def hand(self) -> Iterator[None]:
        """Counts a request while the block runs."""
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    def check(self, path: str, has_body: bool) -> None:
        """Refuses what a proxy that drains does not take: bodies, and to be called ready.

        Raises:
            Stopping: if it drains.
        """
        if self.is_on and (has_body or (path in PROBES and path != ALIVE)):
            raise Stopping("The service is about to stop; try again shortly.", retry_after_s=RETRY_AFTER_S)
