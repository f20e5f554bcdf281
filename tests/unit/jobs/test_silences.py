"""Lost leases are found by watching: a clock that is set, or a machine that slept, takes no living worker's job."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from jobrunners import Painter, has_ended, in_loop, running, status_of, until
from jobstores import Bench

from serve_app.errors import StoreUnavailable
from serve_app.jobs.silences import Silences
from serve_app.jobs.words import SeenLease, Status

MakeBench = Callable[..., Bench]

pytestmark = pytest.mark.usefixtures("quick")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lease(number: int, until: int = 0) -> SeenLease:
    return SeenLease(number, f"token {number}", until, 30.0)


def test_lease_is_lost_when_it_was_not_renewed_for_as_long_as_it_lasts() -> None:
    clock = Clock()
    silences = Silences(clock)
    for second in range(0, 60, 10):
        clock.now = 1000.0 + second
        lost = silences.look([lease(1), lease(2, until=second), lease(3)], own={"token 3"})
        assert lost == ([lease(1)] if second >= 30 else [])


def test_time_in_which_nobody_looked_says_nothing() -> None:
    clock = Clock()
    silences = Silences(clock)
    silences.look([lease(1)], own=())
    clock.now += 10
    silences.look([lease(1)], own=())
    clock.now += 36_000  # the process was stopped, or its machine slept
    assert silences.look([lease(1)], own=()) == []
    silences.forget()  # the database was gone
    clock.now += 10
    assert silences.look([lease(1)], own=()) == []
    clock.now -= 500
    assert silences.look([lease(1)], own=()) == []


def test_lease_that_was_renewed_since_it_was_seen_is_not_reaped(bench: Bench) -> None:
    renewed, lost = bench.submit(), bench.submit()
    held = bench.claim()
    bench.claim()
    seen = bench.store.queue.leases()
    assert {each.number for each in seen} == {renewed.number, lost.number}
    bench.pass_time(-0.01)
    bench.store.queue.renew(held)
    seen = [each for each in seen if each.number == renewed.number] + [
        each for each in bench.store.queue.leases() if each.number == lost.number
    ]
    assert bench.store.queue.reap(seen).queued == (lost.id,)
    assert bench.store.queue.reap([]).queued == ()


@pytest.mark.parametrize("hours", [10, -10])
def test_machine_that_slept_and_clock_that_is_set_cost_no_attempt(make_bench: MakeBench, hours: int) -> None:
    """Two runners: neither reaps what it holds itself, nor what the other one holds."""
    bench = make_bench(lease_s=1.5)
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(4)]

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=2), running(bench, painter, most_pictures=2):
            await until(lambda: painter.now == 4)
            for _ in range(8):
                bench.pass_time(3600 * hours)
                await asyncio.sleep(0.25)
            painter.gate.set()
            await until(has_ended(bench, *jobs))
        assert len(painter.begun) == 4

    in_loop(scene())
    assert {(status_of(bench, job), bench.store.get(job.id).attempt) for job in jobs} == {(Status.SUCCEEDED, 1)}


def test_database_that_was_gone_for_longer_than_a_lease_costs_no_attempt(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(lease_s=0.9)
    queue, is_gone = bench.store.queue, threading.Event()
    for name in ("claim", "valid", "renew", "reap", "leases", "finish"):
        real = getattr(queue, name)

        def failing(*arguments: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            if is_gone.is_set():
                raise StoreUnavailable("gone")
            return real(*arguments, **options)

        monkeypatch.setattr(queue, name, failing)
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(2)]

    async def scene() -> None:
        painter = Painter(is_open=False)
        async with running(bench, painter, most_pictures=1), running(bench, painter, most_pictures=1):
            await until(lambda: painter.now == 2)
            is_gone.set()
            painter.gate.set()
            await asyncio.sleep(2)
            is_gone.clear()
            await until(has_ended(bench, *jobs))
        assert len(painter.begun) == 2

    in_loop(scene())
    assert {(status_of(bench, job), bench.store.get(job.id).attempt) for job in jobs} == {(Status.SUCCEEDED, 1)}
