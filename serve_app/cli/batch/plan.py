"""Which photographs are painted, and where each painting goes; nothing is opened, and listings alone are read.

Names are those of `animegan paint`.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from serve_app.cli.batch.manifest import Earlier
from serve_app.cli.batch.storage import Folder, Storage, place_below
from serve_app.cli.paint.names import format_for, is_photograph, painting_name, plain_name
from serve_app.cli.paint.photographs import Photograph, PhotographError
from serve_app.cli.paint.reports import as_json
from serve_app.cli.paint.work import Outcome
from serve_app.errors import AnimeganError
from serve_app.frames import ImageFormat

Listing = dict[str, Collection[str]]  # names of files by folder


class Task(NamedTuple):
    """A photograph that is to be painted.

    Attributes:
        photo: its path below the source.
        painting: the path of its painting below the destination.
        format: of the painting.
        bytes: of the photograph's file, when it was listed.
    """

    photo: str
    painting: str
    format: ImageFormat
    bytes: int


@dataclass
class Plan:
    """What is to be done, and what is known already.

    Attributes:
        tasks: to be painted.
        outcomes: of others that the manifest does not tell of yet.
        failures: lines of the manifest about photographs that are not tried again.
        done: number of photographs whose paintings are there.
    """

    tasks: list[Task] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: int = 0


def make_plan(
    source: Storage,
    destination: Storage,
    format: ImageFormat | None,
    painted: Listing,
    earlier: Earlier,
) -> Plan:
    """Returns the plan of a run.

    Args:
        source: of the photographs.
        destination: of the paintings.
        format: of all paintings; None for that of each photograph.
        painted: files of the destination that are not painted again.
        earlier: what the manifest tells of earlier runs. Failures in it are not tried again.

    Raises:
        AnimeganError: if the destination holds the source, so that photographs might be painted over; or if the source
            cannot be listed.
    """
    if place_below(destination, source) is not None:
        raise AnimeganError(f"{destination.address} holds the photographs; name another place for the paintings")
    plan = Plan()
    inner = place_below(source, destination)
    for folder in source.folders():
        if inner and PurePosixPath(folder.path).is_relative_to(inner):
            continue
        if folder.problem is not None:
            plan.outcomes.append(
                Outcome(Photograph(Path(folder.path or "."), None, "jpeg"), "failed", error=folder.problem)
            )
        for outcome, task in planned(folder, format, painted):
            if outcome is not None and outcome.status == "failed":
                plan.outcomes.append(outcome)
            elif outcome is not None:
                plan.done += 1
                if task.photo not in earlier.painted:
                    plan.outcomes.append(outcome)
            elif (line := earlier.failed.get(task.photo)) is not None:
                plan.failures.append(line)
            else:
                plan.tasks.append(task)
    return plan


def lost_lines(tasks: Iterable[Task], destination: Storage) -> Iterator[str]:
    """Yields lines of the manifest about photographs of which no painter has told what came of them.

    Their painters died, again and again; the cause is one of those that they had at the time. Some are painted.
    """
    for task in tasks:
        photograph = Photograph(Path(task.photo), Path(task.painting), task.format)
        outcome = Outcome(photograph, "skipped")
        if not destination.is_file(task.painting):
            detail = "Its painter's process died each time, by this photograph or another one; memory may be short."
            outcome = Outcome(photograph, "failed", error=PhotographError("painter-died", detail))
        yield json.dumps(as_json(outcome))


def list_names(storage: Storage) -> Listing:
    """Returns the names of all files of a storage.

    Raises:
        AnimeganError: if it cannot be listed.
    """
    return {folder.path: {file.name for file in folder.files} for folder in storage.folders()}


def planned(folder: Folder, format: ImageFormat | None, painted: Listing) -> Iterator[tuple[Outcome | None, Task]]:
    """Yields the photographs of a folder; each with its outcome, if that is known."""
    photographs = [file for file in folder.files if is_photograph(file.name)]
    plain_names = Counter(plain_name(file.name, format) for file in photographs)
    there = painted.get(folder.path, ())
    seen: dict[str, str] = {}
    for file in photographs:
        name = painting_name(Path(file.name), format, lambda _: plain_names)
        photo, painting = (str(PurePosixPath(folder.path, each)) for each in (file.name, name))
        task = Task(photo, painting, format_for(file.name, format), file.bytes)
        photograph = Photograph(Path(photo), Path(painting), task.format)
        outcome = None
        if (other := seen.setdefault(name, file.name)) != file.name:
            error = PhotographError("same-name", f"It would be painted over {other}, as {painting}; rename it.")
            outcome = Outcome(photograph, "failed", error=error)
        elif name in there:
            outcome = Outcome(photograph, "skipped")
        yield outcome, task
