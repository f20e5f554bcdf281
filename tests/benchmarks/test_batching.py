"""The measuring of batchers, on a device that takes no time. Figures of real batchers are never asserted here."""

import asyncio
from pathlib import Path

import pytest
from benchmarks import batchers
from benchmarks.batchers import SimulatedDevice, Workload, measure_ours, measure_workload
from benchmarks.batching import FAMILIES, FigureTable, judge, plot


@pytest.fixture(autouse=True)
def fast_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIXED_S", "EACH_S", "WARM_UP"):
        monkeypatch.setattr(batchers, name, 0)


def test_mixed_batch_is_painted_size_by_size_at_the_price_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(batchers, "FIXED_S", 10)
    monkeypatch.setattr(batchers, "EACH_S", 1)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert asyncio.run(SimulatedDevice().paint([(1, 7), (2, 8), (3, 7)])) == [(1, 2), (2, 1), (3, 2)]
    assert slept == [12, 11]


def test_every_workload_has_its_figures() -> None:
    workloads = [Workload(1, 1, 20), Workload(4, 2, 10)]
    [rows] = measure_ours([None], workloads)
    assert [set(row) for row in rows] == [{"images/s", "p50 ms", "p99 ms", "batch", "late ms"}] * 2
    assert all(row["p99 ms"] >= row["p50 ms"] >= 0 for row in rows)
    assert all(row["batch"] >= 1 for row in rows)


def test_batcher_that_mixes_images_up_is_caught() -> None:
    async def mix_up(image: tuple[int, int]) -> tuple[int, int]:
        return 0, 1

    with pytest.raises(RuntimeError, match="mixed up"):
        asyncio.run(measure_workload(Workload(1, 1, 3), mix_up))


def made_up(**rates: float) -> FigureTable:
    """Returns 10 images a second for every family without a rate of its own, and a p99 of 100 ms for all."""
    return {
        (sizes, period, config.label): {"images/s": rates.get(family, 10.0), "p99 ms": 100.0}
        for sizes in (1, 4)
        for period in (30, 100)
        for family, configs in FAMILIES.items()
        for config in configs
        if sizes > 1 or family != "serve-by-size"
    }


def test_verdicts_compare_with_the_best_wait_and_show_what_was_missed() -> None:
    figures = made_up(ours=40.0)
    figures[1, 30, "@serve.batch, 100 ms"]["images/s"] = 50.0
    verdicts = {row["claim"]: row for row in judge(figures, 4)}
    default = verdicts["images/s, one size, every 30 ms, default wait"]
    assert (default["ratio"], default[""]) == (4.0, "met")
    best = verdicts["images/s, one size, every 30 ms, best wait of this pace"]
    assert (best["ratio"], best["against"], best[""]) == (0.8, "@serve.batch, 100 ms", "missed")


def test_rivals_that_are_not_installed_are_left_out() -> None:
    figures = {key: row for key, row in made_up().items() if not key[2].startswith(("LitServe", "BentoML"))}
    assert {row["against"].split(",")[0] for row in judge(figures, 4)} == {"@serve.batch"}


def test_plot_is_drawn(tmp_path: Path) -> None:
    plot(tmp_path, made_up())
    assert (tmp_path / "batching.png").stat().st_size > 10_000
