"""Requests that take turns."""

import asyncio

import pytest

from serve_app.errors import TooBusy
from serve_app.web.turns import Turns


def test_so_many_have_a_turn_so_many_wait_and_the_others_are_refused() -> None:
    turns = Turns(at_once=2, waiting=1, refusal="Too many.")
    inside = most = 0
    may_go_on = asyncio.Event()

    async def fetch() -> None:
        nonlocal inside, most
        async with turns.turn():
            inside += 1
            most = max(most, inside)
            await may_go_on.wait()
            inside -= 1

    async def scene() -> None:
        held = [asyncio.create_task(fetch()) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(TooBusy) as caught:
            await fetch()
        assert (caught.value.status, caught.value.retry_after_s) == (429, 3)
        held[2].cancel()  # it waits; its place is free
        await asyncio.sleep(0.01)
        held.append(asyncio.create_task(fetch()))
        may_go_on.set()
        await asyncio.gather(*held[:2], held[3])
        assert most == 2
        await fetch()

    asyncio.run(scene())
