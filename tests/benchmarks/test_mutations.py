"""Damaged files against the processes that decode: a sample of what `scripts/bench mutations` does with thousands."""

import asyncio
import sys

import hostile
import pytest
from benchmarks.mutations import Attack, measure, mutated, mutations
from PIL import Image

from serve_app.images import decoder_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoders are Linux's")

FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"]


def files() -> list[bytes]:
    image = Image.effect_noise((120, 90), 60).convert("RGB")
    made = [hostile.saved(image, format) for format in FORMATS]
    return [*made, hostile.saved(image, "JPEG", progressive=True), hostile.saved(image.convert("RGBA"), "PNG")]


def test_damage_is_done_and_can_be_done_again() -> None:
    data = files()[0]
    assert mutated(data, 3) == mutated(data, 3)
    assert len({mutated(data, seed) for seed in range(40)}) > 35
    assert [number for number, _ in mutations([data], 3, seed=7)] == [7, 8, 9]


@pytest.mark.slow
def test_damaged_files_take_no_more_memory_than_foretold() -> None:
    outcomes = set()
    for number, data in [*enumerate(files()), *mutations(files(), 100, seed=1)]:
        found = measure(data)
        outcomes.add(found.outcome)
        assert found.peak_bytes <= found.foretold_bytes, number
    assert {"decoded", "broken-image"} <= outcomes


@pytest.mark.slow
def test_memory_above_the_prediction_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "limit_memory", lambda start, count=0: count)
    found = measure(hostile.jpeg_of_segments(1_000_000))
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
