"""The report of a benchmark: rows as they are measured, a Markdown table, and JSON with machine, date and command."""

import datetime
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MB = 1e6

Row = dict[str, Any]


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest measured value that at least so many per cent of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def collect(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows as a list, and prints each as soon as it has been measured."""
    collected = []
    for row in rows:
        print(f"  {row}", flush=True)
        collected.append(row)
    return collected


def print_table(rows: Sequence[Row]) -> None:
    """Prints rows as a Markdown table, ready for docs/benchmarks.md, after an empty line."""
    headings = list(rows[0])
    print("\n| " + " | ".join(headings) + " |\n|" + " --- |" * len(headings))
    for row in rows:
        print(
            "| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()) + " |"
        )


def write_json(folder: Path, name: str, rows: Sequence[Row], **more: Any) -> None:
    """Writes `<name>.json` with machine, date, command, `more` and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(machine() | more | {"rows": rows}, indent=1) + "\n")
    print(f"\nwrote {path}")


def report(folder: Path, name: str, rows: Sequence[Row], **more: Any) -> None:
    """Prints rows as a table and writes them as JSON."""
    print_table(rows)
    write_json(folder, name, rows, **more)


def machine() -> Row:
    """Returns what figures were measured on and with: date, machine, PyTorch's version, command."""
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores {model}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
    }
