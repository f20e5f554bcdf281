import asyncio
import gc
import logging
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_app.errors import DeadlineExceeded, NotReady
from serve_app.queueing.batching import Batcher, Done

Batch = tuple[str, list[Any]]
Task = asyncio.Task[Done[str]]


class Clock:
    """Seconds that pass only when a test says so, for the timers of the running event loop too."""

    def __init__(self) -> None:
        self.now = 100.0
        asyncio.get_running_loop().time = self  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self.now


class Device:
    """Runs each batch until a test finishes it. An item that is an exception is its own outcome."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.running: dict[int, asyncio.Future[Exception | None]] = {}  # batches by number

    async def run(self, key: str, items: list[Any]) -> list[Any]:
        number = len(self.batches)
        self.batches.append((key, items))
        self.running[number] = asyncio.get_running_loop().create_future()
        fault = await self.running[number]
        del self.running[number]
        if fault is not None:
            raise fault
        return [item if isinstance(item, Exception) else f"{item} painted" for item in items]

    async def finish(self, fault: Exception | None = None, number: int | None = None) -> None:
        """Ends the oldest batch that runs now, or that of a number, well or with a fault, and lets others start."""
        if number is None:
            number = min(self.running)
        self.running[number].set_result(fault)
        await settle()


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, int, list[float], float, float]] = []

    def on_batch(self, *told: Any) -> None:
        self.batches.append(told)


async def settle() -> None:
    """Lets everything run that can run without the device and without time."""
    for _ in range(10):
        await asyncio.sleep(0)


class Desk:
    """A batcher over a device and a clock, all in a test's hand."""

    def __init__(
        self,
        max_batch_size: int = 4,
        limit: Callable[[str], int] | None = None,
        linger_s: float = 0,
        places: int = 1,
    ) -> None:
        self.clock = Clock()
        self.device = Device()
        self.told = Told()
        self.batcher: Batcher[str, Any, str] = Batcher(
            self.device.run,
            max_batch_size,
            self.clock,
            limit=limit,
            places=places,
            linger_s=linger_s,
            observer=self.told,
        )

    async def submit(self, key: str, item: Any, pixels: int = 1, expires_s: float | None = None) -> Task:
        task = asyncio.ensure_future(self.batcher.submit(key, item, pixels, expires_s))
        await settle()
        return task

    async def submit_all(self, *orders: tuple[str, Any]) -> list[Task]:
        return [await self.submit(key, item) for key, item in orders]

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        await settle()


def in_loop(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        # A worker that died is logged when it is collected, perhaps while pytest parses a failed test's source; the
        # log parses source too, and Python 3.11 answers that nesting with a SystemError that ends the whole session.
        loop.set_exception_handler(lambda *_: None)
        task = asyncio.ensure_future(scene)
        # A hang is a failure, not a stuck test run; by a thread, since the loop's own time may stand still.
        guard = threading.Timer(10, loop.call_soon_threadsafe, [task.cancel])
        guard.start()
        try:
            await task
        finally:
            guard.cancel()

    asyncio.run(bounded())


def test_first_picture_runs_alone_at_once() -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.submit("a", 1)
        assert desk.device.batches == [("a", [1])]

    in_loop(scene())


def test_pictures_that_come_while_the_device_is_busy_share_the_next_batch() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size=3)
        await desk.submit_all(*[("a", item) for item in range(6)])
        await desk.device.finish()
        await desk.device.finish()
        assert desk.device.batches == [("a", [0]), ("a", [1, 2, 3]), ("a", [4, 5])]

    in_loop(scene())


def test_picture_that_has_waited_longest_decides_the_next_key() -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.submit_all(("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6))
        for _ in range(3):
            await desk.device.finish()
        assert desk.device.batches == [("a", [1]), ("b", [2, 5]), ("a", [3, 6]), ("c", [4])]

    in_loop(scene())


def test_full_key_goes_on_only_when_it_is_oldest_again() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size=2)
        await desk.submit_all(("a", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5))
        for _ in range(3):
            await desk.device.finish()
        assert desk.device.batches == [("a", [1]), ("a", [2, 3]), ("b", [4]), ("a", [5])]

    in_loop(scene())


def test_everyone_gets_the_result_of_their_own_picture() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.submit_all(("a", 1), ("a", 2), ("b", 3), ("a", 4))
        for _ in range(3):
            await desk.device.finish()
        assert [task.result().result for task in tasks] == ["1 painted", "2 painted", "3 painted", "4 painted"]

    in_loop(scene())


def test_cancelled_picture_is_never_run() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.submit_all(("a", 1), ("b", 2), ("a", 3), ("a", 4))
        tasks[1].cancel()  # the head and only member of its queue
        tasks[2].cancel()  # the head of its queue
        await desk.device.finish()
        assert desk.device.batches == [("a", [1]), ("a", [4])]

    in_loop(scene())


def test_cancelled_pictures_take_no_room_in_a_batch() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size=2)
        tasks = await desk.submit_all(("a", 1), ("a", 2), ("a", 3), ("a", 4))
        tasks[2].cancel()  # in the middle of its queue
        await desk.device.finish()
        assert desk.device.batches == [("a", [1]), ("a", [2, 4])]

    in_loop(scene())


def test_picture_cancelled_at_the_moment_of_choosing_is_not_run() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.submit_all(("a", 1), ("a", 2), ("a", 3))
        finishing = asyncio.ensure_future(desk.device.finish())
        await asyncio.sleep(0)  # the device wakes in the next turn of the loop, and before who is cancelled now
        tasks[1].cancel()
        await finishing
        assert desk.device.batches == [("a", [1]), ("a", [3])]

    in_loop(scene())


def test_picture_cancelled_on_the_device_does_not_disturb_its_batch() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.submit_all(("a", 0), ("a", 1), ("a", 2))
        await desk.device.finish()
        tasks[1].cancel()
        await desk.device.finish()
        assert tasks[2].result().result == "2 painted"
        assert (await desk.submit("a", 3)).done() is False
        assert desk.device.batches[-1] == ("a", [3])

    in_loop(scene())


def test_picture_that_fails_fails_alone() -> None:
    async def scene() -> None:
        desk = Desk()
        bad = ValueError("a bad frame")
        tasks = await desk.submit_all(("a", 0), ("a", 1), ("a", bad), ("a", 3))
        await desk.device.finish()
        await desk.device.finish()
        assert tasks[1].result().result == "1 painted"
        assert tasks[2].exception() is bad
        assert tasks[3].result().result == "3 painted"

    in_loop(scene())


async def fail_marked(key: str, items: list[str]) -> list[str | Exception]:
    await asyncio.sleep(0)
    if "mark" in items:
        raise ValueError("the device failed")
    return list(items)


async def forget_one(key: str, items: list[str]) -> list[str | Exception]:
    await asyncio.sleep(0)
    return [item for item in items if item != "mark"]


def test_run_that_raises_fails_its_batch_and_the_queue_goes_on() -> None:
    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(fail_marked, 4)
        outcomes = await asyncio.gather(
            batcher.submit("a", "first"),
            batcher.submit("a", "mark"),
            batcher.submit("b", "other"),
            return_exceptions=True,
        )
        assert [str(outcome) for outcome in outcomes[:2]] == ["the device failed"] * 2
        assert outcomes[2].result == "other"  # type: ignore[union-attr]
        assert (await batcher.submit("a", "later")).result == "later"
        assert batcher.running_for_s() == 0

    in_loop(scene())


def test_run_that_returns_too_few_results_leaves_nobody_waiting() -> None:
    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(forget_one, 4)
        orders = [asyncio.ensure_future(batcher.submit("a", item)) for item in ("first", "mark")]
        other = asyncio.ensure_future(batcher.submit("b", "other"))
        await settle()
        assert [order.done() for order in (*orders, other)] == [True, True, True]
        assert all(order.exception() for order in orders)  # whose result is whose, nobody can tell
        assert other.result().result == "other"

    in_loop(scene())


def test_result_tells_its_waiting_its_running_and_its_company() -> None:
    async def scene() -> None:
        desk = Desk()
        first = await desk.submit("a", 0)
        desk.clock.now += 1
        second = await desk.submit("a", 1)
        desk.clock.now += 2
        third = await desk.submit("a", 2)
        desk.clock.now += 4
        await desk.device.finish()
        desk.clock.now += 8
        await desk.device.finish()
        assert first.result() == Done("0 painted", queued_s=0, ran_s=7, batch_size=1)
        assert second.result() == Done("1 painted", queued_s=6, ran_s=8, batch_size=2)
        assert third.result() == Done("2 painted", queued_s=4, ran_s=8, batch_size=2)

    in_loop(scene())


def test_running_time_grows_with_the_batch_on_the_device_only() -> None:
    async def scene() -> None:
        desk = Desk()
        assert desk.batcher.running_for_s() == 0
        await desk.submit_all(("a", 0), ("a", 1))
        desk.clock.now += 3
        assert desk.batcher.running_for_s() == 3
        await desk.device.finish()
        desk.clock.now += 5
        assert desk.batcher.running_for_s() == 5
        await desk.device.finish()
        desk.clock.now += 7
        assert desk.batcher.running_for_s() == 0

    in_loop(scene())


def test_larger_batch_is_allowed_from_the_next_one_on() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size=1)
        await desk.submit_all(*[("a", item) for item in range(5)])
        await desk.device.finish()
        desk.batcher.max_batch_size = 2
        await desk.device.finish()
        assert desk.device.batches == [("a", [0]), ("a", [1]), ("a", [2, 3])]

    in_loop(scene())


def test_expired_picture_is_answered_while_the_device_is_busy_and_never_run() -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.submit("a", 0)
        short, long = await desk.submit("a", 1, expires_s=2), await desk.submit("a", 2, expires_s=4)
        await desk.pass_time(1.5)
        assert not short.done()
        await desk.pass_time(0.5)
        assert str(short.exception()) == (
            "The picture was still waiting for its turn after the 2 seconds that it was given."
            " Allow more time, or try again later."
        )
        assert isinstance(short.exception(), DeadlineExceeded)
        assert desk.batcher.waiting == 1
        await desk.device.finish()
        assert desk.device.batches == [("a", [0]), ("a", [2])]
        await desk.pass_time(10)
        await desk.device.finish()
        assert long.result().result == "2 painted"  # time is over for those that wait, not for those on the device

    in_loop(scene())


def test_picture_that_expires_at_the_moment_of_choosing_is_not_run() -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.submit("a", 0)
        head, middle = await desk.submit("a", 1, expires_s=2), await desk.submit("a", 3)
        rear, other = await desk.submit("a", 2, expires_s=2), await desk.submit("b", 4, expires_s=2)
        desk.clock.now += 2
        await desk.device.finish()  # the device is free before any timer has run
        assert desk.device.batches == [("a", [0]), ("a", [3])]
        assert all(isinstance(task.exception(), DeadlineExceeded) for task in (head, rear, other))
        assert not middle.done()

    in_loop(scene())


@pytest.mark.parametrize("expires_s", [0, -1])
def test_picture_that_has_no_time_at_all_is_not_run(expires_s: float) -> None:
    async def scene() -> None:
        desk = Desk()
        task = await desk.submit("a", 0, expires_s=expires_s)
        assert isinstance(task.exception(), DeadlineExceeded)
        assert desk.device.batches == []

    in_loop(scene())


def test_batch_holds_no_more_than_the_limit_of_its_key() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size=3, limit={"small": 9, "large": 2, "huge": 0}.__getitem__)
        await desk.submit("small", 0)
        for key in ("large", "huge", "small"):
            await desk.submit_all(*[(key, item) for item in range(4)])
        for _ in range(9):
            await desk.device.finish()
        assert [(key, len(items)) for key, items in desk.device.batches] == [
            ("small", 1),
            ("large", 2),
            ("large", 2),
            *[("huge", 1)] * 4,  # one must be tried, or it would wait for ever
            ("small", 3),
            ("small", 1),
        ]

    in_loop(scene())


@pytest.mark.parametrize("linger_s", [0, 1])
def test_limit_that_raises_fails_the_heads_of_its_key_and_the_queue_goes_on(linger_s: float) -> None:
    async def scene() -> None:
        desk = Desk(limit={"a": 4}.__getitem__, linger_s=linger_s)
        unknown, known, second = await desk.submit_all(("unknown", 0), ("a", 1), ("unknown", 2))
        await desk.pass_time(linger_s)
        await desk.device.finish()
        assert isinstance(unknown.exception(), KeyError)
        assert isinstance(second.exception(), KeyError)
        assert known.result().result == "1 painted"
        later = await desk.submit("a", 3)
        await desk.pass_time(linger_s)
        await desk.device.finish()
        assert later.result().result == "3 painted"

    in_loop(scene())


def test_lingering_picture_gets_company_that_comes_in_time() -> None:
    async def scene() -> None:
        desk = Desk(linger_s=2)
        await desk.submit_all(("a", 0), ("b", 1))
        await desk.pass_time(1.5)
        await desk.submit("a", 2)
        assert desk.device.batches == []
        await desk.pass_time(0.5)
        assert desk.device.batches == [("a", [0, 2])]

    in_loop(scene())


def test_lingering_ends_when_the_batch_is_full() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size=2, linger_s=60)
        await desk.submit_all(("a", 0), ("b", 1), ("b", 2))
        assert desk.device.batches == []
        await desk.submit("a", 3)
        assert desk.device.batches == [("a", [0, 3])]
        await desk.device.finish()
        assert desk.device.batches == [("a", [0, 3]), ("b", [1, 2])]

    in_loop(scene())


def test_picture_that_waited_on_a_busy_device_has_lingered_already() -> None:
    async def scene() -> None:
        desk = Desk(linger_s=2)
        await desk.submit("a", 0)
        await desk.pass_time(2)
        await desk.submit("b", 1)
        await desk.pass_time(3)
        await desk.device.finish()
        assert desk.device.batches == [("a", [0]), ("b", [1])]

    in_loop(scene())


def test_lingering_picture_that_is_cancelled_or_expires_leaves_the_rest_to_their_own_time() -> None:
    async def scene() -> None:
        desk = Desk(linger_s=4)
        first = await desk.submit("a", 0)
        expiring = await desk.submit("b", 1, expires_s=3)
        await desk.pass_time(2)
        await desk.submit("c", 2)
        first.cancel()
        await desk.pass_time(1)
        assert isinstance(expiring.exception(), DeadlineExceeded)
        await desk.pass_time(2)
        assert desk.device.batches == []
        await desk.pass_time(1)
        assert desk.device.batches == [("c", [2])]

    in_loop(scene())


def test_batches_of_several_keys_run_at_once_where_there_are_places() -> None:
    async def scene() -> None:
        desk = Desk(places=2)
        tasks = await desk.submit_all(("a", 0), ("b", 1), ("c", 2), ("a", 3), ("c", 4))
        assert desk.device.batches == [("a", [0]), ("b", [1])]
        await desk.device.finish(number=1)
        assert tasks[1].result().result == "1 painted"
        assert not tasks[0].done()
        assert desk.device.batches[2:] == [("c", [2, 4])]
        await desk.device.finish(number=2)
        assert desk.device.batches[3:] == [("a", [3])]

    in_loop(scene())


def test_oldest_that_finds_no_place_is_overtaken_by_nobody() -> None:
    async def scene() -> None:
        desk = Desk(places=3, limit=lambda key: 0 if key == "large" and desk.device.running else 1)
        await desk.submit_all(("small", 0), ("small", 1), ("large", 2), ("small", 3))
        assert desk.device.batches == [("small", [0]), ("small", [1])]
        await desk.device.finish()
        assert len(desk.device.batches) == 2
        await desk.device.finish()
        assert desk.device.batches[2:] == [("large", [2]), ("small", [3])]

    in_loop(scene())


def test_device_knows_of_a_batch_when_it_is_asked_about_the_next() -> None:
    async def scene() -> None:
        known: list[int] = []
        desk = Desk(places=9, limit=lambda key: known.append(len(desk.device.running)) or 1)
        await asyncio.gather(*(desk.submit("a", item) for item in range(3)))
        assert known == [0, 1, 2]

    in_loop(scene())


def test_time_of_the_device_is_told_once_however_many_batches_it_runs() -> None:
    async def scene() -> None:
        desk = Desk(places=2)
        await desk.submit("a", 0)
        await desk.pass_time(1)
        await desk.submit("b", 1)
        await desk.pass_time(2)
        assert desk.batcher.running_for_s() == 3
        await desk.device.finish(number=0)
        await desk.pass_time(4)
        assert desk.batcher.running_for_s() == 6
        await desk.device.finish()
        await desk.pass_time(8)
        await desk.submit("a", 2)
        await desk.pass_time(16)
        await desk.device.finish()
        assert [(ran_s, busy_s) for *_, ran_s, busy_s in desk.told.batches] == [(3, 3), (6, 4), (16, 16)]

    in_loop(scene())


def test_every_picture_lingers_for_its_own_time_though_places_are_free() -> None:
    async def scene() -> None:
        desk = Desk(places=3, linger_s=2)
        await desk.submit("a", 0)
        await desk.pass_time(1)
        await desk.submit("b", 1)
        await desk.pass_time(1)
        assert desk.device.batches == [("a", [0])]
        await desk.pass_time(1)
        assert desk.device.batches == [("a", [0]), ("b", [1])]

    in_loop(scene())


def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async def scene() -> None:
        desk = Desk()
        accepted = await desk.submit_all(("a", 0), ("b", 1))
        draining = asyncio.ensure_future(desk.batcher.drain())
        await settle()
        refused = await desk.submit("a", 2)
        assert isinstance(refused.exception(), NotReady)
        assert str(refused.exception()) == "This part of the service is shutting down: send the picture again."
        await desk.device.finish()
        assert not draining.done()
        await desk.device.finish()
        assert draining.done()
        assert [task.result().result for task in accepted] == ["0 painted", "1 painted"]
        assert desk.batcher.waiting == 0

    in_loop(scene())


def test_draining_does_not_wait_for_company() -> None:
    async def scene() -> None:
        desk = Desk(linger_s=60)
        await desk.submit("a", 0)
        draining = asyncio.ensure_future(desk.batcher.drain())
        await settle()
        assert desk.device.batches == [("a", [0])]
        await desk.device.finish()
        assert draining.done()

    in_loop(scene())


def test_draining_an_idle_batcher_returns_at_once() -> None:
    async def scene() -> None:
        await Desk().batcher.drain()

    in_loop(scene())


def test_observer_is_told_of_every_batch() -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.submit("a", 0, pixels=10)
        desk.clock.now += 1
        await desk.submit("a", 1, pixels=20)
        desk.clock.now += 2
        await desk.submit("a", 2, pixels=30)
        await desk.device.finish()
        desk.clock.now += 4
        await desk.device.finish(ValueError("the device failed"))
        assert desk.told.batches == [("a", 1, 10, [0], 3, 3), ("a", 2, 50, [2, 0], 4, 4)]

    in_loop(scene())


def test_observer_that_fails_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def on_batch(self, *_: Any) -> None:
            raise ValueError("no room for metrics")

    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(fail_marked, 1, observer=Broken())
        results = await asyncio.gather(*(batcher.submit("a", item) for item in ("first", "second")))
        assert [done.result for done in results] == ["first", "second"]

    with caplog.at_level(logging.ERROR):
        in_loop(scene())
    assert "no room for metrics" in caplog.text


async def give_up(key: str, items: list[str]) -> list[str | Exception]:
    raise asyncio.CancelledError  # as the future of an executor that is being shut down


async def stop(key: str, items: list[str]) -> list[str | Exception]:
    return [StopIteration("the end") for _ in items]


@pytest.mark.parametrize("run", [give_up, stop])
def test_odd_end_of_a_batch_is_answered_and_the_queue_goes_on(run: Any) -> None:
    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(run, 1)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"cancelled on the device|the end"):
                await batcher.submit("a", "first")

    in_loop(scene())


def test_choosing_does_not_look_at_everyone_who_waits() -> None:
    """Looking at all keys for each batch takes these many well past what `in_loop` allows."""

    async def scene() -> None:
        batcher: Batcher[int, str, str] = Batcher(lambda key, items: fail_marked("", items), 4)  # type: ignore[arg-type]
        orders = [asyncio.ensure_future(batcher.submit(key, "photo", 1, 1000)) for key in range(30_000)]
        await asyncio.sleep(0)
        for order in orders[::10]:
            order.cancel()
        await asyncio.wait(orders)
        assert batcher.waiting == batcher.backlog_pixels == 0

    in_loop(scene())


class Photo:
    """Something that a weak reference can follow."""


def test_photos_are_let_go_when_cancelled_expired_or_painted() -> None:
    photos = [Photo() for _ in range(3)]
    refs = [weakref.ref(photo) for photo in photos]
    free = asyncio.Event()

    async def paint(key: str, items: list[Photo]) -> list[str | Exception]:
        await free.wait()
        return ["painted"] * len(items)

    async def scene() -> None:
        clock = Clock()
        batcher: Batcher[str, Photo, str] = Batcher(paint, 4, clock)

        async def submit(expires_s: float) -> asyncio.Task[Done[str]]:
            order = asyncio.ensure_future(batcher.submit("a", photos.pop(0), 1, expires_s))
            await settle()
            return order

        def is_gone(number: int) -> bool:
            gc.collect()
            return refs[number]() is None

        painted, cancelled, expired = await submit(9), await submit(9), await submit(1)
        cancelled.cancel()
        clock.now += 1
        await settle()
        assert isinstance(expired.exception(), DeadlineExceeded)
        del cancelled, expired  # their tracebacks have the frames that had the photos
        assert [is_gone(number) for number in range(3)] == [False, True, True]
        free.set()
        await settle()
        assert painted.result().result == "painted"
        assert is_gone(0)

    in_loop(scene())


@dataclass(eq=False)
class Order:
    key: str
    item: Any
    pixels: int
    arrived_at: float
    expires_at: float
    task: Task
    begun: int  # batches, before it came
    bound: int  # batches that it may wait for besides those
    batch: int | None = None
    fate: str = "waiting"  # then "running", and one of "done", "cancelled", "expired"


class Queue(RuleBasedStateMachine):
    """Everything that may happen to the queue, held against a model that says which batch must come next.

    Pictures of key "c" are so large that a batch of them has the device to itself.
    """

    @initialize(
        max_batch_size=st.integers(1, 4),
        limits=st.fixed_dictionaries({key: st.integers(1, 5) for key in "abc"}),
        linger_s=st.sampled_from([0, 0, 0, 1.5]),
        places=st.sampled_from([1, 1, 2, 3]),
    )
    def open(self, max_batch_size: int, limits: dict[str, int], linger_s: float, places: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda *_: None)  # as in `in_loop`
        self.orders: list[Order] = []
        self.sizes = {key: min(max_batch_size, limit) for key, limit in limits.items()}
        self.places = places
        self.checked = 0
        self.ended: list[int] = []  # batches by number, in order of their ends
        self.busy_s = 0.0

        async def make() -> Desk:
            return Desk(max_batch_size, lambda key: 0 if self.is_kept_out(key) else limits[key], linger_s, self.places)

        self.desk = self.loop.run_until_complete(make())

    def is_kept_out(self, key: str) -> bool:
        running = [self.desk.device.batches[number][0] for number in self.desk.device.running]
        return "c" in running or (key == "c" and bool(running))

    def waiting(self) -> list[Order]:
        return [order for order in self.orders if order.fate == "waiting"]

    @rule(
        key=st.sampled_from("abc"),
        pixels=st.integers(1, 9),
        expires_s=st.sampled_from([None, None, 0.5, 1, 3]),
        is_bad=st.booleans(),
    )
    def submit(self, key: str, pixels: int, expires_s: float | None, is_bad: bool) -> None:
        older = Counter(order.key for order in self.waiting())
        bound = sum(math.ceil(count / self.sizes[key]) for key, count in older.items())
        begun = len(self.desk.device.batches)
        item = ValueError(len(self.orders)) if is_bad else len(self.orders)
        expires_at = math.inf if expires_s is None else self.desk.clock.now + expires_s
        task = self.loop.run_until_complete(self.desk.submit(key, item, pixels, expires_s))
        self.orders.append(Order(key, item, pixels, self.desk.clock.now, expires_at, task, begun, bound))
        self.check()

    @precondition(lambda self: any(not order.task.done() for order in self.orders))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from([order for order in self.orders if not order.task.done()]))
        order.task.cancel()
        order.fate = "cancelled"
        self.loop.run_until_complete(settle())
        self.check()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 2]))
    def pass_time(self, seconds: float) -> None:
        if self.desk.device.running:
            self.busy_s += seconds
        self.loop.run_until_complete(self.desk.pass_time(seconds))
        for order in self.waiting():
            if order.expires_at <= self.desk.clock.now:
                order.fate = "expired"
        self.check()

    @precondition(lambda self: self.desk.device.running)
    @rule(data=st.data(), fault=st.sampled_from([None, None, None, RuntimeError("the device failed")]))
    def finish(self, data: st.DataObject, fault: Exception | None) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.desk.device.running))), fault)

    def end(self, number: int, fault: Exception | None = None) -> None:
        ended = [order for order in self.orders if order.fate == "running" and order.batch == number]
        company = len(self.desk.device.batches[number][1])
        self.loop.run_until_complete(self.desk.device.finish(fault, number))
        self.ended.append(number)
        for order in ended:
            order.fate = "done"
            if fault is not None or isinstance(order.item, Exception):
                assert order.task.exception() is (fault or order.item)
            else:
                assert order.task.result().result == f"{order.item} painted"
                assert order.task.result().batch_size == company
        self.check()

    def check(self) -> None:
        """The batches that have begun since the last check, if any, are those that had to come."""
        for number, (key, items) in enumerate(self.desk.device.batches[self.checked :], self.checked):
            waiting = self.waiting()
            assert key == waiting[0].key
            chosen = [order for order in waiting if order.key == key][: self.sizes[key]]
            assert items == [order.item for order in chosen]
            for order in chosen:
                order.fate, order.batch = "running", number
        self.checked = len(self.desk.device.batches)

    @invariant()
    def nobody_waits_beyond_the_bound(self) -> None:
        for order in self.orders:
            if order.batch is not None:
                assert order.batch - order.begun <= order.bound
            elif order.fate == "waiting":
                assert len(self.desk.device.batches) - order.begun <= order.bound

    @invariant()
    def no_more_runs_than_may(self) -> None:
        running = [self.desk.device.batches[number][0] for number in self.desk.device.running]
        assert len(running) <= self.places
        assert "c" not in running or len(running) == 1

    @invariant()
    def free_place_has_a_reason(self) -> None:
        if len(self.desk.device.running) < self.places and (waiting := self.waiting()):
            head = waiting[0]
            company = sum(order.key == head.key for order in waiting)
            is_lingering = (
                company < self.sizes[head.key] and self.desk.clock.now - head.arrived_at < self.desk.batcher.linger_s
            )
            assert is_lingering or self.is_kept_out(head.key)

    @invariant()
    def everyone_whose_fate_is_sealed_has_been_answered(self) -> None:
        for order in self.orders:
            assert order.task.done() == (order.fate not in ("waiting", "running"))
            assert order.task.cancelled() == (order.fate == "cancelled")
            if order.fate == "expired":
                assert isinstance(order.task.exception(), DeadlineExceeded)

    @invariant()
    def counters_are_right(self) -> None:
        batcher, device = self.desk.batcher, self.desk.device
        waiting = self.waiting()
        assert batcher.waiting == len(waiting)
        assert batcher.waiting_pixels == sum(order.pixels for order in waiting)
        running = [order.pixels for order in self.orders if order.batch in device.running]
        assert batcher.running == len(running)
        assert batcher.backlog_pixels - batcher.waiting_pixels == sum(running)
        ended = [device.batches[number] for number in self.ended]
        assert [(key, size) for key, size, *_ in self.desk.told.batches] == [(key, len(items)) for key, items in ended]
        if not device.running:
            assert sum(busy_s for *_, busy_s in self.desk.told.batches) == self.busy_s

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            draining = self.loop.create_task(self.desk.batcher.drain())
            self.loop.run_until_complete(settle())
            self.check()
            while self.desk.device.running:
                self.end(min(self.desk.device.running))
            assert draining.done()
            assert all(order.task.done() for order in self.orders)
        finally:
            self.loop.close()


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, report_multiple_bugs=False)
