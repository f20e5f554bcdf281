"""The tables of jobs, of blobs and of the bytes that clients use."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

FINISHED = "status IN ('succeeded', 'failed', 'cancelled')"


def index(name: str, table: str, columns: list[str], where: str) -> None:
    """Makes an index over the rows that meet a condition."""
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def upgrade() -> None:
    """Makes the tables of an empty database."""
    op.create_table(
        "jobs",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("client", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("request", sa.JSON),
        sa.Column("pixels", sa.BigInteger, nullable=False),
        sa.Column("key_digest", sa.String),
        sa.Column("payload_digest", sa.String),
        sa.Column("part", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lease_token", sa.String),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("lease_ms", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("photo_expires_at", sa.BigInteger),
        sa.Column("photo", sa.String),
        sa.Column("painting", sa.String),
        sa.Column("media_type", sa.String),
        sa.Column("receipt", sa.JSON),
        sa.Column("problem", sa.JSON),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_id", "jobs", ["id"], unique=True)
    op.create_index("jobs_key", "jobs", ["key_digest", "part"], unique=True)
    index("jobs_queue", "jobs", ["turn", "number", "status", "pixels"], "status = 'queued'")
    index("jobs_client_queue", "jobs", ["client", "turn", "status"], "status = 'queued'")
    index("jobs_leases", "jobs", ["lease_until"], "status = 'running'")
    index("jobs_expiry", "jobs", ["expires_at"], FINISHED)
    index("jobs_client_expiry", "jobs", ["client", "expires_at"], FINISHED)
    index("jobs_painted", "jobs", ["finished_at"], "status = 'succeeded'")
    index("jobs_tombstones", "jobs", ["expires_at"], "status = 'expired'")
    index("jobs_photo_expiry", "jobs", ["photo_expires_at"], "photo_expires_at IS NOT NULL")
    op.create_table(
        "blobs",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("client", sa.String, nullable=False),
        sa.Column("refs", sa.Integer, nullable=False),
        sa.Column("delete_after", sa.BigInteger),
        sa.Column("is_deleting", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    index("blobs_unused", "blobs", ["delete_after"], "refs = 0")
    usage = op.create_table(
        "usage",
        sa.Column("client", sa.String, primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    store = op.create_table("store", sa.Column("id", sa.String, primary_key=True))
    op.bulk_insert(usage, [{"client": "", "bytes": 0}])
    op.bulk_insert(store, [{"id": secrets.token_hex(16)}])
