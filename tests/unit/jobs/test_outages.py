"""A runner whose storage fails, for one job or for all: nothing is lost, nothing is stuck, nothing is painted twice."""

import asyncio
import errno
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from jobrunners import Painter, has_ended, in_loop, running, status_of, until
from jobstores import Bench, fill_disk, make_settings

from serve_app.errors import StoreFull, StoreUnavailable
from serve_app.jobs import outage, work
from serve_app.jobs import runner as module
from serve_app.jobs.blobs import LocalBlobs
from serve_app.jobs.outage import Outage
from serve_app.jobs.words import Job, Status
from serve_app.settings import MIB

MakeBench = Callable[..., Bench]

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def database_url() -> None:
    """SQLite alone: what fails here are the pictures."""


def problem_of(bench: Bench, job: Job) -> dict[str, Any]:
    problem = bench.store.get(job.id).problem
    assert problem is not None
    return problem


def found(bench: Bench, jobs: Sequence[Job]) -> list[Job]:
    """The jobs as they are now; some may have had to go for others."""
    return list(bench.store.find([job.id for job in jobs]).values())


def make_unreadable(bench: Bench, job: Job) -> Path:
    """Puts a folder in the place of a photograph: even root cannot read that."""
    path = bench.folder / str(job.photo)
    path.unlink()
    path.mkdir()
    return path


def make_unwritable(bench: Bench, painted: bytes) -> Path:
    """Puts a file in the place of the folder in which a painting would lie."""
    path = bench.folder / "paintings" / hashlib.sha256(painted).hexdigest()[:2]
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("most_pictures", [1, 4])
def test_photograph_that_cannot_be_read_holds_up_no_other_and_fails_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most_pictures: int
) -> None:
    monkeypatch.setattr(work, "READ_S", 0.2)
    bad = [bench.submit(photo=b"bad %d" % number) for number in range(3)]
    good = [bench.submit("bob", photo=b"photo %d" % number) for number in range(5)]
    for job in bad:
        make_unreadable(bench, job)

    async def scene() -> None:
        async with running(bench, Painter(), most_pictures=most_pictures):
            await until(has_ended(bench, *good, *bad))

    in_loop(scene())
    assert {status_of(bench, job) for job in good} == {Status.SUCCEEDED}
    for job in bad:
        assert (bench.store.get(job.id).attempt, problem_of(bench, job)["code"]) == (3, "store-unavailable")
        assert "cannot be read" in problem_of(bench, job)["detail"]


def test_more_unreadable_photographs_than_can_be_set_aside_hold_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MOST_ASIDE", 2)
    bad = [bench.submit(photo=b"bad %d" % number) for number in range(6)]
    good = bench.submit()
    for job in bad:
        make_unreadable(bench, job)

    async def scene() -> None:
        async with running(bench, Painter(), most_pictures=2):
            await until(has_ended(bench, good))

    in_loop(scene())
    assert status_of(bench, good) is Status.SUCCEEDED


def test_photograph_that_can_be_read_again_is_painted_at_the_same_attempt(bench: Bench) -> None:
    job = bench.submit(photo=b"holiday")
    path = make_unreadable(bench, job)

    async def scene() -> None:
        async with running(bench, Painter()) as runner:
            await until(lambda: any(work.is_aside for work in runner._works))
            assert (runner.pictures, runner.pixels) == (0, 0)
            path.rmdir()
            path.write_bytes(b"holiday")
            await until(has_ended(bench, job))

    in_loop(scene())
    assert (status_of(bench, job), bench.store.get(job.id).attempt) == (Status.SUCCEEDED, 1)


def test_pictures_that_are_not_mounted_are_waited_for_and_nothing_is_written_in_their_place(bench: Bench) -> None:
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(3)]
    elsewhere = bench.folder.with_name("elsewhere")
    bench.folder.rename(elsewhere)
    bench.folder.mkdir()

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter) as runner:
            await until(lambda: runner._store.outage.error is not None)
            await asyncio.sleep(0.5)
            with pytest.raises(StoreUnavailable):
                bench.store.photo(jobs[0])
            assert list(bench.folder.iterdir()) == []
            with pytest.raises(StoreUnavailable):
                bench.with_settings()  # nor is the place taken for a new one
            bench.folder.rmdir()
            elsewhere.rename(bench.folder)
            await until(has_ended(bench, *jobs))
        assert len(painter.begun) == 3

    in_loop(scene())
    assert {(status_of(bench, job), bench.store.get(job.id).attempt) for job in jobs} == {(Status.SUCCEEDED, 1)}
    bench.check()


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "403")])
def test_store_that_is_down_as_a_whole_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    """With times so short that every job would fail if the outage counted."""
    monkeypatch.setattr(work, "READ_S", 0.8)
    monkeypatch.setattr(work, "FULL_S", 0.8)
    is_down = False
    for name in ("put", "get"):
        real = getattr(LocalBlobs, name)

        def failing(self: LocalBlobs, *arguments: Any, real: Callable[..., Any] = real) -> Any:
            if is_down:
                from serve_app.jobs.blobs import clear_errors

                with clear_errors():
                    raise fault
            return real(self, *arguments)

        monkeypatch.setattr(LocalBlobs, name, failing)
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(6)]

    async def scene() -> None:
        nonlocal is_down
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=2):
            await until(lambda: painter.now == 2)
            is_down = True
            painter.gate.set()
            await asyncio.sleep(1.5)
            assert len(painter.begun) == 2  # no other was begun, and these were not painted again
            is_down = False
            await until(has_ended(bench, *jobs))
        assert len(painter.begun) == 6

    in_loop(scene())
    assert {(status_of(bench, job), bench.store.get(job.id).attempt) for job in jobs} == {(Status.SUCCEEDED, 1)}
    assert caplog.text.count("no further job is begun") == 1
    assert caplog.text.count("pictures can be stored again") == 1
    bench.check()


def test_painting_that_alone_cannot_be_written_holds_up_no_other_and_is_painted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "FULL_S", 1.0)
    bad = bench.submit(photo=b"bad")
    obstacle = make_unwritable(bench, b"dab")
    good = [bench.submit("bob", photo=b"photo %d" % number) for number in range(4)]

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter, most_pictures=1):
            await until(has_ended(bench, *good))
            assert status_of(bench, bad) is Status.RUNNING
            await until(has_ended(bench, bad))
        assert len(painter.begun) == 5

    in_loop(scene())
    assert {status_of(bench, job) for job in good} == {Status.SUCCEEDED}
    assert problem_of(bench, bad)["code"] == "store-unavailable"
    obstacle.unlink()
    bench.check()


def test_cancelled_job_whose_painting_cannot_be_stored_gives_its_place_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit()

    def refuse(*_: Any) -> None:
        raise StoreUnavailable("not now")

    async def scene() -> None:
        async with running(bench, Painter(is_open=False)) as runner:
            await until(lambda: runner.pictures == 1)
            with monkeypatch.context() as patch:
                patch.setattr(LocalBlobs, "put", refuse)
                runner._painter.gate.set()  # type: ignore[attr-defined]
                await until(lambda: runner._store.outage.error is not None)
                bench.store.remove(job.id)
                await until(lambda: runner.pictures == 0)
            assert runner._observer.outcomes == ["void"]  # type: ignore[union-attr]

    in_loop(scene())
    assert status_of(bench, job) is Status.CANCELLED


def test_runner_that_stops_in_an_outage_hands_back_what_it_could_not_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = bench.submit()
    monkeypatch.setattr(module, "ENDING_S", 0.2)

    def refuse(*_: Any) -> None:
        raise StoreUnavailable("not now")

    monkeypatch.setattr(LocalBlobs, "put", refuse)

    async def scene() -> None:
        async with running(bench, Painter()) as runner:
            await until(lambda: runner._store.outage.error is not None)
        await asyncio.sleep(0.1)  # nothing goes on

    in_loop(scene())
    assert (status_of(bench, job), bench.store.get(job.id).attempt) == (Status.QUEUED, 0)
    assert "given up" not in caplog.text


@pytest.mark.parametrize("min_free_bytes", [0, MIB])
def test_full_disk_stops_the_claims_and_what_was_painted_is_kept_until_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_free_bytes: int
) -> None:
    monkeypatch.setattr(work, "FULL_S", 1.5)
    bench = Bench(make_settings(tmp_path, blobs_url=str(small_disk / "blobs"), min_free_bytes=min_free_bytes))
    jobs = [bench.submit(photo=b"%d" % number * 100_000) for number in range(8)]
    ballast = small_disk / "ballast"

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=2) as runner:
            await until(lambda: painter.now == 2)
            fill_disk(ballast)
            painter.gate.set()
            await until(lambda: runner._store.outage.error is not None)
            assert isinstance(runner._store.outage.error, StoreFull)
            await asyncio.sleep(2)  # longer than one painting is kept when others can be stored
            assert (len(painter.begun), runner.pictures) == (2, 2)
            ballast.unlink()
            await until(has_ended(bench, *jobs))
        assert len(painter.begun) == 8

    in_loop(scene())
    assert {(status_of(bench, job), bench.store.get(job.id).attempt) for job in jobs} == {(Status.SUCCEEDED, 1)}
    bench.close()


def test_client_whose_share_is_full_gets_its_paintings_and_stops_no_other(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=100_000, client_share=0.4)
    ann = [bench.submit("ann", bytes([65 + number]) * 8900) for number in range(4)]  # 35,600 of 36,000 bytes
    bob = [bench.submit("bob", bytes([number]) * 1000) for number in range(4)]

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter, most_pictures=2):
            await until(lambda: not any(job.status.is_unfinished for job in found(bench, ann + bob)))
        assert len(painter.begun) == 8

    in_loop(scene())
    assert {job.status for job in found(bench, bob)} == {Status.SUCCEEDED}
    assert Status.FAILED not in {
        job.status for job in found(bench, ann)
    }  # but her oldest paintings went for newer ones
    assert status_of(bench, ann[-1]) is Status.SUCCEEDED
    bench.check()


def test_bound_of_bytes_that_waiting_photographs_fill_fails_those_at_work_and_no_other(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The painting of one takes more than all the room that is left; when it has failed, others find room.

    Whether the second that is at work finds it first, is chance.
    """
    monkeypatch.setattr(work, "FULL_S", 0.3)
    bench = make_bench(max_stored_bytes=10_000, client_share=1)
    jobs = [bench.submit(photo=bytes([65 + number]) * 1500) for number in range(6)]

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter, most_pictures=2):
            await until(lambda: not any(job.status.is_unfinished for job in found(bench, jobs)))
        assert len(painter.begun) == 6

    in_loop(scene())
    failed = [job for job in found(bench, jobs) if job.status is Status.FAILED]
    assert {job.problem and job.problem["code"] for job in failed} == {"store-full"}
    assert len(failed) <= 2
    bench.check()


def test_smaller_paintings_are_stored_after_a_large_one_met_the_bound(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "FULL_S", 0.1)
    bench = make_bench(max_stored_bytes=10_000, client_share=1)
    large = bench.submit(photo=b"large" * 1600)
    small = [bench.submit(photo=b"s" * number) for number in (100, 110)]
    bench.submit("bob", b"x" * 600)

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter, most_pictures=1):
            await until(has_ended(bench, large, *small))

    in_loop(scene())
    assert [status_of(bench, job) for job in (large, *small)] == [Status.FAILED, Status.SUCCEEDED, Status.SUCCEEDED]


def test_oldest_finished_pictures_go_when_a_quota_is_met(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = LocalBlobs.put, 2500

    def limited(self: LocalBlobs, name: str, data: bytes) -> None:
        if sum(path.stat().st_size for path in self.folder.rglob("*/*/*") if path.is_file()) + len(data) > room:
            raise StoreFull("The quota is used up.")
        real(self, name, data)

    monkeypatch.setattr(LocalBlobs, "put", limited)
    first = bench.succeed(photo=b"a" * 1000, painted=b"b" * 1000)
    bench.submit(photo=b"c" * 1000)
    assert bench.store.get(first.id).photo is None
    bench.check()


def test_probes_are_shared_for_a_while_and_know_their_sizes() -> None:
    asked: list[int] = []
    now, room = 0.0, 100

    async def probe(size: int) -> None:
        asked.append(size)
        if size > room:
            raise StoreFull("full")

    async def scene() -> None:
        nonlocal now, room
        state = Outage(probe, lambda: now)
        assert [await state.is_everywhere(size) for size in (50, 40, 50)] == [False] * 3
        assert [await state.is_everywhere(size) for size in (200, 300, 200)] == [True] * 3
        assert not await state.is_everywhere(10)
        assert asked == [50, 200, 10]
        assert await state.is_everywhere(200)
        now, room = 2 * outage.FRESH_S, 1000
        assert not await state.is_everywhere(None)
        assert asked == [50, 200, 10, 200, 200]

    in_loop(scene())
