"""Validators of container files: installed with the extra `test`, where their platform has them."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def program(name: str) -> str:
    """The path of a validator's program; skips the test where it is missing."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here (extra `test`)")
    return found


def module(name: str) -> ModuleType:
    """A validator's module; skips the test where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed here (extra `test`): {error}")


def complaints(command: list[str]) -> str:
    """What a validator prints if it is not content; empty if it is."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stdout + done.stderr
