"""Which leases have lost their workers: those that one process has not seen renewed for as long as they last.

The times of leases alone do not tell. When a machine wakes up, or a database comes back after a while, every lease has
run out, and each worker is about to renew its own. If a clock is set forward, the same happens; and on SQLite the clock
of the database is that of whichever process asks, so two processes may disagree. So each process measures by itself, in
seconds of a clock that nobody sets, and only while it looks.
"""

import time
from collections.abc import Callable, Collection, Sequence

from serve_app.jobs.words import SeenLease

LONGEST_LOOK = 0.5  # of a lease: what passes between two looks counts up to this; more means that the process slept


class Silences:
    """Measures how long leases have not been renewed.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent_s: dict[SeenLease, float] = {}
        self._looked_at = 0.0

    def look(self, leases: Sequence[SeenLease], own: Collection[str]) -> list[SeenLease]:
        """Takes note of all leases, and returns those that were silent too long.

        Args:
            leases: as they are now.
            own: tokens of leases that this process holds, which are never lost.
        """
        now = self._clock()
        passed_s, self._looked_at = now - self._looked_at, now
        silent_s = {}
        for lease in leases:
            if lease.token not in own:
                before_s = self._silent_s.get(lease)
                counted_s = max(0.0, min(passed_s, LONGEST_LOOK * lease.lease_s))
                silent_s[lease] = 0.0 if before_s is None else before_s + counted_s
        self._silent_s = silent_s
        return [lease for lease, seconds in silent_s.items() if seconds >= lease.lease_s]

    def forget(self) -> None:
        """Begins anew, because a look has failed: who could not look could not renew either."""
        self._silent_s = {}
