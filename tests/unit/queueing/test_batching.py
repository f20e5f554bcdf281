"""The queue of batches: order, sizes, expiry and failures, on a device and a clock that the test controls."""

import asyncio
import gc
import logging
import math
import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from devices import Clock, FakeDevice, RecordingObserver, Request, Reservation, in_loop, settle
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_app.errors import DeadlineExceeded
from serve_app.queueing import batching
from serve_app.queueing.batching import Batcher, SerialDevice
from serve_app.queueing.waiting import Done

Task = asyncio.Task[Done[str]]


class Setup:
    """A batcher over a device and a clock that the test controls."""

    def __init__(self, max_batch_size: int = 4, device: FakeDevice | None = None, linger_s: float = 0) -> None:
        self.clock = Clock()
        self.device = device or FakeDevice()
        self.observer = RecordingObserver()
        self.batcher: Batcher[str, Any, str] = Batcher(
            self.device, max_batch_size, self.clock, linger_s=linger_s, observer=self.observer
        )

    async def submit(self, key: str, item: Any, pixels: int = 1, expires_s: float | None = None) -> Task:
        task = asyncio.ensure_future(self.batcher.submit(key, item, pixels, expires_s))
        await settle()
        return task

    async def submit_all(self, *items: tuple[str, Any]) -> list[Task]:
        return [await self.submit(key, item) for key, item in items]

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        await settle()


def test_first_image_runs_alone_at_once() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", 1)
        assert setup.device.batches == [("a", [1])]

    in_loop(scene())


def test_images_that_arrive_while_the_device_is_busy_share_the_next_batch() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=3)
        await setup.submit_all(*[("a", item) for item in range(6)])
        await setup.device.finish()
        await setup.device.finish()
        assert setup.device.batches == [("a", [0]), ("a", [1, 2, 3]), ("a", [4, 5])]

    in_loop(scene())


def test_image_that_has_waited_longest_decides_the_next_key() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit_all(("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6))
        for _ in range(3):
            await setup.device.finish()
        assert setup.device.batches == [("a", [1]), ("b", [2, 5]), ("a", [3, 6]), ("c", [4])]

    in_loop(scene())


def test_key_with_a_full_batch_continues_only_when_it_is_oldest_again() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=2)
        await setup.submit_all(("a", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5))
        for _ in range(3):
            await setup.device.finish()
        assert setup.device.batches == [("a", [1]), ("a", [2, 3]), ("b", [4]), ("a", [5])]

    in_loop(scene())


def test_every_request_gets_the_result_of_its_own_image() -> None:
    async def scene() -> None:
        setup = Setup()
        tasks = await setup.submit_all(("a", 1), ("a", 2), ("b", 3), ("a", 4))
        for _ in range(3):
            await setup.device.finish()
        assert [task.result().result for task in tasks] == ["1 painted", "2 painted", "3 painted", "4 painted"]

    in_loop(scene())


def test_cancelled_image_is_never_run() -> None:
    async def scene() -> None:
        setup = Setup()
        tasks = await setup.submit_all(("a", 1), ("b", 2), ("a", 3), ("a", 4))
        tasks[1].cancel()  # the head and only member of its queue
        tasks[2].cancel()  # the head of its queue
        await setup.device.finish()
        assert setup.device.batches == [("a", [1]), ("a", [4])]

    in_loop(scene())


def test_cancelled_images_take_no_room_in_a_batch() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=2)
        tasks = await setup.submit_all(("a", 1), ("a", 2), ("a", 3), ("a", 4))
        tasks[2].cancel()  # in the middle of its queue
        await setup.device.finish()
        assert setup.device.batches == [("a", [1]), ("a", [2, 4])]

    in_loop(scene())


def test_image_cancelled_at_the_moment_of_choosing_is_not_run() -> None:
    async def scene() -> None:
        setup = Setup()
        tasks = await setup.submit_all(("a", 1), ("a", 2), ("a", 3))
        finishing = asyncio.ensure_future(setup.device.finish())
        await asyncio.sleep(0)  # the batch ends in the next turn of the loop, before the item that is cancelled now
        tasks[1].cancel()
        await finishing
        assert setup.device.batches == [("a", [1]), ("a", [3])]

    in_loop(scene())


def test_image_cancelled_on_the_device_does_not_disturb_its_batch() -> None:
    async def scene() -> None:
        setup = Setup()
        tasks = await setup.submit_all(("a", 0), ("a", 1), ("a", 2))
        await setup.device.finish()
        tasks[1].cancel()
        await setup.device.finish()
        assert tasks[2].result().result == "2 painted"
        assert (await setup.submit("a", 3)).done() is False
        assert setup.device.batches[-1] == ("a", [3])

    in_loop(scene())


def test_image_that_fails_fails_alone() -> None:
    async def scene() -> None:
        setup = Setup()
        bad = ValueError("a bad frame")
        tasks = await setup.submit_all(("a", 0), ("a", 1), ("a", bad), ("a", 3))
        await setup.device.finish()
        await setup.device.finish()
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
        batcher: Batcher[str, str, str] = Batcher(SerialDevice(fail_marked), 4)
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


def test_run_that_returns_too_few_results_leaves_no_image_waiting() -> None:
    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(SerialDevice(forget_one), 4)
        tasks = [asyncio.ensure_future(batcher.submit("a", item)) for item in ("first", "mark")]
        other = asyncio.ensure_future(batcher.submit("b", "other"))
        await settle()
        assert [task.done() for task in (*tasks, other)] == [True, True, True]
        assert all(task.exception() for task in tasks)  # it is unknown which item the one result belongs to
        assert other.result().result == "other"

    in_loop(scene())


def test_result_states_its_queue_time_its_running_time_and_its_batch_size() -> None:
    async def scene() -> None:
        setup = Setup()
        first = await setup.submit("a", 0)
        setup.clock.now += 1
        second = await setup.submit("a", 1)
        setup.clock.now += 2
        third = await setup.submit("a", 2)
        setup.clock.now += 4
        await setup.device.finish()
        setup.clock.now += 8
        await setup.device.finish()
        assert first.result() == Done("0 painted", queued_s=0, ran_s=7, batch_size=1)
        assert second.result() == Done("1 painted", queued_s=6, ran_s=8, batch_size=2)
        assert third.result() == Done("2 painted", queued_s=4, ran_s=8, batch_size=2)

    in_loop(scene())


def test_running_time_grows_with_the_batch_on_the_device_only() -> None:
    async def scene() -> None:
        setup = Setup()
        assert setup.batcher.running_for_s() == 0
        await setup.submit_all(("a", 0), ("a", 1))
        setup.clock.now += 3
        assert setup.batcher.running_for_s() == 3
        await setup.device.finish()
        setup.clock.now += 5
        assert setup.batcher.running_for_s() == 5
        await setup.device.finish()
        setup.clock.now += 7
        assert setup.batcher.running_for_s() == 0

    in_loop(scene())


def test_larger_batch_is_allowed_from_the_next_one_on() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=1)
        await setup.submit_all(*[("a", item) for item in range(5)])
        await setup.device.finish()
        setup.batcher.max_batch_size = 2
        await setup.device.finish()
        assert setup.device.batches == [("a", [0]), ("a", [1]), ("a", [2, 3])]

    in_loop(scene())


def test_expired_image_is_answered_while_the_device_is_busy_and_never_run() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", 0)
        short, long = await setup.submit("a", 1, expires_s=2), await setup.submit("a", 2, expires_s=4)
        await setup.pass_time(1.5)
        assert not short.done()
        await setup.pass_time(0.5)
        assert str(short.exception()) == (
            "The picture was still waiting for its turn after the 2 seconds that it was given."
            " Allow more time, or try again later."
        )
        assert isinstance(short.exception(), DeadlineExceeded)
        assert setup.batcher.waiting == 1
        await setup.device.finish()
        assert setup.device.batches == [("a", [0]), ("a", [2])]
        await setup.pass_time(10)
        await setup.device.finish()
        assert long.result().result == "2 painted"  # time is over for those that wait, not for those on the device

    in_loop(scene())


def test_image_that_expires_at_the_moment_of_choosing_is_not_run() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", 0)
        head, middle = await setup.submit("a", 1, expires_s=2), await setup.submit("a", 3)
        rear, other = await setup.submit("a", 2, expires_s=2), await setup.submit("b", 4, expires_s=2)
        setup.clock.now += 2
        await setup.device.finish()  # the device is free before any timer has run
        assert setup.device.batches == [("a", [0]), ("a", [3])]
        assert all(isinstance(task.exception(), DeadlineExceeded) for task in (head, rear, other))
        assert not middle.done()

    in_loop(scene())


@pytest.mark.parametrize("expires_s", [0, -1])
def test_image_that_has_no_time_at_all_is_not_run(expires_s: float) -> None:
    async def scene() -> None:
        setup = Setup()
        task = await setup.submit("a", 0, expires_s=expires_s)
        assert isinstance(task.exception(), DeadlineExceeded)
        assert setup.device.batches == []

    in_loop(scene())


def test_batch_holds_no_more_than_the_device_has_reserved() -> None:
    async def scene() -> None:
        setup = Setup(3, FakeDevice({"small": 9, "large": 2, "huge": 1}))
        await setup.submit("small", 0)
        for key in ("large", "huge", "small"):
            await setup.submit_all(*[(key, item) for item in range(4)])
        for _ in range(9):
            await setup.device.finish()
        assert [(key, len(items)) for key, items in setup.device.batches] == [
            ("small", 1),
            ("large", 2),
            ("large", 2),
            *[("huge", 1)] * 4,
            ("small", 3),
            ("small", 1),
        ]

    in_loop(scene())


@pytest.mark.parametrize("linger_s", [0, 1])
def test_reserve_that_raises_fails_the_oldest_of_its_key_and_the_queue_goes_on(linger_s: float) -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice({"a": 4}), linger_s=linger_s)
        unknown, known, second = await setup.submit_all(("unknown", 0), ("a", 1), ("unknown", 2))
        await setup.pass_time(linger_s)
        await setup.device.finish()
        assert isinstance(unknown.exception(), KeyError)
        assert isinstance(second.exception(), KeyError)
        assert known.result().result == "1 painted"
        later = await setup.submit("a", 3)
        await setup.pass_time(linger_s)
        await setup.device.finish()
        assert later.result().result == "3 painted"

    in_loop(scene())


def test_device_that_reserves_nothing_while_no_batch_runs_fails_the_oldest_and_the_queue_goes_on() -> None:
    async def scene() -> None:
        device = FakeDevice(parallel=0)
        setup = Setup(device=device)
        stuck = await setup.submit("a", 0)
        assert isinstance(stuck.exception(), RuntimeError)
        assert str(stuck.exception()) == "FakeDevice reserved nothing although no batch runs"
        device.parallel = 1
        later = await setup.submit("a", 1)
        await device.finish()
        assert later.result().result == "1 painted"

    in_loop(scene())


def test_device_is_asked_with_what_waits_and_the_room_that_is_left() -> None:
    async def scene() -> None:
        setup = Setup(5, FakeDevice({"a": 2, "b": 2}, parallel=2))
        await setup.submit_all(*[("a", item) for item in range(4)], ("b", 4))
        await setup.device.finish()
        assert [request for request, _ in setup.device.decided] == [
            Request("a", same_key=1, waiting=1, room=5),
            Request("a", same_key=1, waiting=1, room=4),
            Request("a", same_key=2, waiting=3, room=4),
        ]

    in_loop(scene())


def test_largest_batch_size_bounds_all_batches_on_the_device_together() -> None:
    async def scene() -> None:
        setup = Setup(3, FakeDevice({"a": 2, "b": 2}, parallel=9))
        await setup.submit_all(("a", 0), ("a", 1), ("b", 2), ("b", 3), ("b", 4), ("b", 5))
        assert setup.device.batches == [("a", [0]), ("a", [1]), ("b", [2])]
        assert setup.batcher.running == 3
        asked = len(setup.device.decided)
        await setup.device.finish(number=0)
        assert setup.device.batches[3:] == [("b", [3])]
        assert len(setup.device.decided) == asked + 1  # nothing is reserved without room
        setup.device.running[1].set_result(None)
        await setup.device.finish(number=2)
        assert setup.device.batches[4:] == [("b", [4, 5])]

    in_loop(scene())


def test_lower_largest_batch_size_starts_nothing_until_enough_has_ended() -> None:
    async def scene() -> None:
        setup = Setup(3, FakeDevice(parallel=9))
        await setup.submit_all(("a", 0), ("a", 1), ("a", 2), ("a", 3))
        setup.batcher.max_batch_size = 2
        await setup.device.finish()
        assert len(setup.device.batches) == 3
        await setup.device.finish()
        assert setup.device.batches[3:] == [("a", [3])]

    in_loop(scene())


def test_reservation_for_more_than_is_left_in_the_queue_is_run_all_the_same() -> None:
    cancelled: list[Task] = []

    class Device(FakeDevice):
        def reserve(self, key: str, same_key: int, waiting: int, room: int) -> Reservation | None:
            for task in cancelled:
                task.cancel()  # its future is cancelled at once, but it leaves the queue only in the loop's next turn
            return super().reserve(key, same_key, waiting, room)

    async def scene() -> None:
        setup = Setup(device=Device())
        tasks = await setup.submit_all(("a", 1), ("a", 2), ("a", 3))
        cancelled.append(tasks[2])
        await setup.device.finish()
        assert setup.device.decided[1] == (Request("a", same_key=2, waiting=2, room=4), 4)
        assert setup.device.batches[1:] == [("a", [2])]
        assert setup.device.reservations == []

    in_loop(scene())


def test_serial_device_runs_one_batch_at_a_time_and_is_free_again_after_a_failure() -> None:
    started: list[list[str]] = []
    free = asyncio.Event()

    async def run(key: str, items: list[str]) -> list[str | Exception]:
        started.append(items)
        await free.wait()
        return await fail_marked(key, items)

    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(SerialDevice(run), 3)
        tasks = [asyncio.ensure_future(batcher.submit("a", item)) for item in ("mark", "b", "c")]
        tasks.append(asyncio.ensure_future(batcher.submit("b", "d")))
        await settle()
        assert started == [["mark", "b", "c"]]
        later = asyncio.ensure_future(batcher.submit("a", "e"))
        await settle()
        assert len(started) == 1
        free.set()
        await settle()
        assert started == [["mark", "b", "c"], ["d"], ["e"]]
        assert [isinstance(task.exception(), ValueError) for task in tasks] == [True, True, True, False]
        assert later.result().result == "e"

    in_loop(scene())


def test_lingering_image_shares_its_batch_with_those_that_arrive_in_time() -> None:
    async def scene() -> None:
        setup = Setup(linger_s=2)
        await setup.submit_all(("a", 0), ("b", 1))
        await setup.pass_time(1.5)
        await setup.submit("a", 2)
        assert setup.device.batches == []
        await setup.pass_time(0.5)
        assert setup.device.batches == [("a", [0, 2])]

    in_loop(scene())


def test_lingering_ends_when_the_batch_is_full() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=2, linger_s=60)
        await setup.submit_all(("a", 0), ("b", 1), ("b", 2))
        assert setup.device.batches == []
        await setup.submit("a", 3)
        assert setup.device.batches == [("a", [0, 3])]
        await setup.device.finish()
        assert setup.device.batches == [("a", [0, 3]), ("b", [1, 2])]

    in_loop(scene())


def test_lingering_ends_when_the_key_fills_the_room_that_is_left() -> None:
    async def scene() -> None:
        setup = Setup(3, FakeDevice({"a": 2}, parallel=2), linger_s=60)
        await setup.submit_all(("a", 0), ("a", 1))
        assert setup.device.batches == []
        await setup.submit("a", 2)
        assert setup.device.batches == [("a", [0, 1]), ("a", [2])]

    in_loop(scene())


def test_image_that_waited_for_a_busy_device_has_lingered_already() -> None:
    async def scene() -> None:
        setup = Setup(linger_s=2)
        await setup.submit("a", 0)
        await setup.pass_time(2)
        await setup.submit("b", 1)
        await setup.pass_time(3)
        await setup.device.finish()
        assert setup.device.batches == [("a", [0]), ("b", [1])]

    in_loop(scene())


def test_lingering_image_that_is_cancelled_or_expires_does_not_shorten_the_time_of_others() -> None:
    async def scene() -> None:
        setup = Setup(linger_s=4)
        first = await setup.submit("a", 0)
        expiring = await setup.submit("b", 1, expires_s=3)
        await setup.pass_time(2)
        await setup.submit("c", 2)
        first.cancel()
        await setup.pass_time(1)
        assert isinstance(expiring.exception(), DeadlineExceeded)
        await setup.pass_time(2)
        assert setup.device.batches == []
        await setup.pass_time(1)
        assert setup.device.batches == [("c", [2])]

    in_loop(scene())


def test_batches_of_several_keys_run_at_once_if_the_device_can() -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice(parallel=2))
        tasks = await setup.submit_all(("a", 0), ("b", 1), ("c", 2), ("a", 3), ("c", 4))
        assert setup.device.batches == [("a", [0]), ("b", [1])]
        await setup.device.finish(number=1)
        assert tasks[1].result().result == "1 painted"
        assert not tasks[0].done()
        assert setup.device.batches[2:] == [("c", [2, 4])]
        await setup.device.finish(number=2)
        assert setup.device.batches[3:] == [("a", [3])]

    in_loop(scene())


def test_oldest_image_that_has_to_wait_is_not_overtaken() -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice(parallel=3, exclusive="large"))
        await setup.submit_all(("small", 0), ("small", 1), ("large", 2), ("small", 3))
        assert setup.device.batches == [("small", [0]), ("small", [1])]
        await setup.device.finish()
        assert len(setup.device.batches) == 2
        await setup.device.finish()
        assert setup.device.batches[2:] == [("large", [2])]
        await setup.device.finish()
        assert setup.device.batches[3:] == [("small", [3])]

    in_loop(scene())


def test_device_is_asked_about_a_batch_only_after_it_has_reserved_the_one_before() -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice(parallel=9))
        await asyncio.gather(*(setup.submit(key, 0) for key in "abc"))
        assert [request.room for request, _ in setup.device.decided] == [4, 3, 2]
        assert setup.device.batches == [("a", [0]), ("b", [0]), ("c", [0])]

    in_loop(scene())


def test_time_of_the_device_is_reported_once_however_many_batches_it_runs() -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice(parallel=2))
        await setup.submit("a", 0)
        await setup.pass_time(1)
        await setup.submit("b", 1)
        await setup.pass_time(2)
        assert setup.batcher.running_for_s() == 3
        await setup.device.finish(number=0)
        await setup.pass_time(4)
        assert setup.batcher.running_for_s() == 6
        await setup.device.finish()
        await setup.pass_time(8)
        await setup.submit("a", 2)
        await setup.pass_time(16)
        await setup.device.finish()
        assert [(ran_s, busy_s) for *_, ran_s, busy_s in setup.observer.batches] == [(3, 3), (6, 4), (16, 16)]

    in_loop(scene())


def test_every_image_lingers_for_its_own_time_though_the_device_can_run_more() -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice(parallel=3), linger_s=2)
        await setup.submit("a", 0)
        await setup.pass_time(1)
        await setup.submit("b", 1)
        await setup.pass_time(1)
        assert setup.device.batches == [("a", [0])]
        await setup.pass_time(1)
        assert setup.device.batches == [("a", [0]), ("b", [1])]

    in_loop(scene())


def test_observer_receives_every_batch() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", 0, pixels=10)
        setup.clock.now += 1
        await setup.submit("a", 1, pixels=20)
        setup.clock.now += 2
        await setup.submit("a", 2, pixels=30)
        await setup.device.finish()
        setup.clock.now += 4
        await setup.device.finish(ValueError("the device failed"))
        assert setup.observer.batches == [("a", 1, 10, 0, [0], 3, 3), ("a", 2, 50, 0, [2, 0], 4, 4)]

    in_loop(scene())


def test_exception_of_an_observer_is_logged_and_changes_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def on_batch(self, *_: Any) -> None:
            raise ValueError("no room for metrics")

    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(SerialDevice(fail_marked), 1, observer=Broken())
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
def test_unusual_end_of_a_batch_gives_an_error_and_the_queue_goes_on(run: Any) -> None:
    async def scene() -> None:
        batcher: Batcher[str, str, str] = Batcher(SerialDevice(run), 1)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"cancelled on the device|the end"):
                await batcher.submit("a", "first")

    in_loop(scene())


def lines_run_for(keys: int) -> int:
    """Counts the lines of the module that run for an item of each key, where every tenth is cancelled."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != batching.__file__:
            return None
        lines += event == "line"
        return trace

    async def scene() -> None:
        batcher: Batcher[int, str, str] = Batcher(SerialDevice(lambda key, items: fail_marked("", items)), 4)
        tasks = [asyncio.ensure_future(batcher.submit(key, "image", 1, 1000)) for key in range(keys)]
        await asyncio.sleep(0)
        for task in tasks[::10]:
            task.cancel()
        await asyncio.wait(tasks)
        assert batcher.waiting == batcher.waiting_pixels == batcher.running == 0

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        in_loop(scene())
    finally:
        sys.settrace(earlier)
    return lines


def test_choosing_does_not_look_at_all_waiting_images() -> None:
    assert lines_run_for(keys=400) < 2.5 * lines_run_for(keys=200)  # four times as many if it did


class Image:
    """Something that a weak reference can follow."""


@pytest.mark.slow
def test_images_are_freed_when_cancelled_expired_or_painted() -> None:
    images = [Image() for _ in range(3)]
    refs = [weakref.ref(image) for image in images]
    free = asyncio.Event()

    async def paint(key: str, items: list[Image]) -> list[str | Exception]:
        await free.wait()
        return ["painted"] * len(items)

    async def scene() -> None:
        clock = Clock()
        batcher: Batcher[str, Image, str] = Batcher(SerialDevice(paint), 4, clock)

        async def submit(expires_s: float) -> asyncio.Task[Done[str]]:
            task = asyncio.ensure_future(batcher.submit("a", images.pop(0), 1, expires_s))
            await settle()
            return task

        def is_gone(number: int) -> bool:
            gc.collect()
            return refs[number]() is None

        painted, cancelled, expired = await submit(9), await submit(9), await submit(1)
        cancelled.cancel()
        clock.now += 1
        await settle()
        assert isinstance(expired.exception(), DeadlineExceeded)
        del cancelled, expired  # their tracebacks refer to the images
        assert [is_gone(number) for number in range(3)] == [False, True, True]
        free.set()
        await settle()
        assert painted.result().result == "painted"
        assert is_gone(0)

    in_loop(scene())


@dataclass(eq=False)
class Submitted:
    """An item that was submitted, with what the model knows of it."""

    key: str
    item: Any
    pixels: int
    arrived_at: float
    expires_at: float
    task: Task
    begun: int  # batches that had started before it arrived
    older: Counter[str]  # items that waited before it, by key
    batch: int | None = None
    state: str = "waiting"  # then "running", and one of "done", "cancelled", "expired", "refused"


@dataclass(frozen=True)
class Started:
    """A batch that the model has seen start; `count` items were reserved for it."""

    key: str
    size: int
    count: int


class Queue(RuleBasedStateMachine):
    """Everything that may happen to the queue, compared with a model that says which batch must come next.

    A batch of key "c" has the device to itself. Items of key "d" cannot be run at all.
    """

    @initialize(
        max_batch_size=st.integers(1, 6),
        counts=st.fixed_dictionaries({key: st.integers(1, 5) for key in "abc"}),
        linger_s=st.sampled_from([0, 0, 0, 1.5]),
        parallel=st.sampled_from([1, 1, 2, 3]),
    )
    def open(self, max_batch_size: int, counts: dict[str, int], linger_s: float, parallel: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda *_: None)  # as in `in_loop`
        self.submitted: list[Submitted] = []
        self.max_batch_size = max_batch_size
        self.checked = 0  # decisions of the device that have been compared with the model
        self.started: list[Started] = []  # batches by number
        self.ended: list[int] = []  # batches by number, in order of their ends
        self.busy_s = 0.0

        async def make() -> Setup:
            return Setup(max_batch_size, FakeDevice(counts, parallel, exclusive="c"), linger_s)

        self.setup = self.loop.run_until_complete(make())
        self.device = self.setup.device

    def in_state(self, state: str) -> list[Submitted]:
        return [one for one in self.submitted if one.state == state]

    def room(self) -> int:
        running = [batch for number, batch in enumerate(self.started) if number not in self.ended]
        return self.max_batch_size - sum(batch.size for batch in running)

    @rule(
        key=st.sampled_from("aaabbbcccd"),
        pixels=st.integers(1, 9),
        expires_s=st.sampled_from([None, None, 0.5, 1, 3]),
        is_bad=st.booleans(),
    )
    def submit(self, key: str, pixels: int, expires_s: float | None, is_bad: bool) -> None:
        older = Counter(one.key for one in self.in_state("waiting"))
        begun = len(self.started)
        item = ValueError(len(self.submitted)) if is_bad else len(self.submitted)
        now = self.setup.clock.now
        expires_at = math.inf if expires_s is None else now + expires_s
        task = self.loop.run_until_complete(self.setup.submit(key, item, pixels, expires_s))
        self.submitted.append(Submitted(key, item, pixels, now, expires_at, task, begun, older))
        self.check()

    @precondition(lambda self: any(not one.task.done() for one in self.submitted))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.submitted if not one.task.done()]))
        one.task.cancel()
        one.state = "cancelled"
        self.loop.run_until_complete(settle())
        self.check()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 2]))
    def pass_time(self, seconds: float) -> None:
        if self.device.running:
            self.busy_s += seconds
        self.loop.run_until_complete(self.setup.pass_time(seconds))
        for one in self.in_state("waiting"):
            if one.expires_at <= self.setup.clock.now:
                one.state = "expired"
        self.check()

    @precondition(lambda self: self.device.running)
    @rule(data=st.data(), fault=st.sampled_from([None, None, None, RuntimeError("the device failed")]))
    def finish(self, data: st.DataObject, fault: Exception | None) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.device.running))), fault)

    def end(self, number: int, fault: Exception | None = None) -> None:
        ended = [one for one in self.in_state("running") if one.batch == number]
        size = len(self.device.batches[number][1])
        self.loop.run_until_complete(self.device.finish(fault, number))
        self.ended.append(number)
        for one in ended:
            one.state = "done"
            if fault is not None or isinstance(one.item, Exception):
                assert one.task.exception() is (fault or one.item)
            else:
                assert one.task.result().result == f"{one.item} painted"
                assert one.task.result().batch_size == size
        self.check()

    def check(self) -> None:
        """Compares what the device has decided since the last check with what the model expects, one by one."""
        for request, count in self.device.decided[self.checked :]:
            waiting = self.in_state("waiting")
            head = waiting[0]
            same_key = [one for one in waiting if one.key == head.key]
            assert request == Request(head.key, len(same_key), len(waiting), self.room())
            if not count:
                head.state = "refused"
                continue
            chosen = same_key[:count]
            number = len(self.started)
            assert self.device.batches[number] == (head.key, [one.item for one in chosen])
            for one in chosen:
                one.state, one.batch = "running", number
            self.started.append(Started(head.key, len(chosen), count))
        self.checked = len(self.device.decided)

    @invariant()
    def no_item_waits_beyond_the_bound(self) -> None:
        for one in self.submitted:
            if one.batch is None and one.state != "waiting":
                continue
            others = self.started[one.begun : one.batch]  # up to the last if it still waits
            for key in {batch.key for batch in others}:
                counts = [batch.count for batch in others if batch.key == key]
                assert len(counts) <= math.ceil(one.older[key] / min(counts))

    @invariant()
    def no_more_runs_than_may(self) -> None:
        running = [self.device.batches[number][0] for number in self.device.running]
        assert len(running) <= self.device.parallel
        assert "c" not in running or len(running) == 1
        assert self.room() >= 0

    @invariant()
    def every_reservation_has_been_passed_to_run(self) -> None:
        assert self.device.reservations == []
        assert len(self.device.batches) == len(self.started)
        assert len(self.device.reserved) == len(self.device.running)

    @invariant()
    def free_device_has_a_reason(self) -> None:
        waiting = self.in_state("waiting")
        if waiting and self.room() >= 1:
            head = waiting[0]
            same_key = sum(one.key == head.key for one in waiting)
            is_lingering = (
                same_key < self.room() and self.setup.clock.now - head.arrived_at < self.setup.batcher.linger_s
            )
            assert is_lingering or (head.key != "d" and self.device.is_full_for(head.key))

    @invariant()
    def every_item_that_has_left_has_its_outcome(self) -> None:
        for one in self.submitted:
            assert one.task.done() == (one.state not in ("waiting", "running"))
            assert one.task.cancelled() == (one.state == "cancelled")
            if one.state == "expired":
                assert isinstance(one.task.exception(), DeadlineExceeded)
            if one.state == "refused":
                assert isinstance(one.task.exception(), KeyError)

    @invariant()
    def counters_are_right(self) -> None:
        batcher, device = self.setup.batcher, self.device
        waiting = self.in_state("waiting")
        assert batcher.waiting == len(waiting)
        assert batcher.waiting_pixels == sum(one.pixels for one in waiting)
        assert batcher.running == len([one for one in self.submitted if one.batch in device.running])
        observed = [(key, size, pixels) for key, size, pixels, *_ in self.setup.observer.batches]
        assert observed == [
            (
                self.started[number].key,
                self.started[number].size,
                sum(one.pixels for one in self.submitted if one.batch == number),
            )
            for number in self.ended
        ]
        if not device.running:
            assert sum(busy_s for *_, busy_s in self.setup.observer.batches) == self.busy_s

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            for _ in range(2 * len(self.submitted)):
                if self.device.running:
                    self.end(min(self.device.running))
                elif self.in_state("waiting"):
                    self.pass_time(self.setup.batcher.linger_s)
            assert all(one.task.done() for one in self.submitted)
            assert asyncio.all_tasks(self.loop) == set()  # the worker has ended too
        finally:
            self.loop.close()


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, report_multiple_bugs=False)
