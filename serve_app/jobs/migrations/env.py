"""Run by Alembic: applies migrations on the connection, and in the transaction, of `schema.migrate`."""

from alembic import context

from serve_app.jobs.schema import VERSION_TABLE
from serve_app.jobs.table import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
