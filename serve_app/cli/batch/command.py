"""The command `animegan batch`."""

import argparse
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any

from serve_app.cli.arguments import DEFAULTS, FILE, add_command, add_look, bounded, completed
from serve_app.cli.batch.manifest import FOLDER, Manifest, read_manifest
from serve_app.cli.batch.plan import Plan, list_names, lost_lines, make_plan
from serve_app.cli.batch.progress import Progress, parsed
from serve_app.cli.batch.storage import LocalStorage, Storage, open_storage
from serve_app.cli.paint.reports import as_json
from serve_app.errors import AnimeganError
from serve_app.styles.catalogue import find_style, installed_styles, read_catalogue

NEEDED = ("pandas", "pyarrow")  # by Ray Data, from the extra `batch`
MOST = 100_000  # painters, or CPUs of one
EXAMPLES = """
examples:
  animegan batch photos painted
  animegan batch s3://bucket/photos s3://bucket/painted --style ink
  animegan batch /shared/photos /shared/painted --address auto --num-gpus 0.25

Photographs whose paintings are there already are skipped, so a run that was
stopped or killed goes on where it ended. What came of each photograph is in
DST/_manifest. The exit status is 0 if all are painted, and 1 if one is not.
docs/command-line.md says more.
"""


def add_batch_parser(commands: Any) -> None:
    """Adds `animegan batch` to the commands."""
    batch = add_command(
        commands,
        "batch",
        help="paint a folder or a bucket on a Ray cluster",
        description="Paints all photographs of a folder or a bucket, here or on a Ray cluster.",
        examples=EXAMPLES,
    )
    completed(batch.add_argument("source", metavar="SRC", help="folder, or s3://BUCKET/PREFIX"), FILE)
    completed(batch.add_argument("destination", metavar="DST", help="folder, or s3://BUCKET/PREFIX"), FILE)
    add_look(batch)
    run = batch.add_argument_group("the run")
    run.add_argument("--overwrite", action="store_true", help="paint again what is painted already")
    run.add_argument("--skip-failed", action="store_true", help="do not try again what failed in an earlier run")
    run.add_argument("--json", action="store_true", help="print the lines of the manifest as they come")
    cluster = batch.add_argument_group("the cluster")
    cluster.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster, or auto; default: a Ray of its own on this machine"
    )
    cluster.add_argument(
        "--num-gpus", type=gpus, metavar="N", help="GPUs of a painter, 0.25 for example; default: 1, or 0 without GPUs"
    )
    cluster.add_argument(
        "--num-cpus", type=count, metavar="N", help="CPUs of a painter; default: what its node has for each"
    )
    cluster.add_argument(
        "--painters", type=count, nargs=2, metavar=("MIN", "MAX"), help="default: as many as there is room for"
    )
    batch.set_defaults(command=paint_batch)


def gpus(text: str) -> float:
    """Returns a number of GPUs: a fraction of one, or whole ones, as Ray takes them.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= MOST or (number > 1 and not number.is_integer()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, or a whole one")
    return number


def count(text: str) -> int:
    """Returns a number of painters or CPUs."""
    return bounded(text, 1, MOST)


def paint_batch(options: argparse.Namespace) -> int:
    """`animegan batch`."""
    check_options(options)
    source, destination = open_storage(options.source), open_storage(options.destination)
    if isinstance(source, LocalStorage) and not os.path.isdir(source.address):
        raise AnimeganError(f"there is no folder {options.source}")
    with stopping() as stopped:
        names = list_names(destination)
        earlier = read_manifest(destination, names.get(FOLDER, ()))
        if not options.skip_failed:
            earlier.failed.clear()
        plan = make_plan(source, destination, options.format, {} if options.overwrite else names, earlier)
        if not (plan.tasks or plan.outcomes or plan.failures or plan.done):
            raise AnimeganError(f"there are no photographs in {options.source}")
        progress = run(plan, options, source, destination)
    if stopped:
        print("animegan: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + stopped[0]
    return 1 if progress is None or progress.statuses["failed"] else 0


def check_options(options: argparse.Namespace) -> None:
    """Checks what can be known before anything is listed.

    Raises:
        AnimeganError: if the extra is not installed, or the options do not go together.
        UnknownStyle: if the style is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise AnimeganError("batches need the extra `batch`: pip install 'animegan-serve[batch]'")
    if options.painters and options.painters[0] > options.painters[1]:
        raise AnimeganError("--painters takes the smaller number first")
    find_style(installed_styles(), options.style or DEFAULTS.default_style, read_catalogue())


def run(plan: Plan, options: argparse.Namespace, source: Storage, destination: Storage) -> Progress:
    """Paints what is planned, and writes the manifest."""
    out = sys.stdout  # for lines alone: Ray says there what its nodes do
    progress = Progress(len(plan.tasks))
    progress.statuses["skipped"] += plan.done
    with Manifest(destination) as manifest:

        def add(line: str, is_new: bool, is_known: bool = False) -> None:
            if not is_known:
                manifest.add(line)
            progress.add(parsed(line), is_new)
            if options.json:
                print(line, file=out, flush=True)

        try:
            for line in plan.failures:
                add(line, is_new=False, is_known=True)
            for outcome in plan.outcomes:
                if outcome.status == "failed":
                    add(json.dumps(as_json(outcome)), is_new=False)
                else:
                    manifest.add(json.dumps(as_json(outcome)))
            for line in painted_lines(plan, options, source, destination):
                add(line, is_new=True)
        finally:
            progress.close()
    return progress


def painted_lines(plan: Plan, options: argparse.Namespace, source: Storage, destination: Storage) -> Iterator[str]:
    """Paints on the cluster, and yields lines of the manifest.

    Raises:
        AnimeganError: if a painter says that no other photograph can be painted either, or Ray fails.
    """
    if not plan.tasks:
        return
    from serve_app.cli.batch.cluster import joined, nodes, painted, size_pool
    from serve_app.cli.batch.painters import END, Work
    from serve_app.cli.paint.local import Share

    work = Work(
        source.address,
        destination.address,
        options.style or DEFAULTS.default_style,
        options.precision or "auto",
        options.max_side or DEFAULTS.max_side,
        options.quality,
        options.overwrite,
        Share(),
    )
    waiting = {task.photo: task for task in plan.tasks}
    with redirect_stdout(sys.stderr), joined(options.address):
        pool = size_pool(nodes(), options.num_gpus, options.num_cpus, options.painters, len(plan.tasks))
        for line in painted(plan.tasks, work, pool):
            record = parsed(line)
            if END in record:
                raise AnimeganError(record[END])
            waiting.pop(record["photo"], None)
            yield line
    yield from lost_lines(waiting.values(), destination)


class Stopped(BaseException):
    """Raised in the main thread by the first SIGINT or SIGTERM."""


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Ends the block at the first SIGINT or SIGTERM, which is added to the list; later ones are ignored meanwhile."""
    stopped: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        stopped.append(number)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stopped
    except Stopped:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
