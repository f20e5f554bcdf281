"""Ends of finished jobs: their photographs go first, then they expire, and at last their ids are forgotten.

An expired job keeps its id, number and times, so that its address answers 410, and nothing of its client or its
picture.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, delete, select, text, update

from serve_app.jobs import ledger, outbox
from serve_app.jobs.table import EXPIRED, IS_FINISHED, NO_TURN, blobs, jobs, now_ms, status
from serve_app.jobs.words import Status
from serve_app.settings import JobsSettings

BATCH = 500  # rows of one transaction
CLOCK_SLACK_MS = 60_000
EXPIRY_LOCK = 0x616E6978
BLANK: dict[str, Any] = {
    "client": "",
    "request": None,
    "pixels": 0,
    "key_digest": None,
    "payload_digest": None,
    "photo": None,
    "photo_expires_at": None,
    "painting": None,
    "media_type": None,
    "receipt": None,
    "problem": None,
    "callback_url": None,
    "work_digest": None,
}


def expire_due(connection: Connection) -> int:
    """Expires finished jobs whose time has come; returns their number, at most BATCH."""
    alone(connection)
    due = select(jobs.c.number).where(IS_FINISHED, jobs.c.expires_at <= now_ms())
    return expire(connection, lock(connection, due.order_by(jobs.c.expires_at).limit(BATCH)))


def erase(connection: Connection, job_id: str) -> bool:
    """Expires a finished job now; returns False if there is none of this id."""
    alone(connection)
    found = select(jobs.c.number).where(jobs.c.id == job_id, IS_FINISHED).with_for_update()
    return expire(connection, connection.execute(found).scalars().all()) == 1


def expire(connection: Connection, numbers: Sequence[int]) -> int:
    """Expires finished jobs whose rows are locked. An idempotency key ends with the first job that it made."""
    chosen = (jobs.c.number.in_(numbers), IS_FINISHED)
    columns = (*outbox.ENDED, jobs.c.number, jobs.c.turn, jobs.c.photo, jobs.c.painting, jobs.c.key_digest)
    rows = connection.execute(select(*columns).where(*chosen)).mappings().all()
    connection.execute(update(jobs).where(*chosen).values(status=status(Status.EXPIRED), expires_at=now_ms(), **BLANK))
    if unknown := [row["number"] for row in rows if row["turn"] == NO_TURN]:  # nobody will ask for them
        connection.execute(delete(jobs).where(jobs.c.number.in_(unknown), EXPIRED))
    keys = {row["key_digest"] for row in rows if row["key_digest"]}
    if keys:
        connection.execute(update(jobs).where(jobs.c.key_digest.in_(keys)).values(key_digest=None))
    ledger.drop(connection, [name for row in rows for name in (row["photo"], row["painting"])])
    outbox.withdraw(connection, rows)
    return len(rows)


def expire_finished(connection: Connection) -> int:
    """Expires finished jobs, whether or not their time has come; returns their number, at most BATCH."""
    return expire(connection, lock(connection, select(jobs.c.number).where(IS_FINISHED).limit(BATCH)))


def drop_photos_due(connection: Connection) -> int:
    """Lets the photographs of finished jobs go whose time has come; returns their number, at most BATCH."""
    due = select(jobs.c.number).where(
        jobs.c.photo_expires_at.is_not(None), jobs.c.photo_expires_at <= now_ms(), IS_FINISHED
    )
    return drop_photos(connection, lock(connection, due.order_by(jobs.c.photo_expires_at).limit(BATCH)))


def drop_photos(connection: Connection, numbers: Sequence[int]) -> int:
    """Lets the photographs of finished jobs go."""
    chosen = (jobs.c.number.in_(numbers), IS_FINISHED)
    names = connection.execute(select(jobs.c.photo).where(*chosen).with_for_update()).scalars().all()
    connection.execute(update(jobs).where(*chosen).values(photo=None, photo_expires_at=None))
    ledger.drop(connection, names)
    return sum(name is not None for name in names)


def forget_due(connection: Connection, settings: JobsSettings) -> int:
    """Removes the last trace of jobs that expired long ago; returns their number, at most BATCH."""
    before = now_ms() - int(1000 * settings.forget_after_s)
    due = select(jobs.c.number).where(EXPIRED, jobs.c.expires_at <= before).order_by(jobs.c.expires_at).limit(BATCH)
    return connection.execute(delete(jobs).where(jobs.c.number.in_(due.scalar_subquery()), EXPIRED)).rowcount


def evict(connection: Connection, client: str | None, bytes_needed: int) -> bool:
    """Lets finished pictures go early, oldest first, photographs before paintings; returns False if there are none.

    Args:
        connection: in a transaction.
        client: whose pictures, or None for all.
        bytes_needed: stop when about so many bytes are free; an unfinished job may still need a photograph.
    """
    alone(connection)
    mine = () if client is None else (jobs.c.client == client,)
    stages = (
        (jobs.c.photo, jobs.c.photo_expires_at, drop_photos),
        (jobs.c.painting, jobs.c.expires_at, expire),
    )
    for column, order, let_go in stages:
        found = select(jobs.c.number, blobs.c.bytes).join(blobs, blobs.c.name == column)
        oldest = found.where(IS_FINISHED, order.is_not(None), *mine).order_by(order, jobs.c.number).limit(BATCH)
        victims, freed = [], 0
        for number, size in connection.execute(oldest):
            if freed < bytes_needed:
                victims.append(number)
                freed += size
        if let_go(connection, lock(connection, select(jobs.c.number).where(jobs.c.number.in_(victims)))):
            return True
    return False


def clamp(connection: Connection, settings: JobsSettings) -> None:
    """Shortens times that lie too far in the future: the clock was set back, or the settings have become shorter."""
    keep_ms = int(1000 * settings.keep_for_s)
    for column, longest_ms in (
        (jobs.c.expires_at, keep_ms),
        (jobs.c.photo_expires_at, min(keep_ms, int(1000 * settings.keep_photos_for_s))),
    ):
        latest = now_ms() + longest_ms
        connection.execute(update(jobs).where(IS_FINISHED, column > latest + CLOCK_SLACK_MS).values({column: latest}))
    connection.execute(
        update(jobs).where(EXPIRED, jobs.c.expires_at > now_ms() + CLOCK_SLACK_MS).values(expires_at=now_ms())
    )


def alone(connection: Connection) -> None:
    """Waits until no other transaction expires jobs.

    An idempotency key ends with any of its jobs, so two that expired jobs of the same keys would wait for each other.
    """
    if connection.dialect.name != "sqlite":  # there a write transaction is alone
        connection.execute(text(f"SELECT pg_advisory_xact_lock({EXPIRY_LOCK})"))


def lock(connection: Connection, numbers: Select[Any]) -> list[int]:
    """Locks the rows that a query finds, but not those that another transaction holds, and returns their numbers."""
    return list(connection.execute(numbers.with_for_update(skip_locked=True)).scalars())
