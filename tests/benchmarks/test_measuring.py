"""The measuring itself: what a figure is made of. Figures are never asserted here."""

import json
import subprocess
import sys

import pytest
from benchmarks import child_environment
from benchmarks.__main__ import ALLOCATORS, ENGINE_MAKERS, ENGINES, RUNGS
from benchmarks.soak import photograph, slopes

from serve_app.images.decode import sniff


@pytest.mark.parametrize(
    "engine", ["stylist", "mixed", "strips", "strips-fp16", "eager", "original", "clearing", "queue"]
)
def test_measured_process_answers_with_peak_and_times(engine: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "measure", "--engine", engine, "--height", "96", "--width", "128"]
    command += ["--paintings", "2"]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == {"peak", "later_peak", "wall", "cpu"}
    assert figures["later_peak"] >= figures["peak"] >= 0
    assert figures["wall"] > 0
    assert figures["cpu"] > 0


def test_engines_and_rungs_are_ones_that_can_be_made() -> None:
    assert set(ENGINES) <= set(ENGINE_MAKERS)
    assert {engine for _, engine, *_ in RUNGS} <= set(ENGINE_MAKERS)
    assert {allocator for _, _, allocator, *_ in RUNGS} <= set(ALLOCATORS)


def test_slope_is_that_of_the_last_quarter() -> None:
    samples = [
        {"requests": 20 * i, "s": 0.0, "steady": 500_000_000, "growing": 10_000 * 20 * i, "grew": min(i, 60) * 10**6}
        for i in range(100)
    ]
    assert slopes(samples) == pytest.approx({"steady": 0.0, "growing": 1.0, "grew": 0.0}, abs=1e-9)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_photographs_of_the_soak_are_real_and_differ(format: str) -> None:
    one, other = (photograph(seed, 96, 64, format) for seed in (1, 2))
    assert sniff(one) == format
    assert one != other
