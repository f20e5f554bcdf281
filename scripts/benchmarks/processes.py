"""Fresh Python processes that run one module of the benchmarks and answer with a line of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.paths import SCRIPTS


def child_environment() -> dict[str, str]:
    """Returns environment variables with which a fresh Python finds this package."""
    paths = [str(SCRIPTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_module(
    module: str,
    *arguments: object,
    python: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a module in a fresh Python and returns the JSON in the last line that it prints.

    Args:
        module: its full name.
        arguments: of its command line.
        python: the interpreter, by default this one.
        variables: environment variables to set, beside those of this process.

    Raises:
        RuntimeError: with the last line that the process wrote to stderr, if it failed.
    """
    command = [str(python or sys.executable), "-m", module, *map(str, arguments)]
    environment = child_environment() | dict(variables or {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it wrote nothing to stderr"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
