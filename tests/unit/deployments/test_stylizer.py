"""The Stylizer with its queue and its engine, without Ray: frames that share a batch, and batches side by side."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.deployments import stylizer as module
from serve_app.deployments.steps import Painted
from serve_app.deployments.stylizer import Key, Stylizer
from serve_app.engine.memory import MemoryModel
from serve_app.engine.precision import Choice
from serve_app.engine.stylist import Stylist
from serve_app.errors import RequestError, UnknownStyle
from serve_app.frames import Frame, Precision, Size
from serve_app.jobs.works import painter_name
from serve_app.queueing.waiting import Done
from serve_app.settings import Settings
from serve_app.styles.catalogue import InstalledStyle

FIRST, SMALL, LARGE = Size(64, 96), Size(96, 128), Size(256, 320)
TIMEOUT_S = 60


@pytest.fixture
def stylist(seeded_style: InstalledStyle) -> Iterator[Stylist]:
    threads = torch.get_num_threads()
    made = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=2))
    yield made
    made.close()
    torch.set_num_threads(threads)


@pytest.fixture
def stylizer(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> Stylizer:
    monkeypatch.setattr(module, "make_stylist", lambda settings: stylist)
    deployment: Any = Stylizer  # Serve's decorator hides the class from mypy
    made: Stylizer = deployment.func_or_class(Settings())
    return made


def frame_of(size: Size, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


class Gates:
    """Holds forward passes of a size until the test opens its gate."""

    def __init__(self, stylist: Stylist, monkeypatch: pytest.MonkeyPatch, *sizes: Size) -> None:
        self.gates = {size: threading.Event() for size in sizes}
        self.began: list[Size] = []
        self._forward = stylist._forward
        monkeypatch.setattr(stylist, "_forward", self._held)

    def _held(self, style: str, frames: Sequence[Frame], rows: int) -> Frame:
        size = Size(*frames[0].shape[:2])
        self.began.append(size)
        if size in self.gates:
            assert self.gates[size].wait(TIMEOUT_S)
        return self._forward(style, frames, rows)

    def open(self, size: Size) -> None:
        self.gates[size].set()


def submit(stylizer: Stylizer, frame: Frame) -> "asyncio.Task[Done[Frame]]":
    size = Size(*frame.shape[:2])
    key: Key = ("seeded", size)
    return asyncio.ensure_future(stylizer.batcher.submit(key, frame, size.pixels))


async def submit_behind_another(stylizer: Stylizer, frames: Sequence[Frame]) -> "list[asyncio.Task[Done[Frame]]]":
    """Submits frames while a frame of the size FIRST is on the device and has all its threads."""
    tasks = [submit(stylizer, frame_of(FIRST))]
    while not stylizer.batcher.running_for_s():
        await asyncio.sleep(0)
    tasks += [submit(stylizer, frame) for frame in frames]
    while stylizer.batcher.waiting < len(frames):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.slow
def test_frames_that_wait_together_share_batches_and_are_painted_as_if_alone(
    stylizer: Stylizer, stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [frame_of(SMALL, seed) for seed in range(8)]

    async def scene() -> None:
        alone = [await submit(stylizer, frame) for frame in frames]
        gates = Gates(stylist, monkeypatch, FIRST)
        _, *tasks = await submit_behind_another(stylizer, frames)
        gates.open(FIRST)
        together = await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT_S)
        assert {done.batch_size for done in alone} == {1}
        assert min(done.batch_size for done in together) > 1
        for one, other in zip(alone, together, strict=True):
            assert np.abs(one.result.astype(int) - other.result).max() <= 1

    asyncio.run(scene())


def test_batch_is_reserved_by_the_precision_of_its_style(
    stylizer: Stylizer, stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stylist, "_precisions", {"seeded": Choice("fp32", ""), "other": Choice("bf16", "")})
    precisions: dict[str, Precision] = {"seeded": "fp32", "other": "bf16"}
    for style, precision in precisions.items():
        slot = stylizer.reserve((style, LARGE), 1, 1, 1)
        assert slot is not None
        model = MemoryModel(precision, stylist.allocator)
        assert slot.peak_bytes == model.slot_bytes(LARGE, 1, slot.rows)
        stylist.slots.release(slot)


def test_process_ends_with_a_sentence_when_a_batch_runs_for_too_long(
    stylizer: Stylizer, stylist: Stylist, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(module, "LOG_S", 0)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])

    async def scene() -> None:
        gates = Gates(stylist, monkeypatch, FIRST)
        task = submit(stylizer, frame_of(FIRST))
        while not stylizer.batcher.running_for_s():
            await asyncio.sleep(0)
        await stylizer.check_health()
        assert ended == []
        stylizer.batcher._clock = lambda: time.monotonic() + 121  # stuck_after_s is 120
        await stylizer.check_health()
        gates.open(FIRST)
        await asyncio.wait_for(task, TIMEOUT_S)
        await stylizer.check_health()  # the device is free

    asyncio.run(scene())
    assert ended == [1]
    assert set(caplog.messages) == {
        "a batch on the device has run for 121 s, above stuck_after_s (120); this replica ends, and Serve starts "
        "another"
    }


def test_style_that_this_replica_has_left_out_is_refused_with_404(stylizer: Stylizer) -> None:
    async def scene() -> list[Painted | RequestError]:
        return [answer async for answer in stylizer.paint(frame_of(FIRST), "missing")]

    (refusal,) = asyncio.run(scene())
    assert isinstance(refusal, UnknownStyle)
    assert str(refusal) == "The style 'missing' cannot be painted here: its file is missing or damaged."


def test_a_painting_names_its_painter_by_what_was_loaded(stylizer: Stylizer, seeded_style: InstalledStyle) -> None:
    async def scene() -> list[Painted | RequestError]:
        return [answer async for answer in stylizer.paint(frame_of(FIRST), "seeded")]

    (painted,) = asyncio.run(scene())
    assert isinstance(painted, Painted)
    assert painted.painter == painter_name(seeded_style.digest, "auto") != ""


def test_small_image_is_painted_before_a_large_one_that_arrived_first(
    stylizer: Stylizer, stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        gates = Gates(stylist, monkeypatch, FIRST, LARGE)
        _, large, small = await submit_behind_another(stylizer, [frame_of(LARGE), frame_of(SMALL)])
        gates.open(FIRST)
        await asyncio.wait_for(small, TIMEOUT_S)
        assert LARGE in gates.began
        assert not large.done()
        gates.open(LARGE)
        await asyncio.wait_for(large, TIMEOUT_S)

    asyncio.run(scene())
