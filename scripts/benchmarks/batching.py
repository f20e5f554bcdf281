"""Our batcher beside Ray Serve's, LitServe's and BentoML's, on one simulated device: `scripts/bench batching`.

A batch of n images of one size takes 150 + 12 n ms, asleep, and batches run one at a time; `benchmarks.batchers` says
how each batcher is driven. None of the rivals can group by size, so what they batch is painted size by size, each with
a batch's time of its own. `@serve.batch, a method a size` is what can be done where all sizes are known beforehand: a
queue for each size, and a lock before the device.

Images arrive at a steady pace, whether or not earlier ones are painted. Latency is from the moment when an image was
due to its result; images/s is over the whole, to the last result; the batch is the mean over runs of the device.
`late` is the 99th percentile of how long after their time images were submitted: it shows figures from a busy machine.

LitServe and BentoML are looked for in the Python of `--rival-python`; benchmarks/rivals.py says how it is made.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import batchers, plots
from benchmarks.batchers import Workload
from benchmarks.paths import RIVALS_PYTHON
from benchmarks.processes import run_module
from benchmarks.reporting import Row, print_table, report

WAITS_MS = [10, 50, 100, 200]  # the first is the default of `@serve.batch`
TUNED_AT_MS = 30  # between two images: the pace for which a rival's wait is chosen

FigureTable = dict[tuple[int, int, str], batchers.Figures]  # by sizes, milliseconds between two images, and label


@dataclass(frozen=True)
class BatcherConfig:
    """A batcher of one family with one wait, or with none to set."""

    name: str
    family: str
    wait_ms: int | None = None

    @property
    def label(self) -> str:
        """The name with the wait."""
        return self.name if self.wait_ms is None else f"{self.name}, {self.wait_ms} ms"


OURS = BatcherConfig("ours", "ours")
SERVE = [BatcherConfig("@serve.batch", "serve", wait) for wait in WAITS_MS]
SERVE_BY_SIZE = [BatcherConfig("@serve.batch, a method a size", "serve-by-size", wait) for wait in WAITS_MS]
LITSERVE = [BatcherConfig("LitServe", "litserve", wait) for wait in [0, *WAITS_MS]]
BENTOML = BatcherConfig("BentoML", "bentoml")
FAMILIES = {"ours": [OURS], "serve": SERVE, "serve-by-size": SERVE_BY_SIZE, "litserve": LITSERVE, "bentoml": [BENTOML]}
RIVALS = [SERVE, LITSERVE, [BENTOML], SERVE_BY_SIZE]


def run(options: argparse.Namespace) -> None:
    """Throughput and latency of our batcher and three others on one simulated device, at several paces and sizes."""
    figures, versions = measure(options)
    targets = judge(figures, options.sizes)
    print_table(targets)
    rows = [
        {"sizes": sizes, "every ms": period, "batcher": label} | row
        for (sizes, period, label), row in sorted(figures.items(), key=lambda item: item[0][:2])
    ]
    fixed_ms, each_ms = 1000 * batchers.FIXED_S, 1000 * batchers.EACH_S
    report(
        options.out,
        "batching",
        rows,
        targets=targets,
        versions=versions,
        images=options.images,
        device=f"{fixed_ms:g} + {each_ms:g} n ms, at most {batchers.MAX_BATCH_SIZE} together",
    )
    plot(options.out, figures)


def measure(options: argparse.Namespace) -> tuple[FigureTable, list[str]]:
    """Measures each family in a fresh process; returns figures, and the packages' versions.

    A family that cannot be measured is named on stderr and left out.
    """
    figures: FigureTable = {}
    versions = set()
    for family, configs in FAMILIES.items():
        sizes = [options.sizes] if family == "serve-by-size" else [1, options.sizes]
        workloads = [Workload(count, period, options.images) for count in sizes for period in options.periods_ms]
        job = {
            "family": family,
            "waits_ms": [config.wait_ms for config in configs],
            "workloads": [asdict(workload) for workload in workloads],
        }
        python = options.rival_python if family in ("litserve", "bentoml") else None
        print(f"{configs[0].name} …", file=sys.stderr, flush=True)
        try:
            result = run_module("benchmarks.batchers", json.dumps(job), python=python)
        except (RuntimeError, OSError) as error:
            print(f"  could not be measured: {error}", file=sys.stderr)
            continue
        versions.add(result["version"])
        for config, rows in zip(configs, result["figures"], strict=True):
            for workload, row in zip(workloads, rows, strict=True):
                figures[workload.sizes, workload.period_ms, config.label] = row
    return figures, sorted(versions)


# Verdicts


def judge(figures: FigureTable, sizes: int) -> list[Row]:
    """Returns all of the project's claims as ratios, met or missed; above 1 our batcher is better."""
    periods = sorted({period for _, period, _ in figures})
    verdicts = [row for period in periods for row in throughput_verdicts(figures, sizes, period)]
    for count in (1, sizes):
        for configs in RIVALS:
            if (count, TUNED_AT_MS, configs[0].label) in figures:
                verdicts += latency_verdicts(figures, count, periods, configs)
    return verdicts


def throughput_verdicts(figures: FigureTable, sizes: int, period: int) -> list[Row]:
    """Compares our throughput at one pace with `@serve.batch` as it comes and at its best wait."""
    is_tuned_pace = period == TUNED_AT_MS
    default = SERVE[0].label

    def ratio(count: int, label: str) -> float:
        return figures[count, period, OURS.label]["images/s"] / figures[count, period, label]["images/s"]

    best, best_mixed = (
        max((config.label for config in SERVE), key=lambda label: figures[count, period, label]["images/s"])
        for count in (1, sizes)
    )
    pace = f"every {period} ms"
    return [
        verdict(f"images/s, one size, {pace}, default wait", ratio(1, default), 4 if is_tuned_pace else None, default),
        verdict(f"images/s, one size, {pace}, best wait of this pace", ratio(1, best), 1, best),
        verdict(
            f"images/s, {sizes} sizes, {pace}, best wait of this pace",
            ratio(sizes, best_mixed),
            2 if is_tuned_pace else None,
            best_mixed,
        ),
    ]


def latency_verdicts(
    figures: FigureTable, count: int, periods: Sequence[int], configs: Sequence[BatcherConfig]
) -> list[Row]:
    """Compares our p99 at each pace with a family's at the wait that is best at one pace."""

    def p99_ms(label: str, period: int) -> float:
        return figures[count, period, label]["p99 ms"]

    best = min((config.label for config in configs), key=lambda label: p99_ms(label, TUNED_AT_MS))
    sizes = "one size" if count == 1 else f"{count} sizes"
    return [
        verdict(
            f"p99, {sizes}, every {period} ms, wait tuned for every {TUNED_AT_MS} ms",
            p99_ms(best, period) / p99_ms(OURS.label, period),
            None if period == TUNED_AT_MS else 2,
            best,
        )
        for period in periods
    ]


def verdict(claim: str, ratio: float, wanted: float | None, rival: str) -> Row:
    """Returns a row that holds a ratio against the one wanted; without one there is no verdict."""
    reached = "" if wanted is None else "met" if round(ratio, 2) >= wanted else "missed"
    return {"claim": claim, "against": rival, "ratio": ratio, "wanted": wanted or "", "": reached}


def plot(folder: Path, figures: Mapping[tuple[int, int, str], batchers.Figures]) -> None:
    """Plots all batchers that were measured."""
    labels = {family: [config.label for config in configs] for family, configs in FAMILIES.items()}
    plots.batching(folder, figures, labels)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench batching`."""
    parser.add_argument("--images", type=int, default=200, help="measured at each pace")
    parser.add_argument("--periods-ms", type=int, nargs="+", default=[15, TUNED_AT_MS, 100, 250])
    parser.add_argument("--sizes", type=int, default=4, help="of the mixed workload")
    parser.add_argument("--rival-python", type=Path, default=RIVALS_PYTHON, help="a Python with LitServe and BentoML")
