"""The tables, as SQLAlchemy sees them. `migrations/` makes them; a test compares the two.

Times are milliseconds since 1970 by the database's clock, so that processes whose clocks differ agree. Statuses are
compared as literals: a bound parameter would keep the databases from using the partial indexes.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    false,
    literal_column,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from serve_app.jobs.words import FINISHED, Status

NO_TURN = -1  # of paintings of /v1/stylize that are kept for reuse: they never waited, and nobody knows their ids

metadata = MetaData()
Number = BigInteger().with_variant(Integer, "sqlite")  # the one integer type that SQLite counts up by itself


def partial(name: str, *columns: str, where: str) -> Index:
    """Returns an index over the rows that meet a condition."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


jobs = Table(
    "jobs",
    metadata,
    Column("number", Number, Identity(), primary_key=True),
    Column("id", String, nullable=False),
    Column("client", String, nullable=False),
    Column("status", String, nullable=False),
    Column("turn", BigInteger, nullable=False),  # clients take turns: see `JobQueue.insert`
    Column("request", JSON(none_as_null=True)),
    Column("pixels", BigInteger, nullable=False),  # to be painted, as far as they were known at submission
    Column("key_digest", String),  # of client and idempotency key
    Column("payload_digest", String),
    Column("part", Integer, nullable=False),  # place within its submission
    Column("attempt", Integer, nullable=False),
    Column("lease_token", String),
    Column("lease_until", BigInteger),
    Column("lease_ms", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("expires_at", BigInteger),
    Column("photo_expires_at", BigInteger),
    Column("photo", String),
    Column("painting", String),
    Column("media_type", String),
    Column("receipt", JSON(none_as_null=True)),
    Column("problem", JSON(none_as_null=True)),
    Column("work_digest", String),  # of the photograph and all that decides how it is painted, for reuse
    Column("callback_url", String),
    Index("jobs_id", "id", unique=True),
    Index("jobs_key", "key_digest", "part", unique=True),
    # With `status` SQLite counts from these two indexes alone: it reads columns of a condition even if it is implied.
    partial("jobs_queue", "turn", "number", "status", "pixels", where="status = 'queued'"),
    partial("jobs_client_queue", "client", "turn", "status", where="status = 'queued'"),
    partial("jobs_leases", "lease_until", where="status = 'running'"),
    partial("jobs_expiry", "expires_at", where="status IN ('succeeded', 'failed', 'cancelled')"),
    partial("jobs_client_expiry", "client", "expires_at", where="status IN ('succeeded', 'failed', 'cancelled')"),
    partial("jobs_ends", "finished_at", where="status IN ('succeeded', 'failed', 'cancelled')"),
    partial("jobs_works", "client", "work_digest", where="work_digest IS NOT NULL"),
    partial("jobs_painted", "finished_at", where="status = 'succeeded'"),
    partial("jobs_tombstones", "expires_at", where="status = 'expired'"),
    partial("jobs_photo_expiry", "photo_expires_at", where="photo_expires_at IS NOT NULL"),
    sqlite_autoincrement=True,  # no number is given twice
)

blobs = Table(  # every file of the blob store has its row before it exists, and until it is gone
    "blobs",
    metadata,
    Column("name", String, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("client", String, nullable=False),  # whose share it counts to
    Column("refs", Integer, nullable=False),  # jobs that name it; 0 before the first and after the last
    Column("delete_after", BigInteger),  # when it may be deleted, if no job names it
    Column("is_deleting", Boolean, nullable=False, server_default=false()),
    partial("blobs_unused", "delete_after", where="refs = 0"),
)

usage = Table(  # sums over `blobs`, kept in the same transactions; the client '' is the sum of all
    "usage",
    metadata,
    Column("client", String, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
)

webhooks = Table(  # the outbox: messages that are still to be delivered
    "webhooks",
    metadata,
    Column("number", Number, Identity(), primary_key=True),
    Column("id", String, nullable=False),  # of the message, the same at every attempt
    Column("job", String, nullable=False),  # id of the job that has ended
    Column("url", String, nullable=False),
    Column("host", String, nullable=False),  # of the URL: no receiver holds up the others
    Column("attempt", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),  # of the next attempt; while one runs, when it counts as lost
    Column("created_at", BigInteger, nullable=False),
    Index("webhooks_due", "due_at"),
    Index("webhooks_job", "job"),
    sqlite_autoincrement=True,
)

store = Table("store", metadata, Column("id", String, primary_key=True))  # one row: whose blobs may be deleted


class now_ms(FunctionElement[int]):
    """The database's time in milliseconds, the same within one statement."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_in_sqlite(element: now_ms, compiler: Any, **options: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_in_postgresql(element: now_ms, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000 AS BIGINT)"


def status(value: Status) -> ColumnElement[str]:
    """A status as a literal."""
    return literal_column(f"'{value}'", String())


QUEUED = jobs.c.status == status(Status.QUEUED)
RUNNING = jobs.c.status == status(Status.RUNNING)
SUCCEEDED = jobs.c.status == status(Status.SUCCEEDED)
EXPIRED = jobs.c.status == status(Status.EXPIRED)
IS_JOB = jobs.c.turn >= 0  # unlike a painting of /v1/stylize
IS_FINISHED = jobs.c.status.in_([status(value) for value in FINISHED])
IS_UNFINISHED = jobs.c.status.in_([status(Status.QUEUED), status(Status.RUNNING)])
