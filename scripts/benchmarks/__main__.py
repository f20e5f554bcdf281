"""Benchmarks; `scripts/bench --help` lists the commands.

Every figure is measured in fresh processes of one run. A peak is a process's VmHWM over its idle VmRSS, once the model
is loaded and has painted one 64 x 64 image. Time is the median of the paintings after the first, as a service paints
many. Each command prints a table, and writes it with machine, date and command as JSON, and a plot as PNG, under --out.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    batches,
    batching,
    cost,
    decoders,
    engines,
    jobs,
    limit,
    mutations,
    outlooks,
    painting,
    passes,
    profiling,
    scaling,
    service,
    soak,
    streams,
)
from benchmarks.chaos import endurance
from benchmarks.paths import RESULTS, RUNS, SAMPLE_PHOTOGRAPH, SCRATCH

Run = Callable[[argparse.Namespace], None]


class Commands:
    """The subcommands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, run: Run, out: Path = RESULTS) -> argparse.ArgumentParser:
        """Adds a command, which `run`'s docstring describes, with the options that all commands share."""
        parser = self._subparsers.add_parser(name, help=run.__doc__, description=run.__doc__)
        parser.set_defaults(run=run)
        parser.add_argument("--style", default="toon")
        parser.add_argument("--threads", type=int, default=os.cpu_count())
        parser.add_argument("--repeats", type=int, default=5, help="fresh processes for each figure")
        parser.add_argument("--out", type=Path, default=out, help="folder for JSON and plots")
        parser.add_argument("--scratch", type=Path, default=SCRATCH, help="folder for logs and exported models")
        return parser


def add_painting_commands(commands: Commands) -> None:
    """Adds the commands that measure painting without a server."""
    parser = commands.add("engines", painting.engines)
    add_sides(parser, [512, 1024])
    parser.add_argument("--engines", nargs="+", default=painting.ENGINES, choices=painting.ENGINES)
    allocators = list(painting.ALLOCATORS)
    parser.add_argument("--allocators", nargs="+", default=allocators, choices=allocators)
    parser.add_argument("--contenders", type=float, default=1.5, help="times the best rival's CPU-seconds, at most")

    parser = commands.add("errors", painting.errors)
    add_sides(parser, [512, 1024])
    parser.add_argument("--photo", type=Path, default=SAMPLE_PHOTOGRAPH)

    commands.add("sizes", painting.sizes)

    parser = commands.add("slots", painting.slots)
    add_sides(parser, [256, 512, 1024])
    parser.add_argument("--paintings", type=int, default=4, help="of a batch in each process; the first is not timed")

    add_sides(commands.add("mixed", painting.mixed), [256, 512, 1024])

    commands.add("ladder", painting.ladder)

    add_sides(commands.add("passes", passes.run), [64, 512, 1024])

    parser = commands.add("profile", profiling.profile, RUNS / "profile")
    parser.add_argument("--engine", default="strips", choices=list(engines.ENGINE_MAKERS))
    parser.add_argument("--side", type=int, default=512)

    parser = commands.add("measure", engines.measure)
    parser.add_argument("--engine", required=True, choices=list(engines.ENGINE_MAKERS))
    for name in ("height", "width", "batch", "paintings"):
        parser.add_argument(f"--{name}", type=int, default=1)


def add_sides(parser: argparse.ArgumentParser, default: list[int]) -> None:
    """Adds the option `--sides`."""
    parser.add_argument("--sides", type=int, nargs="+", default=default, help="pixels of the square images")


def add_service_commands(commands: Commands) -> None:
    """Adds the commands that measure batchers and servers."""
    batching.add_arguments(commands.add("batching", batching.run))
    service.add_arguments(commands.add("service", service.run))
    scaling.add_arguments(commands.add("scaling", scaling.run))
    limit.add_arguments(commands.add("limit", limit.run))
    cost.add_arguments(commands.add("cost", cost.run))
    soak.add_arguments(commands.add("soak", soak.run))
    endurance.add_arguments(commands.add("chaos", endurance.run))
    batches.add_arguments(commands.add("batch", batches.run))
    decoders.add_arguments(commands.add("decoders", decoders.run))
    mutations.add_arguments(commands.add("mutations", mutations.run))
    jobs.add_arguments(commands.add("jobs", jobs.run))
    outlooks.add_arguments(commands.add("outlooks", outlooks.run))
    streams.add_arguments(commands.add("streams", streams.run))


def main() -> None:
    """Runs the command that the command line names."""
    parser = argparse.ArgumentParser(
        "scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = Commands(parser)
    add_painting_commands(commands)
    add_service_commands(commands)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
