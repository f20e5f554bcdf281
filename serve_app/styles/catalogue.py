"""The catalogue of styles: the installed ones, and those that can be downloaded.

An installed style is one safetensors file that describes itself in its header. A file that is damaged is left out, and
the others are served. The file `catalogue.toml` beside the shipped styles lists those that can be pulled.
"""

import json
import logging
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from serve_app.errors import StyleError, UnknownStyle
from serve_app.frames import ResizeMode
from serve_app.settings import StrictModel
from serve_app.styles.integrity import DESCRIPTION, StyleContent, parse, verify
from serve_app.styles.text import Text, printable
from serve_app.styles.thumbnails import read_thumbnail

logger = logging.getLogger(__name__)

STYLES_DIR_VARIABLE = "ANIMEGAN_STYLES_DIR"
CATALOGUE = "catalogue.toml"
MTIME_NS = 3  # of a file's stamp
SUFFIX = ".safetensors"
MAX_STYLE_BYTES = 64 * 2**20  # of one file; a style has 8.6 MB in float32


class Style(StrictModel):
    """A checkpoint, and how it must be run.

    Attributes:
        name: by which requests choose it.
        title: for people.
        resize: how its decoder upsamples; see `serve_app.engine.generator`.
        eps: of its norms: 1e-12 in checkpoints converted from TensorFlow's layer norm, else 1e-5.
        licence: of the weights.
        source: where it comes from, an address or a sentence.
        credit: whose work it is.
        psnr_bf16: of its paintings in bf16 to those in float32, in dB; None if it was not measured. See
            `serve_app.engine.fidelity`.
        summary: a sentence on what it is good for; None if nobody has said so.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    title: Text
    resize: ResizeMode
    eps: float = Field(gt=0, le=1, allow_inf_nan=False)
    licence: Text
    source: Text
    credit: Text
    psnr_bf16: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    summary: Text | None = None

    @property
    def multiple(self) -> int:
        """Painted sides are multiples of this many pixels."""
        return 1 if self.resize == "align" else 4

    def to_header(self) -> dict[str, str]:
        """Returns its description for the header of its safetensors file, which can hold only strings."""
        return {DESCRIPTION: self.model_dump_json(exclude_none=True)}


class CatalogueEntry(Style):
    """A style that can be downloaded from its `source`; at least one digest is needed to verify the file."""

    file: str
    bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None


def default_eps(resize: ResizeMode) -> float:
    """Returns the eps of the norms that checkpoints of a resize mode usually have."""
    return 1e-12 if resize == "tf" else 1e-5


def shipped_dir() -> Path:
    """Returns the folder `weights/`: inside the package in a wheel, beside it in a clone."""
    package = Path(__file__).parent.parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def local_dir(setting: Path | None = None) -> Path:
    """Returns the folder of pulled and imported styles: the setting, else ANIMEGAN_STYLES_DIR, else `shipped_dir()`."""
    if setting is not None:
        return setting.expanduser()
    variable = os.environ.get(STYLES_DIR_VARIABLE)
    return Path(variable).expanduser() if variable else shipped_dir()


def read_catalogue() -> dict[str, CatalogueEntry]:
    """Reads the styles that can be downloaded, by name."""
    entries = tomllib.loads((shipped_dir() / CATALOGUE).read_text(encoding="utf-8"))["style"]
    return {entry["name"]: CatalogueEntry(**entry) for entry in entries}


class InstalledStyle(Style):
    """A style whose file is on this machine.

    Attributes:
        path: of the file.
        digest: of the content that was read; files that carry none have one too. Empty if nothing was read.
        stamp: of the file before it was read.
        thumbnail: a small sample painting, a WebP file; empty if there is none. See `serve_app.styles.thumbnails`.
    """

    path: Path
    digest: str = ""
    stamp: tuple[int, ...] = ()
    thumbnail: bytes = Field(default=b"", repr=False)

    @property
    def is_current(self) -> bool:
        """Whether the file is still the one that was read. It takes some microseconds."""
        return self.stamp == file_stamp(self.path)

    @property
    def written_s(self) -> int:
        """When the file that was read was written, in seconds since 1970; 0 if nothing was read."""
        return self.stamp[MTIME_NS] // 10**9 if self.stamp else 0


class LeftOut(NamedTuple):
    """A file in a folder of styles that cannot be used: the name of the style, and a sentence that says why."""

    name: str
    reason: str


class InstalledStyles(dict[str, InstalledStyle]):
    """The styles that can paint now, by name.

    Attributes:
        left_out: files that cannot be used.
        without_digest: names of styles whose files carry no digest, because an older version wrote them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[LeftOut] = []
        self.without_digest: set[str] = set()

    def add_folder(self, folder: Path) -> None:
        """Adds the styles of a folder, which override those of the same names.

        A file that is left out overrides too: nobody should get the paintings of another style under its name.
        """
        found: list[tuple[InstalledStyle, StyleContent]] = []
        for path in self._files(folder):
            try:
                found.append(read_style(path))
            except StyleError as error:
                self.left_out.append(LeftOut(path.stem, str(error)))
                self.pop(path.stem, None)
        found.sort(key=lambda each: each[0].path.stem != each[0].name)  # of two, the one where `import` would write it
        added: dict[str, InstalledStyle] = {}
        for style, content in found:
            if style.name in added:
                paths = f"{printable(style.path)} is the style {style.name}, and so is {added[style.name].path}"
                self.left_out.append(LeftOut(style.path.stem, f"{printable(paths)}; remove one of them."))
                continue
            added[style.name] = style
            (self.without_digest.discard if content.has_digest else self.without_digest.add)(style.name)
        self.update(added)

    def _files(self, folder: Path) -> list[Path]:
        try:
            return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))
        except FileNotFoundError:
            return []
        except OSError as error:
            self.left_out.append(LeftOut("", f"{printable(folder)} cannot be read: {error.strerror}."))
            return []


def find_installed(setting: Path | None = None) -> InstalledStyles:
    """Reads the styles that can paint now; a file in the local folder overrides a shipped style of its name."""
    styles = InstalledStyles()
    for folder in dict.fromkeys([shipped_dir(), local_dir(setting)]):
        styles.add_folder(folder)
    return styles


def installed_styles(setting: Path | None = None) -> InstalledStyles:
    """Reads the styles that can paint now, and logs a warning of each file that is left out or has no digest."""
    styles = find_installed(setting)
    for left_out in styles.left_out:
        logger.warning("a style is left out: %s", left_out.reason)
    for name in sorted(styles.without_digest):
        logger.warning(
            "%s has no digest, because an older version wrote it. Damage to it would go unnoticed: install it again.",
            printable(styles[name].path),
        )
    return styles


def file_stamp(path: Path) -> tuple[int, ...]:
    """Returns what changes when a file is replaced or written to; empty if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_installed(path: Path) -> InstalledStyle:
    """Reads the description of a style from the header of its file, and verifies the whole file.

    Raises:
        StyleError: if the file is damaged or is not a style of this service.
    """
    return read_style(path)[0]


def read_style(path: Path) -> tuple[InstalledStyle, StyleContent]:
    """Reads and verifies the file of a style.

    Raises:
        StyleError: if the file is damaged or is not a style of this service.
    """
    stamp = file_stamp(path)
    data = read_file(path)
    name = printable(path)
    try:
        content = parse(data)
    except StyleError as error:
        raise StyleError(f"{name} is damaged and cannot be read as a style: {error}") from error
    try:
        description: dict[str, Any] = json.loads(content.header[DESCRIPTION])
        style = InstalledStyle(**description, path=path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if content.has_digest:
            raise StyleError(f"{name} is damaged: its description cannot be read; install it again.") from error
        raise StyleError(
            f"{name} does not describe itself as a style; install it with `animegan styles import`."
        ) from error
    try:
        verify(content)
    except StyleError as error:
        raise StyleError(f"{name} is damaged: {error}; install it again.") from error
    read = {"digest": content.verified_digest(), "stamp": stamp, "thumbnail": read_thumbnail(path)}
    return style.model_copy(update=read), content


def read_file(path: Path) -> bytes:
    """Returns the bytes of a style's file.

    Raises:
        StyleError: if it cannot be read, is no regular file (opening a pipe would wait for ever), or is too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise StyleError(f"{printable(path)} is {kind}, not the file of a style.")
        if status.st_size > MAX_STYLE_BYTES:
            raise StyleError(f"{printable(path)} has {status.st_size} bytes; a style has at most {MAX_STYLE_BYTES}.")
        return path.read_bytes()
    except OSError as error:
        raise StyleError(f"{printable(path)} cannot be read: {error.strerror}.") from error


def find_style(
    styles: Mapping[str, InstalledStyle], name: str, catalogue: Mapping[str, Style] | None = None
) -> InstalledStyle:
    """Returns an installed style.

    Args:
        styles: installed ones, by name.
        name: as a user wrote it.
        catalogue: styles that can be downloaded; the error says how, if `name` is one of them.

    Raises:
        UnknownStyle: naming the styles that are installed.
    """
    if name not in styles:
        known = ", ".join(sorted(styles)) or "none"
        left_out = styles.left_out if isinstance(styles, InstalledStyles) else []
        if any(name == each.name for each in left_out):
            raise UnknownStyle(
                f"The style {name[:64]!r} is left out, because its file cannot be used; the log says why. Installed "
                f"are: {known}."
            )
        pull = f" `animegan styles pull {name}` and a restart install it." if name in (catalogue or {}) else ""
        raise UnknownStyle(f"There is no style {name[:64]!r} here; installed are: {known}.{pull}")
    return styles[name]
