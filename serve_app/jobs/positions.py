"""Positions in the queue: how many unfinished jobs are ahead of one, those that run included.

A job of a client that has waited less may still be claimed before one that is counted here as behind it, because
clients take turns.
"""

import bisect
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, Connection, func, select, tuple_

from serve_app.jobs.database import Database
from serve_app.jobs.table import QUEUED, RUNNING, jobs
from serve_app.jobs.words import Status

CACHED_S = 1.0


class Positions:
    """Positions of jobs. Thread-safe.

    Args:
        database: of the jobs.
        clock: seconds, monotonic.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._running = 0
        self._waiting: list[tuple[int, int]] = []  # turns and numbers, in order

    def exact(self, job_id: str) -> int | None:
        """Counts the unfinished jobs ahead of one now: 0 for one that runs, None for one that is not unfinished."""
        with self._database.read() as connection:
            row = connection.execute(
                select(jobs.c.status, jobs.c.turn, jobs.c.number).where(jobs.c.id == job_id)
            ).first()
            if row is None or row.status != Status.QUEUED:
                return 0 if row is not None and row.status == Status.RUNNING else None
            before = tuple_(jobs.c.turn, jobs.c.number) < (row.turn, row.number)
            return count(connection, QUEUED, before) + count(connection, RUNNING)

    def recent(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Returns the positions of those of some jobs that are unfinished, from a look at the queue at most 1 s old."""
        with self._lock, self._database.read() as connection:
            if self._read_at is None or self._clock() - self._read_at > CACHED_S:
                self._read_at = self._clock()
                queue = select(jobs.c.turn, jobs.c.number).where(QUEUED).order_by(jobs.c.turn, jobs.c.number)
                self._waiting = [(turn, number) for turn, number in connection.execute(queue)]
                self._running = count(connection, RUNNING)
            asked = select(jobs.c.id, jobs.c.status, jobs.c.turn, jobs.c.number).where(jobs.c.id.in_(list(job_ids)))
            rows = connection.execute(asked).all()
            return {
                row.id: self._ahead(row.turn, row.number) if row.status == Status.QUEUED else 0
                for row in rows
                if row.status in (Status.QUEUED, Status.RUNNING)
            }

    def _ahead(self, turn: int, number: int) -> int:
        return self._running + bisect.bisect_left(self._waiting, (turn, number))


def count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    """Counts the jobs that meet conditions."""
    return connection.execute(select(func.count()).select_from(jobs).where(*conditions)).scalar_one()
