import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serve_app.batching import Batcher, Done

Batch = tuple[str, list[Any]]


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Device:
    """Runs a batch until a test finishes it. An item that is an exception is its own outcome."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.is_busy = False
        self._finish = asyncio.Event()

    async def run(self, key: str, items: list[Any]) -> list[Any]:
        self.batches.append((key, items))
        self.is_busy = True
        await self._finish.wait()
        self._finish.clear()
        self.is_busy = False
        return [item if isinstance(item, Exception) else f"{item} painted" for item in items]

    async def finish(self) -> None:
        """Ends the batch that runs now, and lets the next one start."""
        self._finish.set()
        await settle()


async def settle() -> None:
    """Lets everything run that can run without the device."""
    for _ in range(10):
        await asyncio.sleep(0)


class Desk:
    """A batcher over a device and a clock, all in a test's hand."""

    def __init__(self, max_batch_size: int = 4) -> None:
        self.clock = Clock()
        self.device = Device()
        self.batcher: Batcher[str, Any, str] = Batcher(self.device.run, max_batch_size, self.clock)

    async def submit(self, key: str, item: Any) -> "asyncio.Task[Done[str]]":
        task = asyncio.ensure_future(self.batcher.submit(key, item))
        await settle()
        return task

    async def submit_all(self, *orders: tuple[str, Any]) -> list["asyncio.Task[Done[str]]"]:
        return [await self.submit(key, item) for key, item in orders]


def in_loop(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        # A worker that died is logged when it is collected, perhaps while pytest parses a failed test's source; the
        # log parses source too, and Python 3.11 answers that nesting with a SystemError that ends the whole session.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await asyncio.wait_for(scene, 10)  # a hang is a failure, not a stuck test run

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


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abc")),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.none()),
    ),
    max_size=40,
)


@given(steps=STEPS, max_batch_size=st.integers(1, 5))
def test_nothing_is_lost_doubled_mixed_or_overtaken(steps: list[tuple[str, Any]], max_batch_size: int) -> None:
    async def scene() -> None:
        desk = Desk(max_batch_size)
        orders: list[tuple[str, int, asyncio.Task[Done[str]]]] = []
        cancelled_waiting = set()
        for step, argument in steps:
            if step == "submit":
                orders.append((argument, len(orders), await desk.submit(argument, len(orders))))
            elif step == "cancel" and argument < len(orders):
                started = {item for _, items in desk.device.batches for item in items}
                if orders[argument][2].cancel() and argument not in started:
                    cancelled_waiting.add(argument)
                await settle()
            elif step == "finish" and desk.device.is_busy:
                await desk.device.finish()
        while any(not task.done() for *_, task in orders):
            await desk.device.finish()

        ran: dict[str, list[int]] = defaultdict(list)
        for key, items in desk.device.batches:
            assert 1 <= len(items) <= max_batch_size
            ran[key] += items
        wanted: dict[str, list[int]] = defaultdict(list)
        for key, item, task in orders:
            if item not in cancelled_waiting:
                wanted[key].append(item)
            assert task.cancelled() or task.result().result == f"{item} painted"
        assert ran == wanted

    in_loop(scene())
