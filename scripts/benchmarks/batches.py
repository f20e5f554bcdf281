"""`animegan batch` beside `animegan paint`, on one node: `scripts/bench batch`.

Both paint the same folder, by turns. The rate is that after the start: from the first painting that is written to the
last, by the times of the files. Starting is told apart, and so is the end.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil

from benchmarks.monitor import pss_bytes
from benchmarks.photographs import photograph, random_sizes
from benchmarks.processes import child_environment
from benchmarks.reporting import MB, Row, collect, report
from benchmarks.servers import ANIMEGAN, process_tree
from serve_app.frames import Size

SPREAD = 0.4  # of mixed sizes
SAMPLE_S = 1.0
WANTED = 0.85  # of the rate of `paint`


def make_folder(folder: Path, sizes: list[Size]) -> None:
    """Writes a photograph of each size."""
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        (folder / f"{number:06}.jpg").write_bytes(photograph(number, size, "JPEG"))


def paint(command: list[str], count: int, paintings: Path) -> Row:
    """Runs a command that paints a folder; returns its rate, its times, and the most memory of all its processes.

    Raises:
        RuntimeError: if it does not paint all of them.
    """
    began_s = time.time()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=child_environment())
        peak = 0
        while True:
            try:
                process.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, sum(map(pss_bytes, process_tree(psutil.Process(process.pid)))))
        ended_s = time.time()
        times_s = sorted(path.stat().st_mtime for path in paintings.glob("*.jpg"))
        if process.returncode or len(times_s) != count:
            log.seek(0)
            raise RuntimeError(log.read().decode(errors="replace"))
    return {
        "a second": (count - 1) / (times_s[-1] - times_s[0]),
        "start s": times_s[0] - began_s,
        "end s": ended_s - times_s[-1],
        "PSS MB": peak / MB,
    }


def compare(name: str, sizes: list[Size], options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields the medians of each command over pairs of runs; the last one also has the median ratio of the pairs."""
    source, paintings = folder / name, folder / "paintings"
    make_folder(source, sizes)
    look = ["--style", options.style]
    commands = {
        "paint": [*ANIMEGAN, "paint", str(source), "-o", str(paintings), *look],
        "batch": [*ANIMEGAN, "batch", str(source), str(paintings), *look],
    }
    runs: dict[str, list[Row]] = {command: [] for command in commands}
    for number in range(options.repeats):
        for command in sorted(commands, reverse=bool(number % 2)):
            runs[command].append(paint(commands[command], len(sizes), paintings))
            shutil.rmtree(paintings)
    ratios = [batch["a second"] / alone["a second"] for batch, alone in zip(runs["batch"], runs["paint"], strict=True)]
    for command, rows in runs.items():
        row = {"photographs": name, "command": command}
        row |= {key: median(each[key] for each in rows) for key in rows[0]}
        yield row | {"of paint's rate": median(ratios) if command == "batch" else 1.0}


def run(options: argparse.Namespace) -> None:
    """Compares painting a folder with `animegan batch` and with `animegan paint`: rate, start, memory."""
    sizes = {
        "one size": [Size(options.side, options.side)] * options.count,
        "mixed sizes": random_sizes(options.side, SPREAD, options.count),
        "tiny": [Size(32, 32)] * options.tiny,
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = collect(
            row for name, each in sizes.items() if each for row in compare(name, each, options, Path(folder))
        )
    report(options.out, "batch", rows, wanted=WANTED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to a parser."""
    parser.set_defaults(repeats=3)
    parser.add_argument("--side", type=int, default=512, help="pixels, of squares, and about which sizes are mixed")
    parser.add_argument("--count", type=int, default=100, help="photographs of each kind")
    parser.add_argument("--tiny", type=int, default=0, help="files of 32 x 32 pixels, which show how memory grows")
