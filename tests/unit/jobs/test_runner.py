"""A runner over a real store, with a painter that the test controls."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from jobrunners import PATIENCE_S, Painter, has_ended, in_loop, running, status_of, until
from jobstores import REQUEST, Bench, painting

from serve_app.errors import (
    BrokenImage,
    DeadlineExceeded,
    Lost,
    OutOfMemory,
    RequestError,
    StoreFull,
    StoreUnavailable,
    TooBusy,
)
from serve_app.jobs import runner as module
from serve_app.jobs import work
from serve_app.jobs.runner import Runner
from serve_app.jobs.words import Status
from serve_app.settings import JobRunnerSettings

MakeBench = Callable[..., Bench]

pytestmark = pytest.mark.usefixtures("quick")


def test_jobs_are_painted_and_succeed_only_so_many_at_a_time(bench: Bench) -> None:
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(7)]

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=3) as runner:
            await until(lambda: painter.now == 3)
            await asyncio.sleep(0.3)
            assert (runner.pictures, runner.pixels) == (3, 30_000)
            painter.gate.set()
            await until(has_ended(bench, *jobs))
            await until(lambda: runner.pictures == 0)
        assert painter.most == 3
        assert len(painter.begun) == 7

    in_loop(scene())
    for job in jobs:
        done = bench.store.get(job.id)
        assert done.status == Status.SUCCEEDED
        assert bench.store.painting(done) == bench.store.photo(done)[::-1]
    bench.check()


def test_no_further_job_is_begun_while_those_at_work_have_too_many_pixels(bench: Bench) -> None:
    for number in range(5):
        bench.submit(photo=b"photo %d" % number)

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pixels=15_000) as runner:
            await until(lambda: painter.now == 2)  # the second was begun while the first had fewer
            await asyncio.sleep(0.3)
            assert runner.pictures == 2
            painter.gate.set()
            await until(lambda: len(painter.begun) == 5)

    in_loop(scene())


def test_whoever_knows_the_stylizers_may_lower_the_number_and_one_is_always_allowed(bench: Bench) -> None:
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(4)]

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter, most_pictures=3) as runner:
            runner.most_pictures = 0
            await until(has_ended(bench, *jobs[1:]))
        assert painter.most <= 3

    in_loop(scene())


@pytest.mark.parametrize("photo", [b"tiny", b"broken"])
def test_photograph_that_can_never_be_painted_fails_at_once_with_its_reason(bench: Bench, photo: bytes) -> None:
    job = bench.submit(photo=photo)

    async def scene() -> None:
        async with running(bench, Painter(BrokenImage("It is broken."))):
            await until(has_ended(bench, job))

    in_loop(scene())
    done = bench.store.get(job.id)
    assert done.problem is not None
    assert (done.status, done.attempt, done.problem["code"]) == (Status.FAILED, 1, "broken-image")


@pytest.mark.parametrize("fault", [Lost("gone"), OutOfMemory("full"), DeadlineExceeded("late"), ValueError("a bug")])
def test_failure_that_may_pass_is_tried_again_and_counts(bench: Bench, fault: Exception) -> None:
    job, poison = bench.submit(photo=b"one"), bench.submit("bob", photo=b"other")

    async def scene() -> None:
        painter = Painter(fault)
        async with running(bench, painter, most_pictures=1):
            await until(has_ended(bench, job))
            await until(has_ended(bench, poison))
            painter.faults = [fault] * 3
            third = bench.submit(photo=b"third")
            await until(has_ended(bench, third))
            failed = bench.store.get(third.id)
            assert (failed.status, failed.attempt) == (Status.FAILED, 3)
            assert failed.problem is not None
            assert failed.problem["code"] == getattr(fault, "code", "internal-error")
            assert "a bug" not in str(failed.problem)

    in_loop(scene())
    assert [bench.store.get(each.id).status for each in (job, poison)] == [Status.SUCCEEDED] * 2
    assert bench.store.get(job.id).attempt == 2


def test_busy_service_costs_a_job_no_attempt_and_the_runner_waits(bench: Bench) -> None:
    job = bench.submit()

    async def scene() -> None:
        painter = Painter(*[TooBusy("full")] * 5)
        async with running(bench, painter) as runner:
            began = asyncio.get_running_loop().time()
            outcomes: list[str] = runner._observer.outcomes  # type: ignore[union-attr]
            await until(lambda: outcomes[-1:] == ["succeeded"])  # which it says after the job has ended
            assert asyncio.get_running_loop().time() - began > 2 * 0.3
            assert outcomes == ["released"] * 5 + ["succeeded"]

    in_loop(scene())
    assert (status_of(bench, job), bench.store.get(job.id).attempt) == (Status.SUCCEEDED, 1)


def test_attempt_that_takes_too_long_is_cancelled(bench: Bench) -> None:
    job = bench.submit()

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, timeout_s=0.1):
            await until(has_ended(bench, job))
        assert len(painter.cancelled) == 3

    in_loop(scene())
    problem = bench.store.get(job.id).problem
    assert problem is not None
    assert problem["code"] == "deadline-exceeded"


def test_cancelled_job_is_stopped_and_another_takes_its_place(bench: Bench) -> None:
    job, other = bench.submit(photo=b"one"), bench.submit("bob", photo=b"other")

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=1):
            await until(lambda: painter.begun == [b"one"])
            bench.store.remove(job.id)
            await until(lambda: painter.cancelled == [b"one"])
            await until(lambda: painter.begun == [b"one", b"other"])
            painter.gate.set()
            await until(has_ended(bench, other))

    in_loop(scene())
    assert status_of(bench, job) == Status.CANCELLED
    bench.check()


def test_job_that_was_given_to_another_worker_is_stopped_and_nothing_of_it_is_kept(bench: Bench) -> None:
    job = bench.submit()

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter) as runner:
            await until(lambda: painter.now == 1)
            for work in runner._works:
                work.is_ending = True  # too late to be stopped: its outcome is being written
            bench.pass_time(bench.settings.lease_s + 1)
            bench.store.queue.reap()
            other = bench.claim()
            painter.gate.set()
            await until(lambda: runner._observer.outcomes == ["void"])  # type: ignore[union-attr]
            assert bench.store.finish(other, painting(b"another's"))

    in_loop(scene())
    done = bench.store.get(job.id)
    assert bench.store.painting(done) == b"another's"
    bench.check()
    assert len([name for name in bench.files() if name.startswith("paintings/")]) == 1


def test_lease_is_renewed_for_as_long_as_the_painting_takes(make_bench: MakeBench) -> None:
    bench = make_bench(lease_s=0.6)
    job = bench.submit()

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter):
            await until(lambda: painter.now == 1)
            for _ in range(20):
                await asyncio.sleep(0.1)
                assert (await asyncio.to_thread(bench.store.queue.reap)).queued == ()
            painter.gate.set()
            await until(has_ended(bench, job))

    in_loop(scene())
    assert (status_of(bench, job), bench.store.get(job.id).attempt) == (Status.SUCCEEDED, 1)


def test_job_of_a_dead_runner_is_found_and_painted(make_bench: MakeBench) -> None:
    bench = make_bench(lease_s=0.6)
    job = bench.submit()
    bench.claim()  # by one that dies at once

    async def scene() -> None:
        async with running(bench, Painter()):
            await until(has_ended(bench, job))

    in_loop(scene())
    assert (status_of(bench, job), bench.store.get(job.id).attempt) == (Status.SUCCEEDED, 2)


def test_sweep_expires_what_is_due(make_bench: MakeBench) -> None:
    bench = make_bench(lease_s=0.3)
    job = bench.succeed()
    bench.pass_time(bench.settings.keep_for_s + 1)

    async def scene() -> None:
        async with running(bench, Painter(), sweep_s=0.1):
            await until(lambda: bench.store.find([job.id])[job.id].status == Status.EXPIRED)
            await until(lambda: not bench.files())

    in_loop(scene())


def test_runner_that_stops_hands_its_jobs_back_without_counting_an_attempt(bench: Bench) -> None:
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(5)]

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=3) as runner:
            await until(lambda: painter.now == 3)
            await runner.stop()
            assert runner.pictures <= 3
            assert len(painter.cancelled) == 3

    in_loop(scene())
    assert [(bench.store.get(job.id).status, bench.store.get(job.id).attempt) for job in jobs] == [
        (Status.QUEUED, 0)
    ] * 5
    bench.check()


def test_claim_that_was_under_way_when_the_runner_stopped_is_handed_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit()
    claim = bench.store.queue.claim

    async def scene() -> None:
        loop, is_claimed, may_return = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def slow_claim() -> Any:
            lease = claim()
            loop.call_soon_threadsafe(is_claimed.set)
            asyncio.run_coroutine_threadsafe(may_return.wait(), loop).result(PATIENCE_S)
            return lease

        monkeypatch.setattr(bench.store.queue, "claim", slow_claim)
        async with running(bench, Painter(is_open=False)) as runner:
            await is_claimed.wait()
            stopping = asyncio.create_task(runner.stop())
            await asyncio.sleep(0.1)
            assert not stopping.done()
            may_return.set()
            await stopping

    in_loop(scene())
    assert (status_of(bench, job), bench.store.get(job.id).attempt) == (Status.QUEUED, 0)


def test_painting_is_written_when_the_store_is_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit()
    finish, failures = bench.store.finish, [StoreUnavailable("gone"), StoreFull("full"), StoreUnavailable("gone")]

    def fail_first(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return finish(*arguments)

    monkeypatch.setattr(bench.store, "finish", fail_first)

    async def scene() -> None:
        painter = Painter()
        async with running(bench, painter):
            await until(has_ended(bench, job))
        assert len(painter.begun) == 1

    in_loop(scene())
    assert status_of(bench, job) == Status.SUCCEEDED


def test_job_whose_painting_finds_no_room_fails_with_that_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit()

    def find_no_room(*_: Any) -> bool:
        raise StoreFull("There is no room.")

    monkeypatch.setattr(bench.store, "finish", find_no_room)
    monkeypatch.setattr(work, "FULL_S", 0.1)

    async def scene() -> None:
        async with running(bench, Painter()):
            await until(has_ended(bench, job))

    in_loop(scene())
    problem = bench.store.get(job.id).problem
    assert problem is not None
    assert problem["code"] == "store-full"


def test_database_that_is_gone_stops_nothing_for_good(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    is_gone = True
    for name in ("claim", "valid", "reap", "renew"):
        real = getattr(bench.store.queue, name)

        def failing(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            if is_gone:
                raise StoreUnavailable("gone")
            return real(*arguments)

        monkeypatch.setattr(bench.store.queue, name, failing)
    job = bench.submit()

    async def scene() -> None:
        nonlocal is_gone
        async with running(bench, Painter()) as runner:
            await asyncio.sleep(0.5)
            assert (runner.pictures, runner.fault()) == (0, None)
            is_gone = False
            await until(has_ended(bench, job))

    in_loop(scene())


def test_photograph_that_has_vanished_fails_its_job(bench: Bench) -> None:
    job = bench.submit()
    for name in bench.files():
        if name.startswith("photos/"):
            (bench.folder / name).unlink()

    async def scene() -> None:
        async with running(bench, Painter()):
            await until(has_ended(bench, job))

    in_loop(scene())
    problem = bench.store.get(job.id).problem
    assert problem is not None
    assert problem["code"] == "gone"


def test_pause_that_ends_between_two_looks_at_the_clock_is_no_end_of_work(bench: Bench) -> None:
    """The room is looked at while the pause lasts, and the rest of the pause is taken when it is over."""
    now = 100.0

    class Clock:
        ticks = 0

        def __call__(self) -> float:
            self.ticks += 1
            return now + 0.01 * self.ticks

    async def scene() -> None:
        job = bench.submit()
        runner = Runner(bench.store, Painter(), JobRunnerSettings(poll_s=0.05), 30, clock=Clock())
        runner._paused_until = now + 0.015  # after the first look, before the second
        runner.start()
        try:
            await until(has_ended(bench, job))
        finally:
            await runner.stop()

    in_loop(scene())


def test_slow_pictures_hold_up_no_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    may_finish, renewed = threading.Event(), threading.Event()
    finish, renew = bench.store.finish, bench.store.queue.renew

    def slow(*arguments: Any) -> bool:
        may_finish.wait(PATIENCE_S)
        return finish(*arguments)

    def noticed(lease: Any) -> bool:
        renewed.set()
        return renew(lease)

    monkeypatch.setattr(bench.store, "finish", slow)
    monkeypatch.setattr(bench.store.queue, "renew", noticed)
    jobs = [bench.submit() for _ in range(2 * work.THREADS)]

    async def scene() -> None:
        runner = Runner(bench.store, Painter(), JobRunnerSettings(poll_s=0.05), lease_s=0.3)
        runner.start()
        try:
            await until(renewed.is_set)
            may_finish.set()
            for job in jobs:
                await until(has_ended(bench, job))
        finally:
            may_finish.set()
            await runner.stop()

    in_loop(scene())


def test_nudge_starts_a_job_before_the_next_look(bench: Bench) -> None:
    async def scene() -> None:
        async with running(bench, Painter(), poll_s=600) as runner:
            await asyncio.sleep(0.2)
            job = bench.submit()
            runner.nudge()
            await until(has_ended(bench, job))

    in_loop(scene())


def test_loop_that_ends_is_a_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down() -> None:
        raise ValueError("a bug")

    async def scene() -> None:
        with contextlib.suppress(AssertionError):
            async with running(bench, Painter()) as runner:
                monkeypatch.setattr(bench.store.queue, "claim", break_down)
                await until(lambda: runner.fault() is not None)
                assert str(runner.fault()) == "a bug"

    in_loop(scene())


def test_estimate_of_what_waits_is_its_number_times_the_mean(bench: Bench) -> None:
    for number in range(6):
        bench.submit(photo=b"photo %d" % number)

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=2) as runner:
            await until(lambda: painter.now == 2)
            assert await runner.waiting_pixels() == 4 * 10_000

    in_loop(scene())


def test_unknown_request_and_error_types_are_judged_by_their_status() -> None:
    assert module.is_final(BrokenImage("x"))
    assert not module.is_final(RequestError("x"))
    assert not module.is_final(StoreFull("x"))
    assert not module.is_final(DeadlineExceeded("x"))
    assert REQUEST.max_side**2 > 10_000
