"""What counts as a photograph, and how its painting is named: the rules of `animegan paint` and `animegan batch`.

A painting keeps the name of its photograph, with the suffix of its format. Where another photograph of the same folder
would get the same name, each keeps its own suffix before that: `a.png.jpg` beside `a.jpg`. So a name depends on the
folder alone, and a command that is repeated finds what it has done.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from serve_app.frames import ImageFormat

SUFFIXES: dict[ImageFormat, tuple[str, ...]] = {  # the first of each is given to paintings
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "webp": (".webp",),
    "avif": (".avif",),
}
READ_ONLY_SUFFIXES = (".heic", ".heif", ".hif", ".gif", ".bmp", ".dib", ".tif", ".tiff")
FORMATS: dict[str, ImageFormat] = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}
PHOTOGRAPHS = FORMATS.keys() | set(READ_ONLY_SUFFIXES)

DEFAULT_FORMAT: ImageFormat = "jpeg"


def is_photograph(name: str) -> bool:
    """Returns whether a file in a folder counts as a photograph."""
    return name[0] != "." and Path(name).suffix.lower() in PHOTOGRAPHS


def painting_name(photograph: Path, format: ImageFormat | None, plain_names: Callable[[Path], Counter[str]]) -> str:
    """Returns the name of a photograph's painting.

    Args:
        photograph: its file.
        format: of all paintings; None for that of each photograph.
        plain_names: returns how many photographs of a folder have which `plain_name`.
    """
    name = photograph.name
    plain = plain_name(name, format)
    others = plain_names(photograph.parent)[plain] - is_photograph(name)
    return plain if plain == name or others <= 0 else name + SUFFIXES[format_for(name, format)][0]


def plain_name(name: str, format: ImageFormat | None) -> str:
    """Returns the name that a painting has if no other photograph is in the way."""
    own = format_for(name, format)
    path = Path(name)
    return name if path.suffix.lower() in SUFFIXES[own] else without_suffix(path) + SUFFIXES[own][0]


def without_suffix(path: Path) -> str:
    """Returns a name without its suffix, if that is one of a picture's."""
    return path.stem if path.suffix.lower() in PHOTOGRAPHS else path.name


def format_for(name: str, format: ImageFormat | None) -> ImageFormat:
    """Returns the format of a painting: the one that is wanted, else that of the photograph if it can be written."""
    return format or FORMATS.get(Path(name).suffix.lower(), DEFAULT_FORMAT)
