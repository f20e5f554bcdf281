"""The database: how it is opened, its schema, and what happens when it fails."""

import ast
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from benchmarks.postgres import PostgresServer
from jobstores import Bench, fill_disk, make_settings, painting
from shared import ROOT
from sqlalchemy import text

from serve_app.errors import SettingsError, StoreFull, StoreUnavailable
from serve_app.jobs.database import data_dir, open_database
from serve_app.jobs.schema import VERSION_TABLE, SchemaState, migrate, schema_state
from serve_app.jobs.store import open_store
from serve_app.jobs.table import metadata
from serve_app.jobs.words import Job, Status
from serve_app.settings import MIB, JobsSettings, load_settings

MakeBench = Callable[..., Bench]
VERSIONS = sorted((ROOT / "serve_app" / "jobs" / "migrations" / "versions").glob("v*.py"))
PASSWORD = "hunter2hunter2"


def test_database_and_pictures_lie_in_the_users_data_folder_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANIMEGAN_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert data_dir(JobsSettings()) == tmp_path / "share" / "animegan"
    monkeypatch.setenv("ANIMEGAN_DATA_DIR", str(tmp_path / "named"))
    assert data_dir(JobsSettings()) == tmp_path / "named"
    assert data_dir(JobsSettings(data_dir=tmp_path / "set")) == tmp_path / "set"
    open_store(JobsSettings()).close()
    assert {path.name for path in (tmp_path / "named").iterdir()} >= {"jobs.sqlite3", "blobs"}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"postgresql+psycopg://ann:{PASSWORD}@host/jobs", "the password comes from the environment"),
        (f"postgresql+psycopg://ann@host/jobs?password={PASSWORD}", "secrets come from the environment"),
        ("mysql://host/jobs", "should begin with sqlite:/// and a path, or with postgresql"),
        ("postgresql://host/jobs", "should begin with sqlite:/// and a path, or with postgresql"),
        ("sqlite://", "should begin with sqlite:/// and a path, or with postgresql"),
        ("sqlite:///:memory:", "cannot be in memory"),
    ],
)
def test_url_of_a_database_that_does_not_serve_is_refused_and_no_password_is_shown(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(JobsSettings, {"database_url": url}, "jobs")
    assert str(caught.value).startswith("jobs.database_url: ")
    assert sentence in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_url_of_a_blob_store_with_a_secret_is_refused() -> None:
    for url in (f"s3://key:{PASSWORD}@bucket", f"s3://bucket?secret={PASSWORD}"):
        with pytest.raises(SettingsError) as caught:
            load_settings(JobsSettings, {"blobs_url": url}, "jobs")
        assert PASSWORD not in str(caught.value)


def test_place_where_no_file_can_be_made_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"jobs\.database_url: .* cannot be written"):
        open_database(make_settings(tmp_path, f"sqlite:///{tmp_path}/file/jobs.sqlite3"))


def test_sqlite_keeps_its_promise_to_the_disk(tmp_path: Path) -> None:
    database = open_database(make_settings(tmp_path))
    with database.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL
    database.close()


def test_tables_are_those_that_the_code_knows(bench: Bench) -> None:
    with bench.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_schema_is_behind_until_it_is_migrated_and_may_be_ahead(tmp_path: Path, database_url: str | None) -> None:
    database = open_database(make_settings(tmp_path, database_url))
    assert schema_state(database) is SchemaState.BEHIND
    migrate(database)
    assert schema_state(database) is SchemaState.CURRENT
    with database.write() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    migrate(database)
    assert schema_state(database) is SchemaState.AHEAD
    database.close()


def test_old_code_works_on_a_schema_to_which_newer_code_has_added(bench: Bench) -> None:
    with bench.database.write() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN novelty TEXT NOT NULL DEFAULT 'none'"))
        connection.execute(text("ALTER TABLE blobs ADD COLUMN novelty INTEGER"))
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    job = bench.succeed()
    assert bench.store.painting(bench.store.get(job.id)) == b"painting"
    bench.check()


def test_processes_that_start_together_migrate_once(tmp_path: Path, database_url: str | None) -> None:
    databases = [open_database(make_settings(tmp_path, database_url)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, databases))
    assert {schema_state(database) for database in databases} == {SchemaState.CURRENT}
    with databases[0].read() as connection:
        assert connection.execute(text("SELECT count(*) FROM store")).scalar() == 1
    for database in databases:
        database.close()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.stem)
def test_migrations_only_add(version: Path) -> None:
    """So that old code goes on to work: what it does not know is new, and it may leave every new column out."""
    tree = ast.parse(version.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    operations = {
        call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "op"
    }
    assert operations <= {"create_table", "create_index", "add_column", "bulk_insert", "get_bind", "execute"}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    words = {str(node.value).split()[0] for node in statements if str(node.value).startswith("\n")}
    assert words <= {"CREATE"}


def test_locked_database_is_told_clearly_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(make_settings(tmp_path))
    impatient = Bench(bench.settings)
    job = bench.submit()
    impatient.store.close()
    quick = open_database(bench.settings, busy_s=0.1)
    from serve_app.jobs.queue import JobQueue

    queue = JobQueue(quick, bench.settings)
    other = sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable) as caught:
        queue.claim()
    assert caught.value.retry_after_s
    assert "locked" not in caught.value.detail
    assert "locked" in caplog.text
    assert bench.store.get(job.id).status is Status.QUEUED  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    lease = queue.claim()
    assert lease is not None
    assert bench.store.finish(lease, painting())
    for each in (bench, impatient):
        each.close()
    quick.close()


def test_sqlite_file_that_vanished_is_told_and_not_made_anew(tmp_path: Path) -> None:
    bench = Bench(make_settings(tmp_path))
    job = bench.submit()
    bench.close()
    (tmp_path / "jobs.sqlite3").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        bench.store.get(job.id)
    assert not (tmp_path / "jobs.sqlite3").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "jobs.sqlite3")
    assert bench.store.get(job.id).status is Status.QUEUED
    bench.close()


def test_postgresql_that_stops_and_comes_back_is_told_clearly_and_loses_nothing(
    tmp_path: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(make_settings(tmp_path, postgres.new_database()))
    job, other = bench.submit(photo=b"one"), bench.submit(photo=b"two")
    lease = bench.claim()
    postgres.stop()
    try:
        for call in (
            lambda: bench.submit(photo=b"three"),
            lambda: bench.store.get(job.id),
            bench.store.queue.claim,
            lambda: bench.store.queue.renew(lease),
            lambda: bench.store.finish(lease, painting()),
            lambda: bench.store.remove(other.id),
            bench.store.sweep,
            bench.store.schema_state,
        ):
            with pytest.raises(StoreUnavailable):
                call()
    finally:
        postgres.start()
    assert bench.store.finish(lease, painting())
    assert bench.store.get(job.id).status is Status.SUCCEEDED
    assert bench.claim().job.id == other.id
    bench.store.sweep()
    bench.check()
    bench.close()


def test_postgresql_that_was_restarted_between_two_calls_is_not_noticed(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    bench = Bench(make_settings(tmp_path, postgres.new_database()))
    job = bench.submit()
    postgres.stop()
    postgres.start()
    assert bench.store.get(job.id).status is Status.QUEUED
    bench.close()


def test_nothing_is_logged_of_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    caplog.set_level(logging.DEBUG)
    database = open_database(make_settings(tmp_path, "postgresql+psycopg://ann@127.0.0.1:9/jobs"))
    with pytest.raises(StoreUnavailable) as caught:
        schema_state(database)
    assert "the database of jobs failed" in caplog.text
    assert PASSWORD not in caplog.text + caught.value.detail + repr(database.engine.url)


def test_full_disk_is_told_clearly_and_what_was_accepted_is_painted_when_there_is_room(small_disk: Path) -> None:
    bench = Bench(make_settings(small_disk, min_free_bytes=MIB))
    accepted: list[Job] = []

    def fill() -> None:
        for number in range(100):
            accepted.append(bench.submit(photo=bytes([number]) * 100_000))

    with pytest.raises(StoreFull):
        fill()
    assert 10 < len(accepted) < 35
    assert not list(bench.folder.rglob("*.part"))
    bench.check()
    lease = bench.claim()
    with pytest.raises(StoreFull) as caught:
        bench.store.finish(lease, painting(bytes(800_000)))
    assert bench.store.queue.fail(lease, caught.value)
    bench.store.remove(accepted[0].id)
    for job in accepted[1:]:
        assert bench.store.finish(bench.claim(), painting())
        assert bench.store.get(job.id).status is Status.SUCCEEDED
    bench.check()
    bench.close()


def test_disk_that_others_fill_to_the_last_byte_is_told_clearly_and_work_goes_on_afterwards(small_disk: Path) -> None:
    bench = Bench(make_settings(small_disk))
    job = bench.submit()
    lease = bench.claim()
    ballast = small_disk / "ballast"
    fill_disk(ballast)
    for call in (lambda: bench.submit(photo=b"another"), lambda: bench.store.finish(lease, painting())):
        with pytest.raises(StoreFull):
            call()
    assert bench.store.get(job.id).status is Status.RUNNING
    ballast.unlink()
    assert bench.store.finish(lease, painting())
    bench.check()
    bench.close()
