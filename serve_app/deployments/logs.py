"""Writes what the package logs to the log of Serve: to its files, in its format, from its level on."""

import asyncio
import logging
import time
from types import TracebackType

from serve_app.errors import RequestError
from serve_app.frames import EncodedImage
from serve_app.web.request_log import OK, by

PACKAGE = "serve_app"
SERVE = "ray.serve"

logger = logging.getLogger(__name__)


class ToServe(logging.Handler):
    """Hands records on to Serve's logger, whose level and handlers may change while a process runs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hands one record on."""
        serve = logging.getLogger(SERVE)
        if serve.isEnabledFor(record.levelno):
            serve.handle(record)


def log_to_serve() -> None:
    """Connects the loggers of this process. Without it, Python prints warnings bare, and drops the log of requests."""
    package = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, ToServe) for handler in package.handlers):
        package.addHandler(ToServe())
    package.setLevel(logging.INFO)


class JobLog:
    """Writes a line for one attempt at a job, when its block ends. It does not say which job: an id is a secret.

    Args:
        style: that is painted in.
        bytes_in: of the photograph.

    Attributes:
        painting: to be set, if there is one.
    """

    def __init__(self, style: str, bytes_in: int) -> None:
        self.painting: EncodedImage | None = None
        self._members: dict[str, object] = {"style": style, "bytes_in": bytes_in}
        self._began = time.monotonic()

    def __enter__(self) -> "JobLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        timings_ms = {"total": 1000 * (time.monotonic() - self._began)}
        members = {"outcome": outcome_of(error), **self._members}
        if self.painting is not None:
            receipt = self.painting.receipt
            members |= {
                "photograph": by(receipt.original),
                "painting": by(receipt.painted),
                "bytes_out": len(self.painting.data),
            }
            timings_ms = receipt.timings_ms | timings_ms
        rounded = {name: round(duration, 1) for name, duration in timings_ms.items()}
        words = f"a job {members['outcome']} in {timings_ms['total']:.0f} ms, {members['style']}"
        logger.info(words, extra={"job": members | {"timings_ms": rounded}})


def outcome_of(error: BaseException | None) -> str:
    """Returns what became of a job: `ok`, `cancelled` or the code of an error."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, RequestError):
        return error.code
    return OK if error is None else RequestError.code
