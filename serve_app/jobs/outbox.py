"""The outbox of webhooks: messages that say that a job has ended, until they are delivered.

A message is written by the transaction that ends its job, so there is one exactly if the job has ended. It is claimed
for each attempt: if its courier dies, it is due again when the attempt counts as lost.
"""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from serve_app.jobs.database import Database
from serve_app.jobs.table import jobs, now_ms, webhooks
from serve_app.jobs.words import FINISHED

ID_BYTES = 16
# Between attempts. Each is varied a little, so that messages that failed together do not come back together.
PAUSES_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0)
JITTER = 0.2
LONGEST_MS = int(1000 * (1 + 2 * JITTER) * max(PAUSES_S))
ENDED = (jobs.c.id, jobs.c.status, jobs.c.callback_url)  # what `announce` needs of a job
FIELDS = (webhooks.c.number, webhooks.c.id, webhooks.c.job, webhooks.c.url, webhooks.c.host, webhooks.c.attempt)
INSERT = insert(webhooks).values(attempt=0, due_at=now_ms(), created_at=now_ms())
ANY_DUE = select(webhooks.c.number).where(webhooks.c.due_at <= now_ms()).order_by(webhooks.c.due_at).limit(1)


@dataclass(frozen=True)
class Message:
    """A message that was claimed for an attempt.

    Attributes:
        number: of its row.
        id: the same at every attempt.
        job: id of the job, a secret.
        url: that it is sent to; may hold a secret too.
        host: of the URL.
        attempt: 1 for the first.
    """

    number: int
    id: str
    job: str = field(repr=False)
    url: str = field(repr=False)
    host: str
    attempt: int


def announce(connection: Connection, rows: Iterable[RowMapping]) -> None:
    """Writes a message for each of some jobs that has ended and has a URL to be told; else nothing.

    Args:
        connection: in the transaction that changes the jobs.
        rows: of the jobs as they are then, with the columns `ENDED` at least.
    """
    ended = [row for row in rows if row["callback_url"] is not None and row["status"] in FINISHED]
    if ended:
        connection.execute(INSERT, [new_message(row["id"], row["callback_url"]) for row in ended])


def new_message(job_id: str, url: str) -> dict[str, str]:
    """Returns the values of a message that is due now."""
    host = urlsplit(url).hostname or ""
    return {"id": f"msg_{secrets.token_hex(ID_BYTES)}", "job": job_id, "url": url, "host": host}


def withdraw(connection: Connection, rows: Sequence[RowMapping]) -> None:
    """Drops the messages of jobs that are no longer as the messages say.

    Args:
        connection: in the transaction that changes the jobs.
        rows: of the jobs, with the columns `ENDED` at least.
    """
    told = [row["id"] for row in rows if row["callback_url"] is not None]
    if told:
        connection.execute(delete(webhooks).where(webhooks.c.job.in_(told)))


def clamp(connection: Connection) -> None:
    """Makes messages due that wait for longer than any does: the clock was set back."""
    connection.execute(update(webhooks).where(webhooks.c.due_at > now_ms() + LONGEST_MS).values(due_at=now_ms()))


class Outbox:
    """Messages that wait for their delivery. Thread-safe.

    Every method raises StoreUnavailable if the database cannot be reached.

    Args:
        database: with a schema that is up to date.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, lease_s: float, full_hosts: Collection[str] = ()) -> Message | None:
        """Takes the message that is due longest, or returns None if none is.

        Args:
            lease_s: after which the attempt counts as lost.
            full_hosts: hosts whose messages are left.
        """
        due = ANY_DUE.where(webhooks.c.host.not_in(list(full_hosts))) if full_hosts else ANY_DUE
        with self._database.read() as connection:  # costs less than to write, which nobody else can meanwhile
            if connection.execute(due).first() is None:
                return None
        head = due.with_for_update(skip_locked=True).scalar_subquery()
        claimed = update(webhooks).where(webhooks.c.number == head, webhooks.c.due_at <= now_ms())
        values = {"attempt": webhooks.c.attempt + 1, "due_at": now_ms() + int(1000 * lease_s)}
        with self._database.write() as connection:
            row = connection.execute(claimed.values(values).returning(*FIELDS)).mappings().one_or_none()
        return None if row is None else Message(**row)

    def remove(self, message: Message) -> None:
        """Removes a message: it was delivered, or never will be."""
        with self._database.write() as connection:
            connection.execute(delete(webhooks).where(webhooks.c.number == message.number))

    def postpone(self, message: Message, seconds: float) -> None:
        """Lets a message wait for its next attempt, unless that has begun already."""
        self._change(message, due_at=now_ms() + int(1000 * seconds))

    def hand_back(self, message: Message) -> None:
        """Lets another courier send a message now; the attempt does not count."""
        self._change(message, attempt=webhooks.c.attempt - 1, due_at=now_ms())

    def _change(self, message: Message, **values: object) -> None:
        mine = update(webhooks).where(webhooks.c.number == message.number, webhooks.c.attempt == message.attempt)
        with self._database.write() as connection:
            connection.execute(mine.values(**values))
