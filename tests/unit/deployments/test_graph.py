"""One photograph through the deployments: its size before it is decoded, its deadline, and what is tried again."""

import asyncio
from typing import Any, cast

import pytest

from serve_app.deployments import graph as module
from serve_app.deployments.graph import Graph, most_painted_pixels
from serve_app.deployments.steps import Stylized
from serve_app.errors import DeadlineExceeded, Lost, TooBusy, TooManyPixels
from serve_app.frames import Size, StylizeRequest
from serve_app.images.header import ImageHeader

SMALL = Size(60, 80)
PAINTED = Stylized(b"jpeg", SMALL, SMALL, {})


@pytest.mark.parametrize(
    ("stored", "pixels"), [(Size(60, 80), 60 * 80), (Size(6000, 8000), 768 * 1024), (None, 1024**2)]
)
def test_photograph_is_admitted_by_its_header_and_at_the_worst_case_without_one(
    stored: Size | None, pixels: int
) -> None:
    request = StylizeRequest("toon", 1024, 4, "jpeg")
    assert most_painted_pixels(ImageHeader("JPEG", stored), request) == pixels


@pytest.mark.parametrize(
    ("box", "pixels"), [(Size(600, 800), 600 * 800), (Size(800, 600), 600 * 800), (Size(30, 4000), 30 * 40)]
)
def test_photograph_in_a_box_is_admitted_at_the_worst_of_both_ways_up(box: Size, pixels: int) -> None:
    request = StylizeRequest("toon", 1024, 1, "jpeg", box=box)
    assert most_painted_pixels(ImageHeader("JPEG", Size(6000, 8000)), request) == pixels


class Codec:
    """A callee that is lost so many times before it paints."""

    def __init__(self, losses: int, takes_s: float = 0.0) -> None:
        self.losses = losses
        self.takes_s = takes_s
        self.are_small: list[bool] = []

    async def call(self, method: str, *_: object, is_small: bool, trace: str | None) -> Stylized:
        assert method == "stylize"
        self.are_small.append(is_small)
        await asyncio.sleep(self.takes_s)
        if len(self.are_small) <= self.losses:
            raise Lost("a process has died", retry_after_s=5)
        return PAINTED


class Unconnected:
    def options(self, **_: object) -> None:
        pass


def stylize(codec: Codec, data: bytes = b"photo", stored: Size | None = SMALL, timeout_s: float = 30) -> Stylized:
    graph = Graph(cast("Any", Unconnected()))
    graph._codec = cast("Any", codec)
    request = StylizeRequest("toon", 1024, 4, "jpeg", timeout_s=timeout_s)
    return asyncio.run(graph.stylize(data, ImageHeader("JPEG", stored), request))


def test_photograph_that_was_lost_is_painted_again() -> None:
    codec = Codec(losses=2)
    assert stylize(codec) is PAINTED
    assert len(codec.are_small) == 3


def test_photograph_that_was_lost_three_times_is_refused_with_a_time_to_come_back() -> None:
    codec = Codec(losses=3)
    with pytest.raises(Lost) as caught:
        stylize(codec)
    assert len(codec.are_small) == 3
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5)


def test_deadline_counts_from_the_first_attempt() -> None:
    with pytest.raises(DeadlineExceeded):
        stylize(Codec(losses=2, takes_s=0.04), timeout_s=0.1)


@pytest.mark.parametrize(
    ("upload_bytes", "stored", "is_small"),
    [
        (2**20, Size(960, 1024), True),
        (2**20 + 1, Size(960, 1024), False),  # the upload itself is large
        (9, Size(1024, 1024), False),  # a PNG with transparency could reach the limit of a message
        (9, None, False),
    ],
)
def test_message_is_small_only_if_neither_upload_nor_painting_can_be_large(
    upload_bytes: int, stored: Size | None, is_small: bool
) -> None:
    codec = Codec(losses=0)
    stylize(codec, bytes(upload_bytes), stored)
    assert codec.are_small == [is_small]


class Checking:
    """A callee that answers what a test wants of headers."""

    def __init__(self, refusal: Exception | None = None, takes_s: float = 0.0) -> None:
        self.refusal = refusal
        self.takes_s = takes_s
        self.asked: list[Size | None] = []

    async def call(self, method: str, header: ImageHeader, is_small: bool) -> None:
        assert method == "check"
        self.asked.append(header.stored)
        await asyncio.sleep(self.takes_s)
        if self.refusal is not None:
            raise self.refusal


def check(codec: Checking, *sizes: Size) -> None:
    async def check_all() -> None:
        graph = Graph(cast("Any", Unconnected()))
        graph._codec = cast("Any", codec)
        for size in sizes:
            await graph.check(ImageHeader("JPEG", size))

    asyncio.run(check_all())


def test_the_codec_is_asked_of_a_header_only_if_it_is_the_largest_yet() -> None:
    codec = Checking()
    check(codec, Size(60, 80), Size(50, 80), Size(80, 60), Size(90, 80))
    assert codec.asked == [Size(60, 80), Size(90, 80)]


def test_a_photograph_that_is_too_large_for_the_codec_is_refused() -> None:
    with pytest.raises(TooManyPixels):
        check(Checking(TooManyPixels("Too large.")), Size(60, 80))


@pytest.mark.parametrize("codec", [Checking(takes_s=60), Checking(Lost("gone")), Checking(TooBusy("Later."))])
def test_a_codec_that_does_not_answer_keeps_no_job_from_being_accepted(
    monkeypatch: pytest.MonkeyPatch, codec: Checking
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    check(codec, Size(60, 80), Size(60, 80))
    assert len(codec.asked) == 2  # its silence is no answer
