"""What the project ships, and the folder of photographs and hostile files beside a clone, where there is one."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("ANIMEGAN_SHARED", ROOT.parent / "shared"))
SHIPPED_STYLES = ["brush", "cel", "ink", "toon"]

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no folder of test photographs at {SHARED} (set ANIMEGAN_SHARED)"
)


def files_of(folder: str) -> list[Path]:
    """Every photograph or hostile file below a folder of SHARED, in order; empty where SHARED is absent."""
    return sorted(path for path in (SHARED / folder).glob("*/*") if path.is_file())


def name_of(path: Path) -> str:
    """The test id of a file: its folder and name."""
    return f"{path.parent.name}/{path.name}"
