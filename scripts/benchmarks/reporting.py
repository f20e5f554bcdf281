"""What every benchmark prints and writes: a Markdown table, and JSON with machine, date and command."""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

MB = 1e6


def machine() -> dict[str, Any]:
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


def write(options: argparse.Namespace, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    path.write_text(json.dumps(machine() | more | {"rows": rows}, indent=1) + "\n")
    print(f"\nwrote {path}")


def print_table(rows: list[dict[str, Any]]) -> None:
    """As Markdown, ready for docs/benchmarks.md."""
    heads = list(rows[0])
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in rows:
        print(
            "| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()) + " |"
        )
