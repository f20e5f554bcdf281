"""The measuring itself: what a figure is made of. Figures are never asserted here."""

import pytest
from benchmarks.engines import ENGINE_MAKERS
from benchmarks.painting import ALLOCATORS, ENGINES, RUNGS
from benchmarks.processes import run_module
from benchmarks.soak import slopes


@pytest.mark.parametrize(
    "engine", ["stylist", "mixed", "strips", "strips-fp16", "eager", "original", "clearing", "queue"]
)
def test_measured_process_answers_with_peak_and_times(engine: str) -> None:
    figures = run_module("benchmarks", "measure", "--engine", engine, "--height", 96, "--width", 128, "--paintings", 2)
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


def test_process_that_fails_is_reported_with_its_last_line() -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'nonsense'"):
        run_module("benchmarks", "nonsense")
