"""The manifest: what came of each photograph, as lines of JSON in parts beside the paintings.

Each run adds parts of its own, and each part is written completely or not at all, so a run that is killed loses the
lines of its last seconds at most. The paintings themselves are there then: the next run finds and records them.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from serve_app.cli.batch.storage import Storage

FOLDER = "_manifest"
SUFFIX = ".jsonl"
PART_LINES = 10_000
PART_S = 10.0  # from the first part to the second; later ones take longer, so that there are not too many
GROWTH = 0.02  # of the time since the run began: a run of a day has a few hundred parts
MAX_PART_BYTES = 2**30


@dataclass
class Earlier:
    """What earlier runs have recorded; the last line about a photograph counts.

    Attributes:
        painted: photographs that have a painting.
        failed: lines about photographs that have none.
    """

    painted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


def read_manifest(storage: Storage, names: Iterable[str]) -> Earlier:
    """Returns what the manifest of a destination tells.

    Args:
        storage: of the paintings.
        names: of the files in its folder `FOLDER`.

    Raises:
        AnimeganError: if it cannot be read.
    """
    earlier = Earlier()
    for name in sorted(name for name in names if name.endswith(SUFFIX)):  # by the time when their runs began
        for line in storage.read(f"{FOLDER}/{name}", MAX_PART_BYTES).decode().splitlines():
            record = json.loads(line)
            photo = record["photo"]
            if record["status"] == "failed":
                earlier.failed[photo] = line
                earlier.painted.discard(photo)
            else:
                earlier.painted.add(photo)
                earlier.failed.pop(photo, None)
    return earlier


class Manifest:
    """Writes the parts of one run; at the end of its context also what is left.

    Args:
        storage: of the paintings.
        clock: seconds, monotonic.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._lines: list[str] = []
        self._parts = 0
        self._began_s = self._written_s = clock()

    def add(self, line: str) -> None:
        """Adds a line, and writes a part if it is time."""
        self._lines.append(line)
        now = self._clock()
        if len(self._lines) >= PART_LINES or now - self._written_s >= PART_S + GROWTH * (now - self._began_s):
            self.write()

    def write(self) -> None:
        """Writes the lines that are not yet written as a part.

        Raises:
            AnimeganError: if it cannot be written.
        """
        if self._lines:
            data = "".join(f"{line}\n" for line in self._lines).encode()
            self._storage.write(f"{FOLDER}/{self._run}-{self._parts:06}{SUFFIX}", data)
            self._lines.clear()
            self._parts += 1
        self._written_s = self._clock()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
