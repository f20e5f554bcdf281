"""Positions in the queue: how many unfinished jobs are ahead of one, those that run included, and how long they take.

A job of a client that has waited less may still be claimed before one that is counted here as behind it, because
clients take turns.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sqlalchemy import Connection, func, select, tuple_

from serve_app.jobs.database import Database
from serve_app.jobs.estimates import Pace, Run, eta_of_running, eta_of_waiting, measure_pace
from serve_app.jobs.table import QUEUED, RUNNING, SUCCEEDED, jobs, now_ms
from serve_app.jobs.words import Job, Outlook, Status

CACHED_S = 1.0
MEASURED_JOBS = 50  # that were painted last: the pace is theirs

Place = tuple[int, int]  # turn and number


@dataclass(frozen=True)
class Look:
    """The queue at one moment.

    Attributes:
        running: jobs that run, by their ids.
        waiting: places of the jobs that wait, in order.
        order: how many wait before each of them, by the numbers of the jobs.
        pixels: of the first one that waits, of the first two and so on.
        pace: as measured lately; None before the first job was painted.
    """

    running: dict[str, Run]
    waiting: list[Place]
    order: dict[int, int]
    pixels: list[int]
    pace: Pace | None

    def outlook(self, job: Job, rate: float = 0.0) -> Outlook | None:
        """Returns the outlook of a job; None if it neither waited nor ran at the moment of the look.

        Args:
            job: as it was seen at any time.
            rate: see `Positions.outlook_now`.
        """
        pace = self.pace or guess(rate, self.running)
        if job.id in self.running:
            return outlook_of_running(self.running[job.id], self.running, pace)
        count = self.order.get(job.number)
        if count is None:
            return None
        before = self.pixels[count - 1] if count else 0
        return outlook_of_waiting(self.pixels[count] - before, count, before, self.running, pace)


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
        self._look: Look | None = None
        self._looked_at = 0.0
        self._pace: Pace | None = None
        self._measured_at: float | None = None

    def outlook_now(self, job_id: str, rate: float = 0.0) -> Outlook | None:
        """Returns the outlook of an unfinished job by the queue as it is now; only the pace may be a second old.

        Args:
            job_id: of the job.
            rate: pixels per second to go by as long as no job was painted; 0 if not even that is known.
        """
        with self._database.read() as connection:
            asked = select(jobs.c.status, jobs.c.turn, jobs.c.number, jobs.c.pixels).where(jobs.c.id == job_id)
            row = connection.execute(asked).first()
            if row is None or row.status not in (Status.QUEUED, Status.RUNNING):
                return None
            running = running_jobs(connection)
            pace = self._measured(connection, running) or guess(rate, running)
            if row.status == Status.RUNNING:
                return outlook_of_running(running.get(job_id), running, pace)
            before = tuple_(jobs.c.turn, jobs.c.number) < (row.turn, row.number)
            ahead = select(func.count(), func.coalesce(func.sum(jobs.c.pixels), 0)).where(QUEUED, before)
            count, pixels = connection.execute(ahead).one()
            return outlook_of_waiting(row.pixels, count, int(pixels), running, pace)

    def outlooks(self, unfinished: Sequence[Job], rate: float = 0.0, is_fresh: bool = False) -> dict[str, Outlook]:
        """Returns the outlooks of those of some unfinished jobs that still are, from a look at most 1 s old.

        Args:
            unfinished: the jobs.
            rate: see `outlook_now`.
            is_fresh: whether to look now.
        """
        look = self.look(0.0 if is_fresh else CACHED_S)
        found = {job.id: look.outlook(job, rate) for job in unfinished}
        return {job_id: outlook for job_id, outlook in found.items() if outlook is not None}

    def look(self, age_s: float = CACHED_S) -> Look:
        """Returns a look at the queue that is not older than so many seconds."""
        with self._database.read() as connection:
            return self._recent_look(connection, age_s)

    def _recent_look(self, connection: Connection, age_s: float) -> Look:
        with self._lock:
            if self._look is None or self._clock() - self._looked_at > age_s:
                looked_at = self._clock()
                queue = select(jobs.c.turn, jobs.c.number, jobs.c.pixels).where(QUEUED)
                rows = connection.execute(queue.order_by(jobs.c.turn, jobs.c.number)).all()
                running = running_jobs(connection)
                places = [(turn, number) for turn, number, _ in rows]
                pixels = list(accumulate(pixels for _, _, pixels in rows))
                order = {number: count for count, (_, number) in enumerate(places)}
                self._look = Look(running, places, order, pixels, self._measured(connection, running))
                self._looked_at = looked_at
            return self._look

    def _measured(self, connection: Connection, running: dict[str, Run]) -> Pace | None:
        if self._measured_at is None or self._clock() - self._measured_at > CACHED_S:
            self._measured_at = self._clock()
            painted = painted_jobs(connection)
            self._pace = measure_pace(painted, list(running.values()), is_cut=len(painted) == MEASURED_JOBS)
        return self._pace


def guess(rate: float, running: dict[str, Run]) -> Pace | None:
    """Returns the pace of a rate that was measured elsewhere, or None if there is none."""
    return Pace(rate, max(1, len(running))) if rate > 0 else None


def outlook_of_running(run: Run | None, running: dict[str, Run], pace: Pace | None) -> Outlook:
    """Returns the outlook of a job that runs; `run` is None if it was started after the look."""
    if pace is None or run is None:
        return Outlook(0, None)
    return Outlook(0, eta_of_running(run, pace, len(running)))


def outlook_of_waiting(pixels: int, count: int, ahead: int, running: dict[str, Run], pace: Pace | None) -> Outlook:
    """Returns the outlook of a job that waits, with the number of jobs that wait ahead of it and their pixels."""
    eta_s = None if pace is None else eta_of_waiting(pixels, ahead, list(running.values()), pace)
    return Outlook(count + len(running), eta_s)


def running_jobs(connection: Connection) -> dict[str, Run]:
    """Returns the jobs that run."""
    found = select(jobs.c.id, jobs.c.pixels, jobs.c.attempt, jobs.c.started_at, now_ms().label("now")).where(RUNNING)
    return {
        row.id: Run(row.pixels, row.started_at if row.attempt == 1 else None, row.now)
        for row in connection.execute(found)
    }


def painted_jobs(connection: Connection) -> list[Run]:
    """Returns the jobs that were painted last."""
    last = select(jobs.c.pixels, jobs.c.attempt, jobs.c.started_at, jobs.c.finished_at).where(
        SUCCEEDED,
        jobs.c.started_at.is_not(None),  # reused ones were not painted
    )
    return [
        Run(row.pixels, row.started_at if row.attempt == 1 else None, row.finished_at)
        for row in connection.execute(last.order_by(jobs.c.finished_at.desc()).limit(MEASURED_JOBS))
    ]
