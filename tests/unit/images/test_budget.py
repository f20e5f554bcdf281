"""The byte budget: who is admitted, and in which order."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from serve_app.images.budget import ByteBudget

TOTAL = 800  # 100 of it are kept for requests of at most 100


class Visitors:
    """Tasks that reserve bytes by name, and leave when they are told to."""

    def __init__(self) -> None:
        self.budget = ByteBudget(TOTAL)
        self.inside: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.doors: dict[str, asyncio.Event] = {}

    async def come(self, **counts: int) -> None:
        for name, count in counts.items():
            self.doors[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self.stay(name, count))
        await settle()

    async def stay(self, name: str, count: int) -> None:
        async with self.budget.reserve(count):
            self.inside.append(name)
            await self.doors[name].wait()
            self.inside.remove(name)

    async def leave(self, *names: str) -> None:
        for name in names:
            self.doors[name].set()
        await settle()

    async def give_up(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def test_large_requests_are_served_in_the_order_of_their_coming() -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(first=400, second=400, third=200)
        assert visitors.inside == ["first"]  # the third would fit, but the second is before it
        await visitors.leave("first")
        assert visitors.inside == ["second", "third"]

    run(scene())


def test_small_request_does_not_wait_for_large_ones() -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(held=700, waiting=700, small=60)
        assert visitors.inside == ["held", "small"]
        await visitors.come(another=60)
        assert visitors.inside == ["held", "small"]  # together they would take more than is kept for them
        await visitors.leave("small")
        assert visitors.inside == ["held", "another"]

    run(scene())


def test_small_requests_may_use_all_that_no_large_one_wants() -> None:
    async def scene() -> None:
        visitors = Visitors()
        names = {f"small{i}": 100 for i in range(9)}
        await visitors.come(**names)
        assert visitors.inside == list(names)[:8]

    run(scene())


def test_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(**{f"small{i}": 100 for i in range(4)})
        await visitors.come(large=700, late=100)
        assert "large" not in visitors.inside
        assert "late" not in visitors.inside
        await visitors.leave("small0", "small1", "small2")
        assert visitors.inside == ["small3", "large"]

    run(scene())


def test_who_gives_up_while_waiting_leaves_the_line() -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(held=500, waiting=700, behind=200)
        await visitors.give_up("waiting")
        assert visitors.inside == ["held", "behind"]
        await visitors.leave("held", "behind")
        await visitors.come(whole=700, more=200)
        assert visitors.inside == ["whole"]  # neither too much nor too little is free again

    run(scene())


def test_who_gives_up_as_it_is_admitted_gives_its_bytes_back() -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(held=700, waiting=700)
        visitors.doors["held"].set()
        while visitors.budget._large.waiting:
            await asyncio.sleep(0)
        assert "waiting" not in visitors.inside
        await visitors.give_up("waiting")
        await visitors.come(last=700)
        assert visitors.inside == ["last"]

    run(scene())


@pytest.mark.parametrize("count", [701, 5000])
def test_request_for_more_than_there_is_is_admitted_when_no_other_large_one_is(count: int) -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(small=50, held=150, giant=count)
        assert visitors.inside == ["small", "held"]
        await visitors.leave("held")
        assert visitors.inside == ["small", "giant"]

    run(scene())


def test_budget_can_be_changed_while_requests_wait() -> None:
    async def scene() -> None:
        visitors = Visitors()
        await visitors.come(a=90, b=600, c=90)
        visitors.budget.total_bytes = 160
        await visitors.leave("b")
        await visitors.leave("a")
        assert visitors.inside == ["c"]

    run(scene())
