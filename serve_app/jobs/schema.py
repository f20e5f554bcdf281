"""The schema of the database: brought up to date under a lock, and compared with the code.

Migrations only add, so in a rolling update old code goes on to work on a schema that newer code has brought up to date.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from serve_app.jobs.database import Database, open_database
from serve_app.jobs.words import SchemaBehind
from serve_app.settings import JobsSettings

logger = logging.getLogger(__name__)

VERSION_TABLE = "animegan_schema"
MIGRATION_LOCK = 0x616E696D  # any number that nobody else uses


class SchemaState(StrEnum):
    """The schema beside the code: `ahead` when newer code has migrated it, which is no obstacle."""

    CURRENT = "current"
    BEHIND = "behind"
    AHEAD = "ahead"


def migrate(database: Database) -> None:
    """Brings the schema up to date, in one transaction; other processes wait for it and then find it done.

    Raises:
        StoreUnavailable: if the database cannot be reached.
    """
    with as_file(files("serve_app.jobs") / "migrations") as folder, database.write() as connection:
        if not database.is_sqlite:  # there the transaction itself is the lock
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        config = configuration(str(folder))
        if state(connection, config) is SchemaState.BEHIND:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@contextmanager
def opened(settings: JobsSettings) -> Iterator[Database]:
    """Yields the database of the settings, its schema up to date; it is closed only if the block fails.

    Raises:
        SettingsError: if a setting is wrong.
        SchemaBehind: if the schema cannot be brought up to date.
        StoreUnavailable: if the database cannot be reached.
    """
    database = open_database(settings)
    try:
        migrate(database)
        yield database
    except SQLAlchemyError as error:
        database.close()
        raise behind(error) from None
    except BaseException:
        database.close()
        raise


def behind(error: SQLAlchemyError) -> SchemaBehind:
    """Returns, as a refusal, that a migration failed; most likely the database's user may not change its schema."""
    logger.error("the database of jobs cannot be brought up to date: %s", type(error).__name__)
    return SchemaBehind("The store of jobs cannot be used at this moment. Try again.", retry_after_s=30)


def schema_state(database: Database) -> SchemaState:
    """Compares the schema with the code.

    Raises:
        StoreUnavailable: if the database cannot be reached.
    """
    with as_file(files("serve_app.jobs") / "migrations") as folder, database.read() as connection:
        return state(connection, configuration(str(folder)))


def configuration(folder: str) -> Config:
    """Returns Alembic's configuration; there is no file of it."""
    config = Config()
    config.set_main_option("script_location", folder.replace("%", "%%"))
    return config


def state(connection: Connection, config: Config) -> SchemaState:
    """Compares the schema with the migrations that this code has."""
    script = ScriptDirectory.from_config(config)
    revision = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if revision == script.get_current_head():
        return SchemaState.CURRENT
    if revision is None:
        return SchemaState.BEHIND
    try:
        script.get_revision(revision)
    except CommandError:
        return SchemaState.AHEAD
    return SchemaState.BEHIND
