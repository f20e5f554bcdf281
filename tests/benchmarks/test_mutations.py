"""Damaged files against the processes that decode: a sample of what `scripts/bench mutations` does with thousands."""

import asyncio
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import hostile
import pytest
from benchmarks.mutations import Attack, Measured, measure, mutated, mutations
from PIL import Image

from serve_app.images import decoder_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoders are Linux's")

FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"]


def files() -> list[bytes]:
    image = Image.effect_noise((120, 90), 60).convert("RGB")
    made = [hostile.saved(image, format) for format in FORMATS]
    return [*made, hostile.saved(image, "JPEG", progressive=True), hostile.saved(image.convert("RGBA"), "PNG")]


def no_limit() -> None:
    decoder_process.limit_memory = lambda start, count=0: count


def measured(files: list[bytes], prepare: Callable[[], None] | None = None) -> list[Measured]:
    """Measures decodes from a new process: in one forked from this one, what earlier tests freed may be taken again."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=prepare) as processes:
        return list(processes.map(measure, files))


def test_damage_is_done_and_can_be_done_again() -> None:
    data = files()[0]
    assert mutated(data, 3) == mutated(data, 3)
    assert len({mutated(data, seed) for seed in range(40)}) > 35
    assert [number for number, _ in mutations([data], 3, seed=7)] == [7, 8, 9]


@pytest.mark.slow
def test_damaged_files_take_no_more_memory_than_foretold() -> None:
    damaged = [*files(), *(data for _, data in mutations(files(), 100, seed=1))]
    found = measured(damaged)
    assert {"decoded", "broken-image"} <= {decode.outcome for decode in found}
    assert [decode for decode in found if decode.peak_bytes > decode.foretold_bytes] == []


@pytest.mark.slow
def test_memory_above_the_prediction_is_noticed() -> None:
    (found,) = measured([hostile.jpeg_of_segments(1_000_000)], no_limit)
    assert found.peak_bytes > found.foretold_bytes


@pytest.mark.slow
def test_damaged_files_are_refused_and_nothing_is_lost() -> None:
    attack = Attack()
    asyncio.run(attack.run(mutations(files(), 200, seed=1)))
    assert attack.outcomes.total() == 200
    assert attack.outcomes["decoded"] > 10
    assert attack.outcomes["broken-image"] > 10
    assert attack.faults == []
    assert len(attack.servers) == 1
