"""Says how far a run is: a bar on a terminal, else a line now and then; at its end, what failed."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from serve_app.styles.text import printable

LINE_S = 30.0  # between two lines
SHOWN = 100  # failures that are listed at the end; the manifest has all of them


class Progress:
    """Counts what comes of photographs, and says on standard error how far they are.

    Args:
        count: photographs to be painted.
        clock: seconds, monotonic.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.statuses = Counter({"painted": 0, "skipped": 0, "failed": 0})
        self._count = count
        self._clock = clock
        self._done = 0
        self._first_s: float | None = None  # when the first one was finished: starting is no measure of painting
        self._told_s = clock()
        self._shown: list[str] = []
        self._bar = tqdm(total=count, unit="photo", file=sys.stderr, disable=None, dynamic_ncols=True)

    def add(self, record: dict[str, Any], is_new: bool = True) -> None:
        """Counts a photograph.

        Args:
            record: its line of the manifest.
            is_new: whether it is one of those to be painted.
        """
        self.statuses[record["status"]] += 1
        if record["status"] == "failed" and len(self._shown) < SHOWN:
            self._shown.append(f"{printable(record['photo'])}: {printable(record['error']['detail'])}")
        if is_new:
            self._done += 1
            self._bar.update()
            self._tell()

    def left_s(self) -> float | None:
        """Returns an estimate of the seconds that are left; None if there is none yet."""
        if self._first_s is None or self._done < 2:
            return None
        return (self._clock() - self._first_s) / (self._done - 1) * (self._count - self._done)

    def _tell(self) -> None:
        now = self._clock()
        if self._first_s is None:
            self._first_s = now
        if self._bar.disable and now - self._told_s >= LINE_S:
            self._told_s = now
            left_s = self.left_s()
            left = "" if left_s is None else f", about {tqdm.format_interval(left_s)} left"
            failed = self.statuses["failed"]
            print(f"animegan: {self._done} of {self._count}, {failed} failed{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Says how many were painted, and which failed and why."""
        self._bar.close()
        print(", ".join(f"{count} {status}" for status, count in self.statuses.items()), file=sys.stderr)
        for line in self._shown:
            print(f"animegan: {line}", file=sys.stderr)
        if (more := self.statuses["failed"] - len(self._shown)) > 0:
            print(f"animegan: and {more} more, in the manifest", file=sys.stderr)


def parsed(line: str) -> dict[str, Any]:
    """Returns the members of a line."""
    record: dict[str, Any] = json.loads(line)
    return record
