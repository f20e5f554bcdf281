"""The database of jobs: SQLite for one machine, PostgreSQL for a cluster, through one synchronous engine.

The engine is synchronous, to be called from a few threads (`asyncio.to_thread`). SQLite has no other way: its asyncio
drivers keep a thread for each connection. psycopg works both ways, but then there would be two kinds of code. A
statement takes a millisecond or so, and a thread costs nothing beside it.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from serve_app.errors import RequestError, SettingsError, StoreFull, StoreUnavailable
from serve_app.settings import JobsSettings

logger = logging.getLogger(__name__)

DATA_DIR_VARIABLE = "ANIMEGAN_DATA_DIR"
READ_ONLY = "animegan_read_only"  # execution option of a connection
BUSY_S = 5.0  # that a statement waits for another's lock
STATEMENT_S = 15  # that a statement may take on PostgreSQL
CONNECT_S = 5
LISTEN_S = 1.0  # between two looks at whether somebody still wants notifications
CHECK_S = 15.0  # between two looks at whether the server is still there
RETRY_AFTER_S = 5
POOL: dict[str, Any] = {
    "poolclass": QueuePool,
    "pool_size": 4,
    "max_overflow": 4,
    "pool_timeout": 10.0,
    "pool_pre_ping": True,
    "hide_parameters": True,  # in the texts of errors, which are logged: an id of a job is a secret
}
POSTGRESQL_DISK_FULL = "53100"


class Database:
    """A pool of connections. Thread-safe; make one in each process.

    Args:
        engine: of SQLAlchemy.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of this machine."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block. On SQLite no other process writes meanwhile.

        Raises:
            StoreUnavailable: if the database is locked, or cannot be reached.
            StoreFull: if its disk is full.
        """
        with clear_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; it raises what `write` does."""
        with clear_errors(), self.engine.connect() as connection:
            yield connection.execution_options(**{READ_ONLY: True})

    def listen(self, channel: str, heard: Callable[[], None], is_over: Callable[[], bool]) -> bool:
        """Waits for notifications of PostgreSQL until it is over; for a thread of its own.

        Args:
            channel: that is notified.
            heard: is called when it has begun to listen, and for every notification.
            is_over: is asked every second.

        Returns:
            False at once if the database has no notifications.

        Raises:
            StoreUnavailable: if the database cannot be reached any more.
        """
        if self.is_sqlite:
            return False
        with clear_errors():
            pooled = self.engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {channel}")
            heard()
            checked_at = time.monotonic()
            while not is_over():
                for _ in connection.notifies(timeout=LISTEN_S, stop_after=1):
                    heard()
                if time.monotonic() - checked_at > CHECK_S:  # a server that vanished says nothing by itself
                    connection.execute("SELECT 1")
                    checked_at = time.monotonic()
        except self.engine.dialect.loaded_dbapi.Error as error:
            logger.warning("notifications of the database have ended: %s", type(error).__name__)
            raise StoreUnavailable("The database of jobs does not answer.") from None
        finally:
            pooled.close()
        return True

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns failures of the database into refusals; mistakes in statements stay what they are."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError):
        raise
    except (DBAPIError, PoolTimeout) as error:
        raise refusal(error) from None


def refusal(error: SQLAlchemyError) -> RequestError:
    """Returns what a client is told about a failure, which is logged. No URL holds a password, so none is logged."""
    cause: Any = getattr(error, "orig", None)
    logger.error("the database of jobs failed: %s: %s", type(cause or error).__name__, cause or error)
    full_disk = sqlite3.SQLITE_FULL
    if (
        getattr(cause, "sqlite_errorcode", None) == full_disk
        or getattr(cause, "sqlstate", None) == POSTGRESQL_DISK_FULL
    ):
        return StoreFull("The disk of the jobs' database is full. Try again later.", retry_after_s=60)
    return StoreUnavailable(
        "The database of jobs does not answer at this moment. Try again.", retry_after_s=RETRY_AFTER_S
    )


def open_database(settings: JobsSettings, busy_s: float = BUSY_S) -> Database:
    """Connects to the database of the settings; an SQLite file is made where there is none, for this user only.

    Args:
        settings: of jobs.
        busy_s: seconds to wait for another's lock.

    Raises:
        SettingsError: if the URL is wrong, its driver is missing, or the file cannot be made.
    """
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        path = sqlite_path(url)
        create_private_file(path)
        return Database(sqlite_engine(path, busy_s))
    arguments = {
        "connect_timeout": CONNECT_S,
        "tcp_user_timeout": 1000 * STATEMENT_S,  # a server that vanished is noticed
        "application_name": "animegan",
        "options": f"-c statement_timeout={STATEMENT_S}s -c lock_timeout={int(1000 * busy_s)}",
    }
    try:
        return Database(
            create_engine(
                url, connect_args={name: value for name, value in arguments.items() if name not in url.query}, **POOL
            )
        )
    except ModuleNotFoundError:
        raise SettingsError("jobs.database_url: PostgreSQL needs the extra `postgres` (pip install psycopg)") from None


def database_url(settings: JobsSettings) -> URL:
    """Returns the URL of the settings, or that of the SQLite file which is meant if they name none.

    Raises:
        SettingsError: if it is none.
    """
    try:
        return make_url(settings.database_url or f"sqlite:///{data_dir(settings) / 'jobs.sqlite3'}")
    except ArgumentError:
        raise SettingsError("jobs.database_url: not a URL of a database") from None


def sqlite_path(url: URL) -> Path:
    """Returns the file of an SQLite database."""
    return Path(url.database or "").expanduser().absolute()


def check_exists(settings: JobsSettings) -> None:
    """Checks that an SQLite database is there, where to open it would make one.

    Raises:
        SettingsError: if it is not.
    """
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not sqlite_path(url).exists():
        raise SettingsError(f"there are no jobs: {sqlite_path(url)} does not exist (is {DATA_DIR_VARIABLE} set?)")


def data_dir(settings: JobsSettings) -> Path:
    """Returns the folder of the database and the pictures, where the settings name no other place."""
    named = settings.data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return Path(named).expanduser() if named else platformdirs.user_data_path("animegan", appauthor=False)


def make_private_folder(folder: Path) -> list[Path]:
    """Makes a folder and those above it, for this user only, where they are missing; returns those that it made."""
    made = [] if folder.is_dir() else [*make_private_folder(folder.parent), folder]
    if made:
        folder.mkdir(mode=0o700, exist_ok=True)
    return made


def create_private_file(path: Path) -> None:
    """Makes a file and its folder, readable by this user only, unless they exist.

    Raises:
        SettingsError: if that cannot be done.
    """
    try:
        make_private_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise SettingsError(f"jobs.database_url: {path} cannot be written ({error.strerror})") from None


def sqlite_engine(path: Path, busy_s: float) -> Engine:
    """Returns an engine whose commits are on the disk when they return."""

    def connect() -> sqlite3.Connection:
        # mode=rw: a file that vanished is an error, not a new and empty database.
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw", uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False
        )
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = create_engine("sqlite://", creator=connect, **POOL)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that turned from reading to writing could fail at once, whatever the timeout.
        is_read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if is_read_only else "BEGIN IMMEDIATE")

    return engine
