"""Taking bodies in: what they take together, whose share it is, and that it is all given back."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from serve_app.errors import SlowUpload, TooBusy, TooManyBytes
from serve_app.settings import MIB, GuardSettings
from serve_app.web.intake import Body, ClientGone, Intake, take_in


def intake(**settings: object) -> Intake:
    return Intake(GuardSettings.model_validate(settings), lambda: 7)


class Sender:
    """A client that sends these pieces, then nothing more or a disconnect."""

    def __init__(self, pieces: Iterable[bytes], ends: bool = True, leaves: bool = False) -> None:
        self.messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if ends:
            self.messages.append({"type": "http.request", "body": b"", "more_body": False})
        if leaves:
            self.messages.append({"type": "http.disconnect"})

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)


async def read_all(body: Body) -> bytes:
    data = b""
    while not body.is_read:
        data += await body.read()
    return data


def assert_nothing_held(holder: Intake) -> None:
    assert (holder.memory_bytes, dict(holder.disk), dict(holder.uploads)) == (0, {}, {})


@given(st.lists(st.integers(0, 900_000), max_size=6))
def test_a_body_comes_out_as_it_went_in(sizes: list[int]) -> None:
    async def scene() -> None:
        holder = intake()
        pieces = [os.urandom(size) for size in sizes]
        with holder.place("a", 0) as body:
            await take_in(body, Sender(pieces).receive, 10 * MIB)
            assert body.size == sum(sizes)
            assert holder.memory_bytes <= MIB + 900_000
            assert await read_all(body) == b"".join(pieces)
            assert (holder.memory_bytes, dict(holder.disk)) == (0, {})  # it is Serve's now
        assert_nothing_held(holder)

    asyncio.run(scene())


def test_a_long_body_lies_in_an_unlinked_file(tmp_path: Path) -> None:
    async def scene() -> None:
        holder = intake(spool_dir=tmp_path)
        with holder.place("a", 0) as body:
            await take_in(body, Sender([bytes(MIB)] * 5).receive, 10 * MIB)
            assert holder.disk["a"] >= 4 * MIB
            assert holder.memory_bytes <= MIB
            assert list(tmp_path.iterdir()) == []
        assert_nothing_held(holder)

    asyncio.run(scene())


def test_bodies_go_to_the_disk_early_when_the_memory_is_full() -> None:
    async def scene() -> None:
        holder = intake(memory_bytes=100_000)
        with holder.place("a", 0) as body:
            await take_in(body, Sender([bytes(60_000)] * 3).receive, MIB)
            assert holder.memory_bytes <= 100_000
            assert len(await read_all(body)) == 180_000

    asyncio.run(scene())


def test_a_body_over_its_limit_is_cut_off() -> None:
    async def scene() -> None:
        holder = intake()
        sender = Sender([bytes(1000)] * 50)
        with pytest.raises(TooManyBytes) as refusal, holder.place("a", 0) as body:
            await take_in(body, sender.receive, 10_000)
        assert (refusal.value.limit, refusal.value.actual) == (10_000, 11_000)
        assert len(sender.messages) == 40  # nothing was read beyond
        assert_nothing_held(holder)

    asyncio.run(scene())


def test_a_client_that_leaves_gives_its_place_back() -> None:
    async def scene() -> None:
        holder = intake()
        with pytest.raises(ClientGone), holder.place("a", 0) as body:
            await take_in(body, Sender([bytes(2 * MIB)], ends=False, leaves=True).receive, 10 * MIB)
        assert_nothing_held(holder)

    asyncio.run(scene())


def test_there_is_no_place_beyond_the_disk_and_a_refusal_says_when() -> None:
    async def scene() -> None:
        holder = intake(disk_bytes=10 * MIB)
        with pytest.raises(TooBusy) as refusal, holder.place("a", 11 * MIB):  # before anything is read
            raise AssertionError
        assert refusal.value.retry_after_s == 7
        with pytest.raises(TooBusy), holder.place("a", 0) as body:  # what comes without a length is cut off
            await take_in(body, Sender([bytes(MIB)] * 20).receive, 30 * MIB)
        assert_nothing_held(holder)

    asyncio.run(scene())


def test_a_full_disk_is_a_refusal(tmp_path: Path) -> None:
    async def scene() -> None:
        holder = intake(spool_dir=tmp_path / "missing")
        with pytest.raises(TooBusy), holder.place("a", 0) as body:
            await take_in(body, Sender([bytes(MIB)] * 3).receive, 30 * MIB)
        assert_nothing_held(holder)

    asyncio.run(scene())


def test_one_client_leaves_places_for_others() -> None:
    async def scene() -> None:
        holder = intake(max_uploads=10)
        places = [holder.place("greedy", 0) for _ in range(8)]
        for place in places:
            place.__enter__()
        with pytest.raises(TooBusy), holder.place("greedy", 0):
            raise AssertionError
        with holder.place("modest", 0):
            pass
        for place in places:
            place.__exit__(None, None, None)
        assert_nothing_held(holder)

    asyncio.run(scene())


def slow(**settings: object) -> Intake:
    return intake(**({"rate_window_s": 0.2, "min_bytes_per_s": 1000, "body_timeout_s": 1} | settings))


def test_a_body_that_stalls_or_drips_is_given_up() -> None:
    async def drip() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def scene() -> None:
        for receive in (Sender([bytes(100)], ends=False).receive, drip):
            holder = slow()
            with pytest.raises(SlowUpload) as refusal, holder.place("a", 0) as body:
                await take_in(body, receive, MIB)
            assert refusal.value.unit == "bytes per second"
            assert_nothing_held(holder)

    asyncio.run(scene())


def test_a_body_that_begins_well_and_stalls_later_is_given_up() -> None:
    async def scene() -> None:
        holder = slow()
        with pytest.raises(SlowUpload), holder.place("a", 0) as body:
            await take_in(body, Sender([bytes(500_000)], ends=False).receive, MIB)

    asyncio.run(scene())


def test_a_body_that_is_fast_enough_may_take_many_windows_but_not_for_ever() -> None:
    async def scene() -> None:
        async def steady() -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": bytes(200), "more_body": True}

        holder = slow()
        with pytest.raises(SlowUpload) as refusal, holder.place("a", 0) as body:
            await take_in(body, steady, MIB)
        assert refusal.value.unit == "seconds"

    asyncio.run(scene())
