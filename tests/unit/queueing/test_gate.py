"""The gate: its bounds, whose turn it is, and what happens to those who give up."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serve_app.queueing.gate import FairGate


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Requests before a gate; the names of those that entered, in order."""

    def __init__(self, gate: FairGate) -> None:
        self.gate = gate
        self.entered: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, name: str, client: str, size: int) -> None:
        async def enter() -> None:
            await self.gate.acquire(client, size)
            self.entered.append(name)

        self.tasks[name] = asyncio.create_task(enter())
        await settled()

    async def leave(self, size: int, seconds: float = 1.0) -> None:
        self.gate.release(size, seconds)
        await settled()


def test_bounds_hold_and_the_first_to_come_enter_first() -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=2, max_bytes=100))
        for name in "abc":
            await crowd.arrive(name, "one", 10)
        assert crowd.entered == ["a", "b"]
        await crowd.leave(10)
        assert crowd.entered == ["a", "b", "c"]
        assert (crowd.gate.inside, crowd.gate.bytes_inside, crowd.gate.waiting) == (2, 20, 0)

    asyncio.run(scene())


def test_bytes_bound_what_is_inside_and_a_larger_request_enters_alone() -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=9, max_bytes=100))
        await crowd.arrive("a", "one", 60)
        await crowd.arrive("huge", "one", 500)
        await crowd.arrive("small", "one", 10)  # does not overtake
        assert crowd.entered == ["a"]
        await crowd.leave(60)
        assert crowd.entered == ["a", "huge"]
        await crowd.leave(500)
        assert crowd.entered == ["a", "huge", "small"]

    asyncio.run(scene())


def test_clients_take_turns() -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=1, max_bytes=100))
        for name in ("a1", "a2", "a3", "a4"):
            await crowd.arrive(name, "a", 1)
        await crowd.arrive("b1", "b", 1)
        for _ in range(4):
            await crowd.leave(1)
        assert crowd.entered == ["a1", "a2", "b1", "a3", "a4"]

    asyncio.run(scene())


def test_one_that_gives_up_holds_nobody_up() -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=9, max_bytes=100))
        await crowd.arrive("a", "one", 90)
        await crowd.arrive("large", "one", 50)
        await crowd.arrive("small", "two", 5)
        crowd.tasks["large"].cancel()
        await settled()
        assert crowd.entered == ["a", "small"]
        assert crowd.gate.waiting == 0

    asyncio.run(scene())


def test_one_that_gives_up_at_the_moment_it_is_let_in_leaves_again() -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=1, max_bytes=100))
        await crowd.arrive("a", "one", 1)
        await crowd.arrive("b", "one", 1)
        crowd.gate.release(1, 1.0)
        crowd.tasks["b"].cancel()
        await settled()
        assert (crowd.gate.inside, crowd.gate.waiting) == (0, 0)

    asyncio.run(scene())


def test_retry_after_follows_how_long_others_were_inside() -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=1, max_bytes=100))
        for number in range(50):
            await crowd.arrive(str(number), "one", 1)
            await crowd.leave(1, 10.0)
        for number in range(4):
            await crowd.arrive(f"late {number}", "one", 1)
        assert crowd.gate.retry_after_s == 40  # three wait, and the one who asks

    asyncio.run(scene())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 120), st.booleans()), max_size=40), st.data())
def test_nothing_is_lost_and_no_bound_broken(arrivals: list[tuple[str, int, bool]], data: Any) -> None:
    async def scene() -> None:
        crowd = Crowd(FairGate(max_requests=3, max_bytes=100))
        sizes: dict[str, int] = {}
        left: set[str] = set()
        for number, (client, size, gives_up) in enumerate(arrivals):
            sizes[str(number)] = size
            await crowd.arrive(str(number), client, size)
            if gives_up and str(number) not in crowd.entered:
                crowd.tasks[str(number)].cancel()
                await settled()
            inside = [name for name in crowd.entered if name not in left]
            assert len(inside) <= 3
            assert sum(sizes[name] for name in inside) <= 100 or len(inside) == 1
            if inside and data.draw(st.booleans()):
                left.add(inside[0])
                await crowd.leave(sizes[inside[0]])
        while inside := [name for name in crowd.entered if name not in left]:
            left.add(inside[0])
            await crowd.leave(sizes[inside[0]])
        given_up = {name for name, task in crowd.tasks.items() if task.cancelled()}
        assert left | given_up == set(sizes)
        assert (crowd.gate.inside, crowd.gate.bytes_inside, crowd.gate.waiting) == (0, 0, 0)

    asyncio.run(scene())
