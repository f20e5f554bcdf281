"""Writing files of styles."""

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file completely or not at all: a partial one never has the final name.

    Args:
        path: of the file; folders above it are made.
        data: its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)  # mkstemp lets only the owner read; other nodes and users read styles too
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
