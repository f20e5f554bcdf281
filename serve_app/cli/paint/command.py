"""The command `animegan paint`."""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve_app.cli.arguments import DEFAULTS, FILE, add_command, add_look, completed
from serve_app.cli.paint.photographs import PIPE, Photograph, find_photographs
from serve_app.cli.paint.reports import Reporter, tell
from serve_app.cli.paint.work import Backend, Workers, settled
from serve_app.engine.host_memory import available_bytes
from serve_app.errors import AnimeganError

MAX_HELD_BYTES = 2**30  # of files and paintings at work, or an eighth of what is free if that is less
EXAMPLES = """
examples:
  animegan paint photo.jpg -o painted.jpg
  animegan paint photos holiday.heic -o painted
  animegan paint 'photos/**/*.jpg' -o painted --style ink --format webp
  curl -s https://example.org/photo.jpg | animegan paint - > painted.jpg
  animegan paint photos -o painted --url http://127.0.0.1:8000

Paintings that are there already are skipped, so a run that was stopped goes on
where it ended. The exit status is 0 if all are painted, and 1 if one is not.
docs/command-line.md says more.
"""


def add_paint_parser(commands: Any) -> None:
    """Adds `animegan paint` to the commands."""
    paint = add_command(
        commands,
        "paint",
        help="paint photographs, here or by a running service",
        description="Paints photographs: files, folders with all below them, patterns, or a pipe.",
        examples=EXAMPLES,
    )
    completed(
        paint.add_argument("photographs", nargs="+", metavar="PHOTO", help="file, folder, pattern in quotes, or -"),
        FILE,
    )
    completed(
        paint.add_argument("-o", "--output", metavar="OUT", help="folder, file, or -; default: - if PHOTO is -"), FILE
    )
    add_look(paint)
    run = paint.add_argument_group("the run")
    run.add_argument("--overwrite", action="store_true", help="paint again what is painted already")
    run.add_argument("--json", action="store_true", help="print a line of JSON for each photograph")
    run.add_argument(
        "--url", metavar="URL", help="have a running service paint; its API key is read from ANIMEGAN_API_KEY"
    )
    paint.set_defaults(command=paint_photographs)


def paint_photographs(options: argparse.Namespace) -> int:
    """`animegan paint`."""
    check_options(options)
    photographs = find_photographs(options)
    if not photographs:
        raise AnimeganError("there are no photographs there")
    check_streams(options, photographs)
    check_output(options.output)
    unsettled = [each for each in photographs if settled(each) is None]
    backend = open_backend(options) if unsettled else None
    stopped: list[int] = []
    with Reporter(len(unsettled), options.json) as reporter:
        for photograph in photographs:
            if (outcome := settled(photograph)) is not None:
                reporter.add(outcome)
        if backend is not None:
            workers = Workers(backend, min(MAX_HELD_BYTES, available_bytes() // 8), options.overwrite)
            with suppress(asyncio.CancelledError):
                asyncio.run(paint_all(workers, backend, unsettled, reporter, stopped))
    if stopped:
        print("animegan: stopped; the same command goes on from here", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + stopped[0])  # what is being painted now may take a minute more, and nobody waits for it
    return 1 if reporter.has_failures else 0


def check_options(options: argparse.Namespace) -> None:
    """Checks that options go together.

    Raises:
        AnimeganError: if they do not.
    """
    if options.url is not None and options.precision is not None:
        raise AnimeganError("--precision is of painting here; a service has its own, so leave it out with --url")


def check_streams(options: argparse.Namespace, photographs: list[Photograph]) -> None:
    """Checks what the standard streams are used for.

    Raises:
        AnimeganError: if two things would be mixed, or a terminal were used for a picture.
    """
    if any(each.target is None for each in photographs):
        if options.json:
            raise AnimeganError("the painting and --json both need the standard output; name a file with -o")
        if sys.stdout.isatty():
            raise AnimeganError("the painting would go to the terminal; name a file with -o, or use a pipe")
    if any(each.source is None for each in photographs) and sys.stdin.isatty():
        raise AnimeganError("- reads the photograph from a pipe, and there is none")


def check_output(output: str | None) -> None:
    """Checks that no part of the path of the paintings is a file.

    Raises:
        AnimeganError: if one is.
    """
    if output in (None, PIPE):
        return
    place = next(place for place in (Path(str(output)), *Path(os.path.abspath(str(output))).parents) if place.exists())
    if not place.is_dir() and place != Path(str(output)):
        raise AnimeganError(f"{output} cannot be written: {place} is a file")


def open_backend(options: argparse.Namespace) -> Backend:
    """Returns what paints: this process, or a service. It loads the model, or asks the service for its limits.

    Raises:
        AnimeganError: if it cannot paint with these options.
    """
    if options.url is not None:
        from serve_app.cli.paint.remote import RemotePainter, read_key

        return RemotePainter(options.url, read_key(), options.style, options.max_side, options.quality, tell)
    from serve_app.cli.paint.local import LocalPainter

    return LocalPainter(
        options.style or DEFAULTS.default_style,
        options.precision or "auto",
        options.max_side or DEFAULTS.max_side,
        options.quality,
    )


async def paint_all(
    workers: Workers, backend: Backend, photographs: list[Photograph], reporter: Reporter, stopped: list[int]
) -> None:
    """Paints photographs until all are done; a signal to end cancels it, and is added to `stopped`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop(number: int) -> None:
        stopped.append(number)
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    async with backend:
        await workers.paint_all(photographs, reporter.add)
