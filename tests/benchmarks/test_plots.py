"""The plots, drawn from the figures that the repository holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import plots
from benchmarks.painting import BATCHES, STRIPS
from benchmarks.paths import RESULTS
from benchmarks.reporting import Row
from benchmarks.scaling import KIND_NAMES, LOAD, REST
from benchmarks.service import select

Plot = Callable[[Path, Row], None]


def plot_sizes(folder: Path, results: Row) -> None:
    plots.sizes(folder, results["rows"], [size.pixels * batch for size, batch in BATCHES for _ in STRIPS])


def plot_scaling(folder: Path, results: Row) -> None:
    plots.scaling(folder, results["rows"], results["paint_seconds"], [*KIND_NAMES, REST, LOAD])


def plot_service(folder: Path, results: Row) -> None:
    ours, theirs = (select(results["rows"], 512, is_service) for is_service in (True, False))
    assert ours
    assert theirs
    plots.service(folder, [("the service", True, 0.9, ours), ("rivals", False, None, theirs)])


PLOTS: dict[str, Plot] = {
    "engines": lambda folder, results: plots.engines(folder, results["rows"]),
    "ladder": lambda folder, results: plots.ladder(folder, results["rows"]),
    "scaling": plot_scaling,
    "service": plot_service,
    "sizes": plot_sizes,
    "soak": lambda folder, results: plots.soak(folder, results["samples"], ["Codec", "Stylizer"]),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plot_is_drawn_from_the_figures_in_the_repository(name: str, tmp_path: Path) -> None:
    PLOTS[name](tmp_path, json.loads((RESULTS / f"{name}.json").read_text()))
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
