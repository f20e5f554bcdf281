"""The background class of the queue: foreground images first, and neither class starves."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from devices import Clock, FakeDevice, RecordingObserver, in_loop, settle
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_app.errors import DeadlineExceeded
from serve_app.queueing.batching import Batcher
from serve_app.queueing.waiting import Done

Task = asyncio.Task[Done[str]]
AFTER_S = 10.0


class Setup:
    """A batcher whose background ages after ten seconds, over a device and a clock that the test controls."""

    def __init__(self, max_batch_size: int = 4, device: FakeDevice | None = None, linger_s: float = 0) -> None:
        self.clock = Clock()
        self.device = device or FakeDevice()
        self.observer = RecordingObserver()
        self.batcher: Batcher[str, Any, str] = Batcher(
            self.device,
            max_batch_size,
            self.clock,
            linger_s=linger_s,
            background_after_s=AFTER_S,
            observer=self.observer,
        )

    async def submit(self, key: str, item: Any, background: bool = False, expires_s: float | None = None) -> Task:
        task = asyncio.ensure_future(self.batcher.submit(key, item, 10, expires_s, background))
        await settle()
        return task

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        await settle()


def test_background_waits_for_every_foreground_image_and_then_fills_batches() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", "running")
        for number in range(3):
            await setup.submit("b", f"job {number}", background=True)
        await setup.submit("a", 1)
        await setup.submit("c", 2)
        for _ in range(3):
            await setup.device.finish()
        assert setup.device.batches[1:] == [("a", [1]), ("c", [2]), ("b", ["job 0", "job 1", "job 2"])]

    in_loop(scene())


def test_background_fills_a_batch_of_its_key_if_nobody_else_waits() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=3)
        await setup.submit("a", "running")
        for number in range(3):
            await setup.submit("b", f"job {number}", background=True)
        await setup.submit("b", 1)
        await setup.device.finish()
        assert setup.device.batches[1:] == [("b", [1, "job 0", "job 1"])]
        assert setup.device.decided[-1][0].same_key == 4
        assert setup.device.decided[-1][0].waiting == 1  # the device is not divided for the sake of jobs
        await setup.submit("c", 2)
        await setup.submit("b", 3)
        await setup.device.finish()
        assert setup.device.batches[2:] == [("c", [2])]

    in_loop(scene())


def test_background_takes_no_room_in_a_batch_while_another_foreground_image_waits() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", "running")
        await setup.submit("b", "job", background=True)
        await setup.submit("b", 1)
        await setup.submit("c", 2)
        await setup.device.finish()
        assert setup.device.batches[1:] == [("b", [1])]

    in_loop(scene())


def test_aged_image_goes_first_alone_but_for_foreground_images_of_its_key() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", "running")
        for number in range(3):
            await setup.submit("b", f"job {number}", background=True)
        await setup.pass_time(AFTER_S)
        await setup.submit("a", 1)
        await setup.submit("b", 2)
        for _ in range(4):
            await setup.device.finish()
        assert setup.device.batches[1:] == [("b", ["job 0", 2]), ("a", [1]), ("b", ["job 1", "job 2"])]

    in_loop(scene())


def test_foreground_image_is_overtaken_once_only() -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=1)
        await setup.submit("a", "running")
        for number in range(4):
            await setup.submit("b", f"job {number}", background=True)
        await setup.pass_time(AFTER_S)
        for number in range(3):
            await setup.submit("a", number)
        for _ in range(4):
            await setup.device.finish()
        assert [items for _, items in setup.device.batches[1:]] == [["job 0"], [0], [1], [2]]
        await setup.submit("a", 3)  # it has been overtaken by none yet
        await setup.device.finish()
        await setup.device.finish()
        assert [items for _, items in setup.device.batches[5:]] == [["job 1"], [3]]

    in_loop(scene())


def test_aged_image_that_does_not_fit_is_not_overtaken_by_the_foreground() -> None:
    async def scene() -> None:
        setup = Setup(device=FakeDevice(parallel=2, exclusive="c"))
        await setup.submit("a", "running")
        await setup.submit("c", "large job", background=True)
        await setup.pass_time(AFTER_S)
        await setup.submit("a", 1)
        assert len(setup.device.batches) == 1
        await setup.device.finish()
        assert setup.device.batches[1] == ("c", ["large job"])

    in_loop(scene())


def test_cancelled_and_expired_background_images_are_never_run() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", "running")
        cancelled = await setup.submit("b", "cancelled", background=True)
        expired = await setup.submit("b", "expired", background=True, expires_s=2)
        assert (setup.batcher.waiting, setup.batcher.waiting_pixels, setup.batcher.background_pixels) == (2, 20, 20)
        cancelled.cancel()
        await setup.pass_time(2)
        assert isinstance(expired.exception(), DeadlineExceeded)
        assert (setup.batcher.waiting, setup.batcher.waiting_pixels, setup.batcher.background_pixels) == (0, 0, 0)
        await setup.device.finish()
        assert len(setup.device.batches) == 1

    in_loop(scene())


def test_observer_learns_which_pixels_are_of_the_background() -> None:
    async def scene() -> None:
        setup = Setup()
        await setup.submit("a", "running", background=True)
        await setup.submit("a", "job", background=True)
        await setup.submit("a", 1)
        assert setup.batcher.running_for_s() == 0
        setup.clock.now += 3
        assert (setup.batcher.running_for_s(), setup.batcher.running_for_s(is_foreground=True)) == (3, 0)
        await setup.device.finish()
        setup.clock.now += 1
        assert setup.batcher.running_for_s(is_foreground=True) == 1
        await setup.device.finish()
        figures = [(pixels, background, waits) for _, _, pixels, background, waits, *_ in setup.observer.batches]
        assert figures == [(10, 10, []), (20, 10, [3])]

    in_loop(scene())


@pytest.mark.parametrize("background", [False, True])
def test_image_of_either_class_lingers_for_others_of_its_key(background: bool) -> None:
    async def scene() -> None:
        setup = Setup(max_batch_size=2, linger_s=2)
        await setup.submit("a", 1, background)
        assert setup.device.batches == []
        await setup.submit("a", 2, background)
        assert setup.device.batches == [("a", [1, 2])]

    in_loop(scene())


@dataclass(eq=False)
class Submitted:
    """An item, with what the model knows of it."""

    key: str
    is_background: bool
    arrived_at: float
    task: Task
    number: int
    batch: int | None = None
    aged_at: int | None = None  # batches that had started when it became old
    ahead: int = 0  # background items that waited before it
    is_gone: bool = False

    @property
    def is_waiting(self) -> bool:
        return self.batch is None and not self.is_gone


class TwoClasses(RuleBasedStateMachine):
    """Whatever arrives in whatever order, each class keeps what it was promised."""

    @initialize(
        max_batch_size=st.integers(1, 4), counts=st.fixed_dictionaries({key: st.integers(1, 4) for key in "ab"})
    )
    def open(self, max_batch_size: int, counts: dict[str, int]) -> None:
        self.loop = asyncio.new_event_loop()
        self.items: list[Submitted] = []
        self.overtaken: dict[int, int] = {}  # foreground item: batches of the background that went before it
        self.most_foreground = 0
        self.seen = 0

        async def make() -> Setup:
            return Setup(max_batch_size, FakeDevice(counts))

        self.setup = self.loop.run_until_complete(make())

    def waiting(self, is_background: bool) -> list[Submitted]:
        return [item for item in self.items if item.is_waiting and item.is_background == is_background]

    @rule(key=st.sampled_from("aab"), is_background=st.booleans())
    def submit(self, key: str, is_background: bool) -> None:
        number, now = len(self.items), self.setup.clock.now
        ahead = len(self.waiting(is_background=True))
        task = self.loop.run_until_complete(self.setup.submit(key, number, is_background))
        self.items.append(Submitted(key, is_background, now, task, number, ahead=ahead))
        self.look()

    @precondition(lambda self: any(item.is_waiting for item in self.items))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from([item for item in self.items if item.is_waiting]))
        item.task.cancel()
        item.is_gone = True
        self.loop.run_until_complete(settle())
        self.look()

    @rule(seconds=st.sampled_from([1, 6, AFTER_S]))
    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(self.setup.pass_time(seconds))
        self.look()

    @precondition(lambda self: self.setup.device.running)
    @rule()
    def finish(self) -> None:
        self.loop.run_until_complete(self.setup.device.finish())
        self.look()

    def look(self) -> None:
        """Sees at most one more batch: the device runs one at a time."""
        batches = self.setup.device.batches
        assert len(batches) <= self.seen + 1
        for _, numbers in batches[self.seen :]:
            batch = [self.items[number] for number in numbers]
            left = [item for item in self.waiting(is_background=False) if item not in batch]
            jobs = [item for item in batch if item.is_background]
            if left and jobs:  # then it is one aged job that goes first
                assert jobs == [batch[0]]
                assert self.setup.clock.now - batch[0].arrived_at >= AFTER_S
                for item in left:
                    self.overtaken[item.number] = self.overtaken.get(item.number, 0) + 1
            for item in batch:
                item.batch = self.seen
        self.seen = len(batches)
        self.most_foreground = max(self.most_foreground, len(self.waiting(is_background=False)))
        for item in self.waiting(is_background=True):
            if item.aged_at is None and self.setup.clock.now - item.arrived_at >= AFTER_S:
                item.aged_at = self.seen

    @invariant()
    def foreground_image_is_overtaken_once_at_most(self) -> None:
        assert all(times <= 1 for times in self.overtaken.values())

    @invariant()
    def aged_image_starts_in_time_whatever_the_foreground(self) -> None:
        for item in self.items:
            if item.aged_at is not None and not item.is_gone:
                started = self.seen if item.batch is None else item.batch
                assert started - item.aged_at <= (item.ahead + 1) * (self.most_foreground + 1)

    @invariant()
    def each_class_and_key_is_run_in_order(self) -> None:
        for is_background in (False, True):
            for key in "ab":
                mine = [item for item in self.items if (item.key, item.is_background) == (key, is_background)]
                started = [item.batch for item in mine if item.batch is not None]
                assert started == sorted(started)
                waits = [item.is_waiting for item in mine if not item.is_gone]
                assert waits == sorted(waits)

    @invariant()
    def free_device_runs_what_waits(self) -> None:
        assert self.setup.device.running or not any(item.is_waiting for item in self.items)

    @invariant()
    def counters_are_right(self) -> None:
        batcher = self.setup.batcher
        jobs, others = len(self.waiting(is_background=True)), len(self.waiting(is_background=False))
        assert (batcher.waiting, batcher.background_pixels) == (jobs + others, 10 * jobs)
        assert batcher.waiting_pixels == 10 * (jobs + others)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            for _ in range(2 * len(self.items)):
                if self.setup.device.running:
                    self.finish()
            assert all(item.task.done() for item in self.items)
        finally:
            self.loop.close()


TestTwoClasses = TwoClasses.TestCase
TestTwoClasses.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, report_multiple_bugs=False)
