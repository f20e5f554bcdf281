"""One photograph through the deployments: its size before it is decoded, its deadline, and what is tried again."""

import asyncio
from typing import Any, cast

import pytest

from serve_app.deployments.graph import Graph, most_painted_pixels
from serve_app.deployments.steps import Stylized
from serve_app.errors import DeadlineExceeded, Lost
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


class Codec:
    """A callee that is lost so many times before it paints."""

    def __init__(self, losses: int, takes_s: float = 0.0) -> None:
        self.losses = losses
        self.takes_s = takes_s
        self.are_small: list[bool] = []

    async def call(self, method: str, *_: object, is_small: bool) -> Stylized:
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
