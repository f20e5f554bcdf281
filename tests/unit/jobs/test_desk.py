"""The store for an event loop: threads of its own, opened when it can be, and waiting for ends."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from jobstores import REQUEST, Bench, make_settings, painting
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError, ProgrammingError

from serve_app.errors import StoreUnavailable
from serve_app.jobs import desk as module
from serve_app.jobs import news, threads
from serve_app.jobs.blobs import LocalBlobs
from serve_app.jobs.database import Database
from serve_app.jobs.desk import JobDesk
from serve_app.jobs.store import JobStore
from serve_app.jobs.table import jobs
from serve_app.jobs.words import Job, NewJob, Status

NEW = [NewJob(REQUEST, b"photo", pixels=100)]


def test_a_call_that_takes_long_holds_up_nothing_but_others_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = JobDesk(make_settings(tmp_path))
    may_go_on, began = threading.Event(), threading.Semaphore(0)
    names = []

    def slow(self: JobStore, job_ids: Sequence[str]) -> dict[str, Job]:
        names.append(threading.current_thread().name)
        began.release()
        may_go_on.wait(20)
        return {}

    monkeypatch.setattr(JobStore, "find", slow)

    async def work() -> None:
        calls = [asyncio.ensure_future(desk.reports(["x"])) for _ in range(3 * threads.THREADS)]
        try:
            async with asyncio.timeout(10):
                while len(names) < threads.THREADS:
                    await asyncio.sleep(0.01)
            await asyncio.wait_for(asyncio.to_thread(bool), 5)  # the pool of everybody else is free
            assert len(names) == threads.THREADS
        finally:
            may_go_on.set()
        await asyncio.gather(*calls)

    asyncio.run(work())
    assert {name.split("_")[0] for name in names} == {"jobs"}
    desk.close()


def test_a_store_that_cannot_be_opened_is_tried_again_but_not_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    obstacle = tmp_path / "data"
    obstacle.write_bytes(b"a file where the folder should be")
    desk = JobDesk(make_settings(obstacle))
    monkeypatch.setattr(module, "STATE_CACHED_S", 0)

    async def work() -> None:
        for _ in range(3):
            with pytest.raises(StoreUnavailable) as caught:
                await desk.submit("ann", NEW)
            assert caught.value.retry_after_s == 5
        assert await desk.state() == "unavailable"
        assert caplog.text.count("cannot be opened") == 1
        obstacle.unlink()
        with pytest.raises(StoreUnavailable):
            await desk.submit("ann", NEW)
        monkeypatch.setattr(desk._threads, "_try_again_at", time.monotonic())
        assert (await desk.submit("ann", NEW))[0].job.status is Status.QUEUED
        assert await desk.state() == "ready"

    asyncio.run(work())
    desk.close()


def test_a_schema_that_is_behind_is_told(tmp_path: Path) -> None:
    desk = JobDesk(make_settings(tmp_path))

    async def work() -> None:
        await desk.submit("ann", NEW)
        bench = Bench(make_settings(tmp_path))
        with bench.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM animegan_schema")
        bench.close()
        assert await desk.state() == "schema-behind"

    asyncio.run(work())
    desk.close()


def test_a_disk_that_is_full_and_pictures_that_are_not_there_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATE_CACHED_S", 0)
    desk = JobDesk(make_settings(tmp_path, min_free_bytes=1000))

    async def work() -> None:
        assert await desk.state() == "ready"
        with monkeypatch.context() as patch:
            patch.setattr(LocalBlobs, "free_bytes", lambda self: 999)
            assert await desk.state() == "full"
        (tmp_path / "blobs").rename(tmp_path / "elsewhere")
        assert await desk.state() == "unavailable"
        (tmp_path / "elsewhere").rename(tmp_path / "blobs")
        assert await desk.state() == "ready"

    asyncio.run(work())
    desk.close()


def test_an_estimate_that_fails_does_not_take_an_accepted_job_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = JobDesk(make_settings(tmp_path))

    def fails(*_: object) -> None:
        raise StoreUnavailable("It has just gone.")

    monkeypatch.setattr("serve_app.jobs.positions.Positions.outlook_now", fails)
    (report,) = asyncio.run(desk.submit("ann", NEW))
    assert (report.job.status, report.outlook) == (Status.QUEUED, None)
    desk.close()


def test_who_waits_is_told_of_the_end_and_of_nothing_before(bench: Bench) -> None:
    desk = JobDesk(bench.settings)
    job = bench.submit()

    async def work() -> None:
        assert (await desk.wait([job.id], 0.4))[0].job.status is Status.QUEUED
        waiting = asyncio.ensure_future(desk.wait([job.id], 60))
        lease = bench.claim()
        await asyncio.sleep(2 * news.LOOK_S)
        assert not waiting.done()
        assert bench.store.finish(lease, painting())
        assert (await asyncio.wait_for(waiting, 20))[0].job.status is Status.SUCCEEDED

    asyncio.run(work())
    desk.close()


def test_an_id_is_in_no_text_of_an_error_of_the_database(tmp_path: Path) -> None:
    bench = Bench(make_settings(tmp_path))
    job = bench.submit()
    values = {"id": job.id, "client": "ann", "status": "queued", "turn": 1, "part": 0, "attempt": 0, "pixels": 1}
    with pytest.raises(IntegrityError) as caught, bench.database.write() as connection:
        connection.execute(insert(jobs).values(created_at=0, **values))
    assert job.id not in str(caught.value)
    bench.close()


def test_calls_beyond_a_bound_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_PENDING", 3)
    may_go_on = threading.Event()

    def slow(self: JobStore, job_ids: Sequence[str]) -> dict[str, Job]:
        may_go_on.wait(20)
        return {}

    monkeypatch.setattr(JobStore, "find", slow)
    desk = JobDesk(make_settings(tmp_path))

    async def scene() -> None:
        calls = [asyncio.ensure_future(desk.reports(["x"])) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable):
            await desk.reports(["x"])
        may_go_on.set()
        assert await asyncio.gather(*calls) == [[]] * 3
        assert await desk.reports(["x"]) == []

    asyncio.run(scene())
    desk.close()


def test_nobody_else_waits_for_a_database_that_has_just_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SILENT_S", 0.05)
    monkeypatch.setattr(threads, "REFUSE_S", 0.5)
    calls = []

    def silent(self: JobStore, job_ids: Sequence[str]) -> dict[str, Job]:
        calls.append(job_ids)
        time.sleep(0.1)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(JobStore, "find", silent)
    desk = JobDesk(make_settings(tmp_path))

    async def scene() -> None:
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await desk.reports(["x"])
        assert len(calls) == 1
        await asyncio.sleep(0.6)
        with pytest.raises(StoreUnavailable):
            await desk.reports(["x"])
        assert len(calls) == 2

    asyncio.run(scene())
    desk.close()


def test_a_schema_that_may_not_be_changed_is_told_as_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(database: Database) -> None:
        raise ProgrammingError("CREATE TABLE", {}, Exception("permission denied"))

    monkeypatch.setattr("serve_app.jobs.schema.migrate", forbidden)
    desk = JobDesk(make_settings(tmp_path))

    async def scene() -> None:
        assert await desk.state() == "schema-behind"
        desk._state_asked_at = None
        assert await desk.state() == "schema-behind"  # the next attempt is not due yet
        with pytest.raises(StoreUnavailable):
            await desk.reports(["x"])

    asyncio.run(scene())
