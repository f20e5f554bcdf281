"""The catalogue of styles: the installed ones, and those that can be downloaded.

An installed style is one safetensors file that describes itself in its header. The file `catalogue.toml` beside the
shipped styles lists those that can be pulled.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from serve_app.errors import StyleError, UnknownStyle
from serve_app.frames import ResizeMode
from serve_app.settings import StrictModel

STYLES_DIR_VARIABLE = "ANIMEGAN_STYLES_DIR"
CATALOGUE = "catalogue.toml"


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
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    title: str
    resize: ResizeMode
    eps: float = Field(gt=0, allow_inf_nan=False)
    licence: str
    source: str
    credit: str

    @property
    def multiple(self) -> int:
        """Painted sides are multiples of this many pixels."""
        return 1 if self.resize == "align" else 4

    def to_header(self) -> dict[str, str]:
        """Returns the header of its safetensors file, which can hold only strings."""
        return {"animegan_style": self.model_dump_json()}


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


def installed_styles(setting: Path | None = None) -> dict[str, "InstalledStyle"]:
    """Reads the styles that can paint now, by name; a file in the local folder overrides a shipped style of its name.

    Raises:
        StyleError: if a style file cannot be read, naming the file.
    """
    folders = dict.fromkeys([shipped_dir(), local_dir(setting)])
    paths = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return {style.name: style for style in map(read_installed, paths)}


class InstalledStyle(Style):
    """A style whose file is on this machine."""

    path: Path


def read_installed(path: Path) -> InstalledStyle:
    """Reads the description of a style from the header of its file.

    Raises:
        StyleError: if the file is damaged or is not a style of this service.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, str] = file.metadata() or {}
        description: dict[str, Any] = json.loads(header["animegan_style"])
        return InstalledStyle(**description, path=path)
    except (OSError, SafetensorError) as error:
        raise StyleError(f"{path} is damaged and cannot be read as a style: {error}") from error
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise StyleError(
            f"{path} does not describe itself as a style; install it with `animegan styles import`."
        ) from error


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
        known = ", ".join(sorted(styles))
        pull = f" `animegan styles pull {name}` and a restart install it." if name in (catalogue or {}) else ""
        raise UnknownStyle(f"There is no style {name[:64]!r} here; installed are: {known}.{pull}")
    return styles[name]
