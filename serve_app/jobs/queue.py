"""The transitions of jobs. Each is one statement that states its precondition, and time is the database's own.

A worker claims a job for the length of a lease, renews the lease while it works, and ends the job with the lease's
token. If it dies, the lease runs out, and any process gives the job to another worker (`reap`).

Clients take turns. A submission gives each of its jobs a `turn`: one more than the client's last job that waits, or
than the turn at the head of the queue if that is larger. Jobs are claimed by turn, and within a turn by arrival. So a
client's first job waits for at most two jobs of each other client, and a client with many jobs never waits for good.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    RowMapping,
    Update,
    and_,
    bindparam,
    case,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    update,
)

from serve_app.errors import Gone, KeyReused, Lost, RequestError, TooBusy, UnknownJob
from serve_app.frames import Receipt, StylizeRequest
from serve_app.jobs import ledger, outbox
from serve_app.jobs.database import Database
from serve_app.jobs.rows import receipt_members, request_members, to_job
from serve_app.jobs.table import IS_UNFINISHED, QUEUED, RUNNING, jobs, now_ms, status
from serve_app.jobs.words import Job, Lease, Reaped, SeenLease, Status, Submission
from serve_app.jobs.works import content_digest, work_digest
from serve_app.settings import JobsSettings

SUBMISSION_LOCK = 0x616E6971
ID_BYTES = 16  # of randomness, written in hexadecimal: an id that begins with "-" would be an option to a command line
RETRY_AFTER_S = 30

Tell = Callable[[Connection, Sequence[RowMapping]], None]


@dataclass(frozen=True)
class Entry:
    """A job to insert: what to do, with which stored photograph (`photo`) or with that of which job (`source`).

    `pixels` are those that will be painted, and `callback_url` is told of its end. With an `error` there is no
    photograph: the job has failed already. If there is an `earlier` job of the client with the same work, its painting
    is reused, as long as it is kept; with neither `photo` nor `source`, its photograph too.
    """

    request: StylizeRequest
    pixels: int
    photo: str | None = None
    source: str | None = None
    error: RequestError | None = None
    callback_url: str | None = field(default=None, repr=False)
    earlier: Job | None = None


@dataclass(frozen=True)
class Kept:
    """Names of the pictures of a new job: of its photograph, and of the painting if it need not be painted."""

    photo: str | None = None
    painting: str | None = None

    @property
    def must_be_painted(self) -> bool:
        """Whether the job waits; one that has failed already has no pictures."""
        return self.photo is not None and self.painting is None


class Vanished(Exception):
    """The pictures of an earlier job were let go while a new one was about to reuse them."""


@dataclass(frozen=True)
class Waiting:
    """The queue as one client sees it.

    Attributes:
        total: jobs that wait.
        own: those of the client.
        head_turn: the turn at the head of the queue, or 0.
        last_turn: the turn of the client's last job, or 0.
    """

    total: int
    own: int
    head_turn: int
    last_turn: int


class JobQueue:
    """The rows of unfinished jobs. Thread-safe.

    Every method raises StoreUnavailable if the database cannot be reached.

    Args:
        database: with a schema that is up to date.
        settings: limits and times.
    """

    def __init__(self, database: Database, settings: JobsSettings) -> None:
        self._database = database
        self._settings = settings
        self._lately_waiting = 0

    def submitted(self, key_digest: str, payload_digest: str) -> Submission | None:
        """Returns the jobs that an idempotency key has made, or None.

        Raises:
            KeyReused: if it came with another payload.
        """
        with self._database.read() as connection:
            return self._submitted(connection, key_digest, payload_digest)

    def submit(
        self, client: str, entries: Sequence[Entry], key_digest: str | None = None, payload_digest: str | None = None
    ) -> Submission:
        """Inserts jobs whose photographs are stored and reserved, or returns those of the same key.

        Raises:
            KeyReused: if the key came with another payload.
            TooBusy: if the queue, or the client's share of it, is full.
            UnknownJob, Gone: if the source of an entry, or its photograph, is not there.
            Vanished: if all pictures are gone that an entry wanted to reuse.
        """
        with self._database.write() as connection:
            if not self._database.is_sqlite:  # there a write transaction is alone
                connection.execute(text(f"SELECT pg_advisory_xact_lock({SUBMISSION_LOCK})"))
            if key_digest and payload_digest:
                earlier = self._submitted(connection, key_digest, payload_digest)
                if earlier:
                    return earlier
            kept = keep_pictures(connection, entries)
            waiting = waiting_jobs(connection, client)
            if to_paint := sum(each.must_be_painted for each in kept):
                self._check_room(waiting, to_paint)
            turn = 1 + max(waiting.head_turn, waiting.last_turn)
            made = []
            for part, (entry, pictures) in enumerate(zip(entries, kept, strict=True)):
                keys = {"key_digest": key_digest, "payload_digest": payload_digest, "part": part}
                wanted = {"request": request_members(entry.request), "pixels": entry.pixels}
                values = {"client": client, "turn": turn, **wanted, **keys, "callback_url": entry.callback_url}
                if entry.error is not None:
                    made.append(insert_failed(connection, values, entry.error, self._settings))
                else:
                    made.append(insert_entry(connection, values, entry, pictures, self._ending()))
                turn += made[-1].status is Status.QUEUED
            return Submission(tuple(made), is_new=True)

    def check_room(self, client: str, count: int) -> None:
        """Refuses early what `submit` would refuse. It looks only if the queue was half full lately.

        Raises:
            TooBusy: if the queue, or the client's share of it, is full.
        """
        if self._lately_waiting + count > self._settings.max_queued / 2:
            with self._database.read() as connection:
                self._check_room(waiting_jobs(connection, client), count)

    def claim(self) -> Lease | None:
        """Takes the job whose turn it is, or returns None if no job waits, which costs a tenth of a claim."""
        if not self._has_waiting():
            return None
        lease_ms = int(1000 * self._settings.lease_s)
        waiting = jobs.alias("waiting")
        head = (
            select(waiting.c.number)
            .where(waiting.c.status == status(Status.QUEUED))
            .order_by(waiting.c.turn, waiting.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        token = secrets.token_hex(ID_BYTES)
        claimed = update(jobs).where(jobs.c.number == head, QUEUED)
        values = {
            "status": status(Status.RUNNING),
            "attempt": jobs.c.attempt + 1,
            "started_at": func.coalesce(jobs.c.started_at, now_ms()),
            "lease_token": token,
            "lease_until": now_ms() + lease_ms,
            "lease_ms": lease_ms,
        }
        job = self._change(claimed.values(values))
        return None if job is None else Lease(job, token, self._settings.lease_s)

    def renew(self, lease: Lease) -> bool:
        """Lengthens a lease from now; returns False if it is void: stop, and throw the work away."""
        return self._change(held(lease).values(lease_until=now_ms() + jobs.c.lease_ms)) is not None

    def finish(self, lease: Lease, painting: str, media_type: str, receipt: Receipt) -> bool:
        """Ends a job with its stored and reserved painting; returns False if the lease is void.

        Repeating it is harmless: if the job has this painting already, the answer is True.

        Raises:
            StoreUnavailable: if the reservation of the painting ran out.
        """
        values = {"painting": painting, "media_type": media_type, "receipt": receipt_members(receipt)}
        work = work_of(lease.job, receipt)
        with self._database.write() as connection:
            finished = held(lease).values(
                status=status(Status.SUCCEEDED),
                problem=null(),
                work_digest=work,
                **values,
                **self._ending(),
                **NO_LEASE,
            )
            row = connection.execute(finished.returning(*outbox.ENDED)).mappings().one_or_none()
            if row is not None:
                ledger.keep(connection, painting)
                outbox.announce(connection, [row])
                return True
            is_done = and_(jobs.c.number == lease.job.number, jobs.c.painting == painting)
            return connection.execute(select(jobs.c.number).where(is_done)).first() is not None

    def fail(self, lease: Lease, error: RequestError) -> bool:
        """Ends a job that can never succeed; returns False if the lease is void."""
        values = {"status": status(Status.FAILED), "problem": error.problem(), **self._ending(), **NO_LEASE}
        return self._change(held(lease).values(values)) is not None

    def retry(self, lease: Lease, error: RequestError) -> bool:
        """Lets a job wait again after a failure that may pass, or fails it after its last attempt."""
        return self._change(held(lease).values(self._again(error))) is not None

    def release(self, lease: Lease) -> bool:
        """Lets a job wait again because its worker stops; the attempt does not count."""
        values = {"attempt": jobs.c.attempt - 1, "status": status(Status.QUEUED), "turn": head_turn(), **NO_LEASE}
        return self._change(held(lease).values(values)) is not None

    def cancel(self, job_id: str) -> Job | None:
        """Ends a job that waits or runs; returns None if there is no such job, or it is finished."""
        ending = {**self._ending(), **NO_LEASE, "photo_expires_at": now_ms()}
        cancelled = update(jobs).where(jobs.c.id == job_id, IS_UNFINISHED)
        return self._change(cancelled.values(status=status(Status.CANCELLED), **ending))

    def requeue(self, job_id: str) -> Job | None:
        """Lets a failed or cancelled job wait again as if it were new, at the head of the queue.

        Returns None if there is no such job, or its photograph is not kept any more.
        """
        ended = jobs.c.status.in_([status(Status.FAILED), status(Status.CANCELLED)])
        again = update(jobs).where(jobs.c.id == job_id, ended, jobs.c.photo.is_not(None))
        blank = ("started_at", "finished_at", "expires_at", "photo_expires_at", "problem")
        values = {"status": status(Status.QUEUED), "attempt": 0, "turn": head_turn(), **dict.fromkeys(blank, null())}
        return self._change(again.values(values), outbox.withdraw)

    def leases(self) -> list[SeenLease]:
        """Returns all leases, of every worker."""
        columns = (jobs.c.number, jobs.c.lease_token, jobs.c.lease_until, jobs.c.lease_ms)
        with self._database.read() as connection:
            rows = connection.execute(select(*columns).where(RUNNING)).all()
        return [SeenLease(row.number, row.lease_token, row.lease_until, row.lease_ms / 1000) for row in rows]

    def reap(self, lost: Sequence[SeenLease] | None = None) -> Reaped:
        """Lets jobs wait again whose workers are lost, or fails them after their last attempt. Any process may do it.

        Args:
            lost: leases that were not renewed for long, as `Silences` finds them; those that were renewed since are
                left alone. None means all that have run out. If the database's clock was set back, some end in a
                distant future; then they are shortened to one lease from now.
        """
        most = self._settings.max_attempts
        error = Lost(f"It was started {most} times, and each time the process that worked on it was lost.")
        ran_out = jobs.c.lease_until <= now_ms() if lost is None else or_(false(), *map(is_still, lost))
        # Rows that another process is changing at this moment are left for the next look, and never waited for.
        found = select(jobs.c.number).where(RUNNING, ran_out).with_for_update(skip_locked=True)
        with self._database.write() as connection:
            if lost is None:
                distant = update(jobs).where(RUNNING, jobs.c.lease_until > now_ms() + 2 * jobs.c.lease_ms)
                connection.execute(distant.values(lease_until=now_ms() + jobs.c.lease_ms))
            numbers = connection.execute(found).scalars().all()
            again = update(jobs).where(jobs.c.number.in_(numbers), RUNNING, ran_out).values(self._again(error))
            rows = connection.execute(again.returning(*outbox.ENDED)).mappings().all() if numbers else []
            outbox.announce(connection, rows)
        ids = {now: tuple(row["id"] for row in rows if row["status"] == now) for now in (Status.QUEUED, Status.FAILED)}
        return Reaped(ids[Status.QUEUED], ids[Status.FAILED])

    def valid(self, leases: Sequence[Lease]) -> set[str]:
        """Returns the tokens of those leases that are not void."""
        numbers = [lease.job.number for lease in leases]
        with self._database.read() as connection:
            rows = connection.execute(select(jobs.c.lease_token).where(jobs.c.number.in_(numbers), RUNNING))
            return {lease.token for lease in leases} & set(rows.scalars())

    def waiting(self) -> int:
        """Returns the number of jobs that wait."""
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(jobs).where(QUEUED)).scalar_one()

    def _has_waiting(self) -> bool:
        with self._database.read() as connection:
            return connection.execute(ANY_WAITING).first() is not None

    def _change(self, statement: Update, tell: Tell = outbox.announce) -> Job | None:
        with self._database.write() as connection:
            row = connection.execute(statement.returning(jobs)).mappings().one_or_none()
            if row is not None:
                tell(connection, [row])
        return None if row is None else to_job(row)

    def _submitted(self, connection: Connection, key_digest: str, payload_digest: str) -> Submission | None:
        same = select(jobs).where(jobs.c.key_digest == key_digest).order_by(jobs.c.part)
        rows = connection.execute(same).mappings().all()
        if any(row["payload_digest"] != payload_digest for row in rows):
            raise KeyReused("This Idempotency-Key came with another photograph or other options. Use a new one.")
        return Submission(tuple(map(to_job, rows)), is_new=False) if rows else None

    def _check_room(self, waiting: Waiting, count: int) -> None:
        limit, share = self._settings.max_queued, self._settings.client_share
        total, own = waiting.total, waiting.own
        self._lately_waiting = total
        if total + count > limit:
            detail = f"{total} pictures are waiting, and there is room for {limit}. Try again later."
            raise TooBusy(detail, limit, total + count, retry_after_s=RETRY_AFTER_S, position=total)
        # As in `queueing/admission.py`: a client may hold a multiple of what it leaves free, and its first job always.
        if (own or count > 1) and (own + count) * (1 - share) > share * (limit - total - count):
            detail = f"{own} pictures of yours are waiting, which is your share of the queue. Try again later."
            raise TooBusy(detail, retry_after_s=RETRY_AFTER_S, position=total)

    def _ending(self) -> dict[str, Any]:
        """What every end of a job sets."""
        keep_ms = int(1000 * self._settings.keep_for_s)
        photo_ms = min(int(1000 * self._settings.keep_photos_for_s), keep_ms)
        return {
            "finished_at": now_ms(),
            "expires_at": now_ms() + keep_ms,
            "photo_expires_at": now_ms() + photo_ms,
        }

    def _again(self, error: RequestError) -> dict[str, Any]:
        """What lets a job wait again, at the head of the queue, or fails it after its last attempt."""
        is_last = jobs.c.attempt >= self._settings.max_attempts
        ending = {"problem": literal(error.problem(), jobs.c.problem.type), **self._ending()}
        return {
            "turn": head_turn(),
            "status": case((is_last, status(Status.FAILED)), else_=status(Status.QUEUED)),
            **{name: case((is_last, value), else_=null()) for name, value in ending.items()},
            **NO_LEASE,
        }


ANY_WAITING = select(jobs.c.number).where(QUEUED).order_by(jobs.c.turn, jobs.c.number).limit(1)  # by the index
NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_until": None}  # nosec B105 # none


def held(lease: Lease) -> Update:
    """An update of the job of a lease, as long as the lease has not passed on."""
    return update(jobs).where(jobs.c.number == lease.job.number, jobs.c.lease_token == lease.token, RUNNING)


def is_still(lease: SeenLease) -> ColumnElement[bool]:
    """Whether a row holds a lease that was not renewed since it was seen."""
    return and_(jobs.c.number == lease.number, jobs.c.lease_token == lease.token, jobs.c.lease_until == lease.until)


def head_turn() -> ColumnElement[int]:
    """The turn at the head of the queue."""
    waiting = jobs.alias("waiting")
    turn = select(func.min(waiting.c.turn)).where(waiting.c.status == status(Status.QUEUED)).scalar_subquery()
    return func.coalesce(turn, 0)


def waiting_jobs(connection: Connection, client: str) -> Waiting:
    """Looks at the queue."""
    everybody = select(func.count(), head_turn()).select_from(jobs).where(QUEUED)
    mine = select(func.count(), func.coalesce(func.max(jobs.c.turn), 0)).select_from(jobs).where(QUEUED)
    total, first_turn = connection.execute(everybody).one()
    own, last_turn = connection.execute(mine.where(jobs.c.client == client)).one()
    return Waiting(total, own, first_turn, last_turn)


def keep_pictures(connection: Connection, entries: Sequence[Entry]) -> list[Kept]:
    """Lets new jobs name their photographs, and the paintings that they reuse; returns the names.

    Blobs are locked in the order of their names, as everywhere, so that no two transactions wait for each other. The
    jobs whose pictures are used again need no lock: a blob that was let go meanwhile cannot be shared any more.

    Raises:
        UnknownJob, Gone: if an entry's source, or its photograph, is not there.
        Vanished: if neither the photograph nor the painting of an earlier job is there.
    """
    wanted = [wanted_pictures(connection, entry) for entry in entries]
    own = {entry.photo for entry in entries if entry.photo is not None}
    uses = Counter(name for each in wanted for name in (each.photo, each.painting) if name is not None)
    gone = set()
    for name in sorted(uses):
        if name in own:
            ledger.keep(connection, name)
        elif not ledger.share(connection, name, uses[name]):
            gone.add(name)
    kept = [Kept(*(name if name not in gone else None for name in (each.photo, each.painting))) for each in wanted]
    for entry, pictures in zip(entries, kept, strict=True):
        if pictures == Kept() and entry.error is None:
            raise Vanished if entry.source is None else photo_gone()
    return kept


def wanted_pictures(connection: Connection, entry: Entry) -> Kept:
    """Returns the pictures that an entry would name.

    Raises:
        UnknownJob, Gone: if its source, or the photograph of it, is not there.
    """
    photo, painting = entry.photo, None
    if entry.source is not None:
        photo = photo_of(connection, entry.source)
    if entry.earlier is not None:
        photo, painting = photo or entry.earlier.photo, entry.earlier.painting
    return Kept(photo, painting)


def painted_before(entry: Entry, pictures: Kept) -> dict[str, Any]:
    """Returns the columns of a job that was painted before it came."""
    earlier = entry.earlier
    if earlier is None or earlier.receipt is None:
        raise ValueError("only a succeeded job has a painting to reuse")
    receipt = replace(reused(earlier.receipt), style=entry.request.style)
    values = {"painting": pictures.painting, "media_type": earlier.media_type, "work_digest": earlier.work}
    return {**values, "receipt": receipt_members(receipt)}


def work_of(job: Job, receipt: Receipt) -> str | None:
    """Returns the digest of the work of a job that was painted; None if nobody says who has painted it."""
    if job.photo is None or job.request is None:
        return None
    return work_digest(content_digest(job.photo), receipt.painter, job.request)


def reused(receipt: Receipt) -> Receipt:
    """Returns the receipt of a painting that is used again: no step has taken any time."""
    return replace(receipt, timings_ms=dict.fromkeys(receipt.timings_ms, 0.0), reused=True)


def photo_of(connection: Connection, job_id: str) -> str:
    """Returns the name of the photograph of a job.

    Raises:
        UnknownJob, Gone: if the job, or its photograph, is not there.
    """
    row = connection.execute(select(jobs.c.photo).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise UnknownJob("There is no job with the id of source_job.")
    if row.photo is None:
        raise photo_gone()
    name: str = row.photo
    return name


def photo_gone() -> Gone:
    """Returns, as a refusal, that a photograph cannot be painted again."""
    return Gone("The photograph of source_job is not kept: it has expired, was erased, or could never be painted.")


# Made once: SQLAlchemy takes longer to put a statement together than SQLite to run it.
INSERT_JOB = insert(jobs).values(status=status(Status.QUEUED), attempt=0, created_at=now_ms()).returning(jobs)


INSERT_FAILED = (
    insert(jobs)
    .values(status=status(Status.FAILED), attempt=0, created_at=now_ms(), finished_at=now_ms())
    .values(expires_at=now_ms() + bindparam("keep_ms", type_=BigInteger))
    .returning(jobs)
)


def insert_job(connection: Connection, values: dict[str, Any], painted: dict[str, Any] | None = None) -> Job:
    """Inserts a job that waits, or one that has succeeded already, with the columns of a painting."""
    statement = INSERT_JOB if painted is None else INSERT_JOB.values(status=status(Status.SUCCEEDED), **painted)
    row = connection.execute(statement, {"id": secrets.token_hex(ID_BYTES), **values}).mappings().one()
    outbox.announce(connection, [row])
    return to_job(row)


def insert_entry(
    connection: Connection, values: dict[str, Any], entry: Entry, pictures: Kept, ending: dict[str, Any]
) -> Job:
    """Inserts a job that waits, or that was painted before it came; `ending` is what every end of a job sets."""
    painted = {**painted_before(entry, pictures), **ending} if pictures.painting else None
    return insert_job(connection, {**values, "photo": pictures.photo}, painted)


def insert_failed(connection: Connection, values: dict[str, Any], error: RequestError, settings: JobsSettings) -> Job:
    """Inserts a job that has failed before it could wait."""
    ending = {"problem": error.problem(), "keep_ms": int(1000 * settings.keep_for_s)}
    row = connection.execute(INSERT_FAILED, {"id": secrets.token_hex(ID_BYTES), **values, **ending}).mappings().one()
    outbox.announce(connection, [row])
    return to_job(row)
