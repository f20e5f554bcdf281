"""Events, reuse of paintings, and webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

FINISHED = "status IN ('succeeded', 'failed', 'cancelled')"

# Whoever listens is told of every transition, whichever code makes it. Renewed leases are none.
NOTIFY = """
CREATE OR REPLACE FUNCTION animegan_notify() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('animegan_jobs', ''); RETURN NULL; END $$
"""
TRIGGER = """
CREATE TRIGGER animegan_jobs AFTER INSERT OR UPDATE OF status ON jobs
FOR EACH STATEMENT EXECUTE FUNCTION animegan_notify()
"""


def index(name: str, table: str, columns: list[str], where: str) -> None:
    """Makes an index over the rows that meet a condition."""
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def upgrade() -> None:
    """Adds columns and indexes to the jobs, and the outbox of webhooks."""
    op.add_column("jobs", sa.Column("work_digest", sa.String))
    op.add_column("jobs", sa.Column("callback_url", sa.String))
    index("jobs_ends", "jobs", ["finished_at"], FINISHED)
    index("jobs_works", "jobs", ["client", "work_digest"], "work_digest IS NOT NULL")
    op.create_table(
        "webhooks",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("job", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("webhooks_due", "webhooks", ["due_at"])
    op.create_index("webhooks_job", "webhooks", ["job"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(NOTIFY)
        op.execute(TRIGGER)
