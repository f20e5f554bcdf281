"""Says what comes of photographs: a bar on a terminal, lines of JSON for programs, and what failed at the end."""

import json
import sys
from typing import Any

from tqdm import tqdm

from serve_app.cli.paint.photographs import PIPE
from serve_app.cli.paint.work import Outcome, settled
from serve_app.errors import RequestError
from serve_app.frames import Size
from serve_app.styles.text import printable


class Reporter:
    """Reports outcomes as they come, and sums them up at the end of its context.

    Args:
        count: photographs that are not done yet.
        as_json: print a line of JSON for each photograph.
    """

    def __init__(self, count: int, as_json: bool) -> None:
        self._as_json = as_json
        self._counts = {"painted": 0, "skipped": 0, "failed": 0}
        self._left = count
        self._failures: list[Outcome] = []
        self._has_pipe = False
        self._bar = tqdm(total=count, unit="photo", file=sys.stderr, disable=None, dynamic_ncols=True)

    @property
    def has_failures(self) -> bool:
        """Whether a photograph failed."""
        return bool(self._failures)

    def add(self, outcome: Outcome) -> None:
        """Reports what came of one photograph."""
        self._counts[outcome.status] += 1
        if outcome.error is not None:
            self._failures.append(outcome)
        self._has_pipe |= outcome.photograph.target is None and outcome.photograph.problem is None
        if self._as_json:
            line = json.dumps(as_json(outcome))
            if self._bar.disable:
                print(line, flush=True)
            else:  # both may be on one terminal
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
        if settled(outcome.photograph) is None:
            self._left -= 1
            self._bar.update()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        """Says how many were painted, and which failed and why, on standard error."""
        self._bar.close()
        if not self._has_pipe:
            counts = self._counts | ({"left": self._left} if self._left else {})  # if the run has ended early
            print(", ".join(f"{count} {status}" for status, count in counts.items()), file=sys.stderr)
        for failure in self._failures:
            print(f"animegan: {printable(failure.photograph.name)}: {printable(failure.error)}", file=sys.stderr)


def tell(text: str) -> None:
    """Prints a sentence on standard error, above the bar if there is one; from any thread."""
    tqdm.write(f"animegan: {text}", file=sys.stderr)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Returns the members of a line for programs."""
    photograph, receipt, error = outcome.photograph, outcome.receipt, outcome.error
    members: dict[str, Any] = {
        "photo": photograph.name,
        "status": outcome.status,
        "painting": None if error is not None else str(photograph.target or PIPE),
    }
    if receipt is not None:
        members |= {
            "style": receipt.style,
            "original": size_as_json(receipt.original),
            "painted": size_as_json(receipt.painted),
            "resized": receipt.resized,
        }
    if error is not None:
        numbers = {}
        if isinstance(error, RequestError):
            numbers = {"limit": error.limit, "actual": error.actual, "unit": error.unit}
        numbers = {name: value for name, value in numbers.items() if value is not None}
        members["error"] = {"code": error.code, "detail": str(error), **numbers}
    return members


def size_as_json(size: Size) -> dict[str, int]:
    """Returns the members of a size."""
    return {"width": size.width, "height": size.height}
