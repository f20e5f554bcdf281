"""The plots of the benchmarks, as PNG files beside their JSON."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reporting import MB, Row

if TYPE_CHECKING:  # the measured processes need no matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS_COLOUR, RIVAL_COLOUR = "tab:red", "tab:blue"
DOES_NOT_FIT = "does not fit"  # in a row, in place of a peak


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure; sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def save(figure: "Figure", folder: Path, name: str) -> None:
    """Writes a figure as `<name>.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=110)


def is_ours(engine: str) -> bool:
    """Returns whether an engine of the benchmark `engines` is this project's."""
    return engine.startswith("strips")


def engines(folder: Path, rows: Sequence[Row]) -> None:
    """Plots each engine's peak over its CPU-seconds, a panel for each side."""
    sides = sorted({row["side"] for row in rows})
    figure = new_figure(6 * len(sides), 4.5)
    for axis, side in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        group = [row for row in rows if row["side"] == side]
        widest, highest = (max(row[key] for row in group) for key in ("CPU-s", "its peak MB"))
        for row in group:
            x, y = row["CPU-s"], row["its peak MB"]
            axis.scatter(x, y, color=OURS_COLOUR if is_ours(row["engine"]) else RIVAL_COLOUR)
            # A label stands at the right, unless it would cover another point.
            is_near = any(0 < r["CPU-s"] - x < widest / 4 and abs(r["its peak MB"] - y) < highest / 18 for r in group)
            place: dict[str, Any] = {"xytext": (-7, -4), "ha": "right"} if is_near else {"xytext": (7, -4)}
            axis.annotate(row["engine"], (x, y), textcoords="offset points", **place)
        axis.set(title=f"{side} x {side}", xlabel="CPU-seconds an image", ylabel="peak over idle, MB")
        axis.set_xlim(0, 1.3 * widest)
        axis.set_ylim(0, 1.1 * highest)
    save(figure, folder, "engines")


def sizes(folder: Path, rows: Sequence[Row], pixels: Sequence[int]) -> None:
    """Plots predicted and measured peaks over the pixels of the batch, one number for each row."""
    figure = new_figure(7, 5)
    axis = figure.subplots()
    points = [(row, count / 1e6) for row, count in zip(rows, pixels, strict=True)]
    for precision, colour in (("fp32", "tab:red"), ("fp16", "tab:orange")):
        chosen = [(row, x) for row, x in points if row["precision"] == precision]
        x = [x for _, x in chosen]
        measured = [row["measured MB"] for row, _ in chosen]
        axis.plot(x, measured, "o", color=colour, label=f"strips, {precision}: measured")
        predicted = [row["predicted MB"] for row, _ in chosen]
        axis.plot(x, predicted, "_", color=colour, markersize=14, label="predicted")
    plain = [(row["plain MB"], x) for row, x in points if row["plain MB"]]
    axis.plot([x for _, x in plain], [y for y, _ in plain], "s", color="tab:blue", label="plain run, fp32")
    axis.set(xscale="log", yscale="log", xlabel="megapixels in the batch", ylabel="peak over idle, MB")
    axis.legend()
    save(figure, folder, "sizes")


def ladder(folder: Path, rows: Sequence[Row]) -> None:
    """Plots peak and time of each rung."""
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{row['rung']} ({row['painted at']})" for row in rows]
    colours = [OURS_COLOUR if name.startswith("ours") else RIVAL_COLOUR for name in names]
    left.barh(names, [row["peak MB"] if row["peak MB"] != DOES_NOT_FIT else 0 for row in rows], color=colours)
    right.barh(names, [row["s"] for row in rows], color=colours)
    left.set(xlabel="peak over idle, MB")
    left.locator_params(axis="x", nbins=5)
    right.set(xlabel="seconds")
    left.invert_yaxis()
    save(figure, folder, "ladder")


def soak(folder: Path, samples: Sequence[Row], names: Sequence[str]) -> None:
    """Plots the private memory of each process over the requests sent."""
    figure = new_figure(9, 4.5)
    axis = figure.subplots()
    for name in names:
        axis.plot([s["requests"] for s in samples], [s[name] / MB for s in samples], label=name)
    axis.set(xlabel="requests", ylabel="private memory, MB", ylim=(0, None))
    axis.legend()
    save(figure, folder, "soak")


def chaos(folder: Path, rows: Sequence[Row], samples: Sequence[Row]) -> None:
    """Plots what became of the requests of each minute, above the private memory of each role's processes.

    Args:
        folder: for the PNG.
        rows: one for each minute.
        samples: `s`, `role` and `bytes` of a process.
    """
    figure = new_figure(max(9.0, 0.4 * len(rows)), 8)
    upper, lower = figure.subplots(2, 1)
    bottom = [0] * len(rows)
    outcomes = {"painted": "tab:green", "refused": "tab:orange", "broken, allowed": "tab:grey", "other": "tab:red"}
    for outcome, colour in outcomes.items():
        counts = [row[outcome] for row in rows]
        upper.bar(range(len(rows)), counts, bottom=bottom, label=outcome, color=colour)
        bottom = [below + more for below, more in zip(bottom, counts, strict=True)]
    upper.set_xticks(range(len(rows)), [row["fault"] for row in rows], rotation=40, ha="right", fontsize=7)
    upper.set(ylabel="requests a minute")
    upper.legend(fontsize=7)
    for name in dict.fromkeys(sample["role"] for sample in samples):
        own = [sample for sample in samples if sample["role"] == name]
        lower.plot([s["s"] / 60 for s in own], [s["bytes"] / MB for s in own], ".", markersize=3, label=name)
    lower.set(xlabel="minutes", ylabel="private memory, MB", ylim=(0, None))
    lower.legend(fontsize=7)
    save(figure, folder, "chaos")


def batching(
    folder: Path,
    figures: Mapping[tuple[int, int, str], Mapping[str, float]],
    families: Mapping[str, Sequence[str]],
) -> None:
    """Plots throughput and p99 over the pace, a column for each number of sizes.

    Args:
        folder: for the PNG.
        figures: by number of sizes, milliseconds between two images, and label of the batcher.
        families: labels of the batchers, by family; `ours` stands out.
    """
    colours = {"ours": "red", "serve": "blue", "serve-by-size": "purple", "litserve": "green", "bentoml": "orange"}
    periods = sorted({period for _, period, _ in figures})
    counts = sorted({count for count, _, _ in figures})
    figure = new_figure(7 * len(counts), 9)
    axes = figure.subplots(2, len(counts), squeeze=False)
    for column, count in enumerate(counts):
        for row, key in enumerate(("images/s", "p99 ms")):
            axis = axes[row][column]
            for family, labels in families.items():
                for number, label in enumerate(labels, 1):
                    if (count, periods[0], label) not in figures:
                        continue
                    axis.plot(
                        range(len(periods)),
                        [figures[count, period, label][key] for period in periods],
                        marker="o",
                        label=label,
                        color="tab:" + colours[family],
                        alpha=number / len(labels),
                        linewidth=3 if family == "ours" else 1.2,
                        zorder=3 if family == "ours" else 2,
                    )
            axis.set_xticks(range(len(periods)), [f"{period} ms" for period in periods])
            axis.set(title=f"{count} size{'s' * (count > 1)}: {key}", xlabel="an image every")
            axis.set_ylim(bottom=0) if row == 0 else axis.set_yscale("log")
        axes[0][column].legend(fontsize=7)
    save(figure, folder, "batching")


def service(folder: Path, groups: Sequence[tuple[str, bool, float | None, Sequence[Row]]]) -> None:
    """Plots throughput above latencies, a column for each group.

    Args:
        folder: for the PNG.
        groups: title, whether the rows are the service's own, images a second of the bare loop, rows.
    """
    figure = new_figure(5.5 * len(groups), 8)
    columns = figure.subplots(2, len(groups), squeeze=False).T
    for (title, is_service, bare_rate, rows), (upper, lower) in zip(groups, columns, strict=True):
        names = [row["load"] if is_service else f"{row['server']}\n{row['load']}" for row in rows]
        places = range(len(rows))
        upper.bar(places, [row["throughput"] for row in rows], color=OURS_COLOUR if is_service else RIVAL_COLOUR)
        if bare_rate is not None:
            upper.axhline(bare_rate, color="black", linewidth=0.8, linestyle="--", label="bare loop")
            upper.legend(loc="lower right")
        upper.set(title=title, ylabel="painted a second")
        plot_latencies(lower, rows)
        for axis in (upper, lower):
            axis.set_xticks(places, names, rotation=40, ha="right", fontsize=7)
    save(figure, folder, "service")


def plot_latencies(axis: "Axes", rows: Sequence[Row]) -> None:
    """Marks median and p99 of paintings, and p99 of refusals, for each load."""
    for key, mark in (("p50_s", "o"), ("p99_s", "^"), ("refusal_p99_s", "x")):
        values = [math.nan if row[key] is None else row[key] for row in rows]
        if not all(map(math.isnan, values)):
            axis.plot(range(len(rows)), values, mark, label=key.removesuffix("_s").replace("_", " "))
    axis.set(ylabel="seconds", yscale="log")
    axis.legend()


def scaling(folder: Path, rows: Sequence[Row], paint_s: float, kinds: Sequence[str]) -> None:
    """Plots throughput and busy cores over the number of Stylizers.

    Args:
        folder: for the PNG.
        rows: one for each number of Stylizers.
        paint_s: seconds that a Stylizer takes for an image.
        kinds: of processes whose CPU is told apart.
    """
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    replicas = [row["Stylizers"] for row in rows]
    left.plot(replicas, [count / paint_s for count in replicas], "--", color="grey", label="ideal")
    left.plot(replicas, [row["a second"] for row in rows], "o-", color=OURS_COLOUR, label="measured")
    left.set(xlabel="Stylizers", ylabel="images a second", ylim=(0, None))
    left.legend()
    bottom = [0.0] * len(rows)
    for kind in kinds:
        cores = [row[f"{kind} ms"] * row["cores busy"] / row["in all ms"] for row in rows]
        right.bar(range(len(rows)), cores, bottom=bottom, label=kind)
        bottom = [below + more for below, more in zip(bottom, cores, strict=True)]
    right.axhline(os.cpu_count() or 1, color="black", linewidth=0.8, linestyle="--", label="cores there are")
    right.set_xticks(range(len(rows)), replicas)
    right.set(xlabel="Stylizers", ylabel="cores busy")
    right.legend()
    save(figure, folder, "scaling")
