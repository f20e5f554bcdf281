"""Reads jobs for whoever watches them: without their pictures, and without changing anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, bindparam, select

from serve_app.jobs.database import Database
from serve_app.jobs.positions import Look, Positions
from serve_app.jobs.rows import to_job
from serve_app.jobs.schema import opened
from serve_app.jobs.table import IS_FINISHED, RUNNING, jobs, now_ms
from serve_app.jobs.words import Job, Status
from serve_app.settings import JobsSettings

FIND = 500  # ids in one statement
OVERLAP_MS = 10_000  # an end may be seen so long after its time: it is committed later


@dataclass(frozen=True)
class Ask:
    """What somebody who watches jobs wants to know.

    Attributes:
        known: unfinished jobs by id, as they were seen last.
        unseen: ids of jobs that were not looked at yet.
        since_ms: the time of the last look; None for a look at all jobs anew.
        with_queue: whether also to look at the queue.
    """

    known: Mapping[str, Job]
    unseen: Sequence[str] = ()
    since_ms: int | None = None
    with_queue: bool = False


@dataclass(frozen=True)
class Seen:
    """What a look has found.

    Attributes:
        now_ms: when, by the database's clock.
        jobs: those that have changed or were not seen before; None for one that does not exist.
        queue: if it was asked for.
    """

    now_ms: int
    jobs: dict[str, Job | None]
    queue: Look | None = None


class JobReader:
    """Reads jobs. Thread-safe; make one in each process.

    Every method raises StoreUnavailable if the database cannot be reached.

    Args:
        database: with a schema that is up to date.

    Attributes:
        positions: how many unfinished jobs are ahead of one.
    """

    def __init__(self, database: Database) -> None:
        self.positions = Positions(database)
        self._database = database

    def find(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Returns those of some jobs that exist, expired ones too, by their ids."""
        found: dict[str, Job] = {}
        with self._database.read() as connection:
            for start in range(0, len(job_ids), FIND):
                some = select(jobs).where(jobs.c.id.in_(list(job_ids[start : start + FIND])))
                found |= {row["id"]: to_job(row) for row in connection.execute(some).mappings()}
        return found

    def look(self, ask: Ask) -> Seen:
        """Looks at jobs. What it costs follows from how many have changed, and not from how many are watched."""
        with self._database.read() as connection:
            now: int = connection.execute(select(now_ms())).scalar_one()
            if ask.since_ms is None:
                changed = moved(connection, ask.known)
            else:
                running = set(connection.execute(RUNNING_IDS).scalars())
                ended = connection.execute(ENDS, {"since": ask.since_ms - OVERLAP_MS}).scalars()
                changed = [each for each in ended if each in ask.known]
                changed += [
                    job_id
                    for job_id, job in ask.known.items()
                    if (job_id in running) != (job.status is Status.RUNNING) and job_id not in changed
                ]
        asked = [*changed, *ask.unseen]
        found = self.find(asked)
        seen: dict[str, Job | None] = {each: found.get(each) for each in asked}
        return Seen(now, seen, self.positions.look() if ask.with_queue else None)

    def listen(self, heard: Callable[[], None], is_over: Callable[[], bool]) -> bool:
        """Tells of each transition of any job until it is over; see `Database.listen`."""
        return self._database.listen(CHANNEL, heard, is_over)

    def close(self) -> None:
        """Closes the connections to the database."""
        self._database.close()


CHANNEL = "animegan_jobs"  # that a trigger of the schema notifies
RUNNING_IDS = select(jobs.c.id).where(RUNNING)
ENDS = select(jobs.c.id).where(IS_FINISHED, jobs.c.finished_at >= bindparam("since", type_=BigInteger))


def moved(connection: Connection, known: Mapping[str, Job]) -> list[str]:
    """Returns the ids of those jobs that have another status now, or do not exist any more."""
    ids = list(known)
    present: dict[str, str] = {}
    for start in range(0, len(ids), FIND):
        some = select(jobs.c.id, jobs.c.status).where(jobs.c.id.in_(ids[start : start + FIND]))
        present.update((job_id, status) for job_id, status in connection.execute(some))
    return [job_id for job_id, job in known.items() if present.get(job_id) != job.status]


def open_reader(settings: JobsSettings) -> JobReader:
    """Opens the database of the settings, after bringing its schema up to date.

    Raises:
        SettingsError: if a setting is wrong.
        SchemaBehind: if the schema cannot be brought up to date.
        StoreUnavailable: if the database cannot be reached.
    """
    with opened(settings) as database:
        return JobReader(database)
