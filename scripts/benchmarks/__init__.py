"""The project's benchmarks, one module a subject; `scripts/bench --help` lists them."""

import os
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent


def child_environment() -> dict[str, str]:
    """Environment variables with which a fresh Python finds this package."""
    paths = [str(SCRIPTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
