"""Which photographs a command line names, and where each painting goes. Nothing is opened here."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, Protocol

from serve_app.cli.paint.names import (
    DEFAULT_FORMAT,
    FORMATS,
    PHOTOGRAPHS,
    READ_ONLY_SUFFIXES,
    SUFFIXES,
    format_for,
    is_photograph,
    painting_name,
    plain_name,
)
from serve_app.errors import AnimeganError
from serve_app.frames import ImageFormat

PIPE = "-"


class PhotographError(AnimeganError):
    """A photograph that is not painted, for a reason that is not one of the service's refusals.

    Args:
        code: for programs.
        detail: for people.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Sources(Protocol):
    """What `find_photographs` reads of a command line.

    Attributes:
        photographs: files, folders, patterns, or `-`.
        output: a folder, a file, or `-`; None if it is not given.
        format: of all paintings; None for that of each photograph.
        overwrite: whether finished paintings are painted again.
    """

    photographs: list[str]
    output: str | None
    format: ImageFormat | None
    overwrite: bool


@dataclass(frozen=True)
class Photograph:
    """A photograph that is named by a command line.

    Attributes:
        source: its file; None for the standard input.
        target: the file of its painting; None for the standard output.
        format: of the painting.
        problem: why it cannot be painted; None if nothing is known yet.
        is_done: whether its painting is there already.
    """

    source: Path | None
    target: Path | None
    format: ImageFormat
    problem: PhotographError | None = None
    is_done: bool = False

    @property
    def name(self) -> str:
        """The file as it was named, `-` for the standard input."""
        return PIPE if self.source is None else str(self.source)


class Found(NamedTuple):
    """A file, the path that its painting keeps below the output folder, and why it cannot be read, if that is so."""

    source: Path
    kept: Path
    problem: PhotographError | None = None


def find_photographs(options: Sources) -> list[Photograph]:
    """Returns all photographs of a command line, in its order, each once.

    Raises:
        AnimeganError: if the command line cannot be meant.
    """
    if PIPE in options.photographs or options.output in (None, PIPE):
        return [piped(options)]
    output = Path(str(options.output))
    if is_file_name(options):
        source = Path(options.photographs[0])
        problem = None if source.exists() else missing()
        photographs = [Photograph(source, output, format_of(output, options.format), problem)]
    else:
        looks_like_file = output.suffix.lower() in PHOTOGRAPHS and not str(options.output).endswith(os.sep)
        if output.is_file() or (looks_like_file and not output.is_dir()):
            raise AnimeganError(f"{output} is the name of a file; several photographs need a folder")
        photographs = list(with_targets(expanded(options.photographs, output), output, options.format))
    return list(checked(photographs, options.overwrite))


def piped(options: Sources) -> Photograph:
    """Returns the one photograph of a command line with a pipe.

    Raises:
        AnimeganError: if there are more, or the output cannot be meant.
    """
    (name, *others), output = options.photographs, options.output
    if output is None and name != PIPE:
        raise AnimeganError("-o is missing: a folder, a file, or - for the standard output")
    if others:
        raise AnimeganError("a pipe carries one photograph; name one, or give -o a folder and no -")
    if output in (None, PIPE):
        if name != PIPE and Path(name).is_dir():
            raise AnimeganError("a pipe carries one photograph; give -o a folder")
        format = options.format or FORMATS.get(Path(name).suffix.lower(), DEFAULT_FORMAT)
        return Photograph(None if name == PIPE else Path(name), None, format)
    target = Path(str(output))
    if target.is_dir() or str(output).endswith(os.sep):
        raise AnimeganError(f"{output} is a folder, and a photograph from a pipe has no name; give -o a file")
    photograph = Photograph(None, target, format_of(target, options.format))
    return next(checked([photograph], options.overwrite))


def is_file_name(options: Sources) -> bool:
    """Returns whether the output is the file of the only photograph, not a folder."""
    output, (first, *others) = Path(str(options.output)), options.photographs
    if others or output.is_dir() or str(options.output).endswith(os.sep) or Path(first).is_dir():
        return False
    if glob.has_magic(first) and not os.path.lexists(first):
        return False
    return output.is_file() or output.suffix.lower() in PHOTOGRAPHS


def format_of(output: Path, wanted: ImageFormat | None) -> ImageFormat:
    """Returns the format that the name of an output file tells of.

    Raises:
        AnimeganError: if another one is wanted, or if it cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix in READ_ONLY_SUFFIXES:
        known = ", ".join(suffixes[0] for suffixes in SUFFIXES.values())
        raise AnimeganError(f"{output} would be the name of a {suffix[1:]}, which is not written; use {known}")
    told = FORMATS.get(suffix)
    if told and wanted and told != wanted:
        raise AnimeganError(f"{output} is the name of a {told}, and --format is {wanted}")
    return wanted or told or DEFAULT_FORMAT


def expanded(arguments: list[str], output: Path) -> Iterator[Found]:
    """Yields the files that arguments name; the output folder is left out, as a shell's `*` names it too.

    Raises:
        AnimeganError: if the output folder alone is named.
    """
    named = [argument for argument in arguments if not is_same(Path(argument), output)]
    if not named:
        raise AnimeganError(f"{output} holds the photographs; name another folder for the paintings")
    for argument in named:
        path = Path(argument)
        if path.is_dir():
            yield from below(path, path, output)
        elif os.path.lexists(path) or not glob.has_magic(argument):
            yield Found(path, Path(path.name), None if path.exists() else missing())
        else:
            yield from matching(argument, output)


def matching(pattern: str, output: Path) -> Iterator[Found]:
    """Yields the photographs that a pattern matches, `**` for any folders, or that lie in folders that it matches.

    Their paths below the fixed part of the pattern are kept.
    """
    root = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    paths = [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if not is_inside(path, output)]
    if not paths:
        yield Found(Path(pattern), Path("pattern"), PhotographError("no-file", "Nothing matches this pattern."))
    for path in paths:
        if path.is_dir():
            yield from below(path, root, output)
        elif is_photograph(path.name):
            yield Found(path, path.relative_to(root))


def below(folder: Path, root: Path, output: Path) -> Iterator[Found]:
    """Yields the photographs of a folder and of those below it; hidden files and the output folder are left out."""
    closed: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(name for name in folders if name[0] != "." and not is_same(Path(place, name), output))
        for name in sorted(names):
            path = Path(place, name)
            if is_photograph(name) and path.is_file():
                yield Found(path, path.relative_to(root))
    for error in closed:
        path = Path(str(error.filename))
        yield Found(path, path.relative_to(root), PhotographError("file-error", f"{error.strerror}."))


def with_targets(found: Iterable[Found], output: Path, format: ImageFormat | None) -> Iterator[Photograph]:
    """Yields photographs with the files that their paintings go to."""

    @cache
    def plain_names(folder: Path) -> Counter[str]:
        return Counter(plain_name(name, format) for name in names_in(folder))

    seen: set[str] = set()
    for source, kept, problem in found:
        place = os.path.abspath(source)
        if place not in seen:
            seen.add(place)
            target = output / kept.with_name(painting_name(source, format, plain_names)) if problem is None else None
            yield Photograph(source, target, format_for(source.name, format), problem)


def checked(photographs: Iterable[Photograph], overwrite: bool) -> Iterator[Photograph]:
    """Yields photographs with what the files that are there already say of them."""
    photographs = list(photographs)
    own = {identity(each.source) for each in photographs if each.source is not None} - {None}
    painted: dict[Path, Photograph] = {}
    for each in photographs:
        problem, is_done, target = each.problem, False, each.target
        if target is not None and problem is None:
            other = painted.setdefault(target, each)
            if other is not each:
                problem = PhotographError(
                    "same-name", f"It would be painted over {other.name}, as {target}; give it a folder of its own."
                )
            elif target.is_dir():
                problem = PhotographError("file-error", f"{target} is a folder.")
            elif identity(target) in own:
                problem = PhotographError("over-photograph", f"{target} is a photograph; name another folder with -o.")
            else:
                is_done = target.exists() and not overwrite
        yield Photograph(each.source, target, each.format, problem, is_done)


def names_in(folder: Path) -> list[str]:
    """Returns the names of the photographs in a folder; none if it cannot be read."""
    try:
        return [name for name in os.listdir(folder) if is_photograph(name)]
    except OSError:
        return []


def missing() -> PhotographError:
    """Returns that a file is not there."""
    return PhotographError("no-file", "There is no such file.")


def is_same(one: Path, other: Path) -> bool:
    """Returns whether two paths are the same file or folder, and there."""
    found = identity(one)
    return found is not None and found == identity(other)


def is_inside(path: Path, folder: Path) -> bool:
    """Returns whether a file lies in a folder or below it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def identity(path: Path | None) -> tuple[int, int] | None:
    """Returns what tells a file from all others, whatever its path; None if it is not there."""
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)
