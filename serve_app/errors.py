"""Everything that can go wrong, once.

    AnimeganError
    ├── SettingsError             a wrong key or value in a configuration, found at start-up
    ├── DeviceError               the device asked for is not there, found at start-up
    ├── StyleError                a style cannot be installed or loaded
    └── RequestError              answered to a client, as application/problem+json
        ├── NoImage           400
        ├── BadOption         400
        ├── UnknownStyle      404
        ├── DeadlineExceeded  408
        ├── TooManyBytes      413
        ├── TooManyPixels     413
        ├── TooLargeToPaint   413
        ├── UnsupportedFormat 415
        ├── BrokenImage       422
        ├── TooSmall          422
        ├── TooBusy           429
        ├── NotReady          503
        └── OutOfMemory       503

Request errors cross process borders: constructors take positional arguments only, or they would not unpickle.
"""

from typing import Any, ClassVar


class AnimeganError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsError(AnimeganError):
    pass


class DeviceError(AnimeganError):
    pass


class StyleError(AnimeganError):
    pass


class RequestError(AnimeganError):
    """A refusal with an HTTP status, a code, and a sentence for the client.

    Args:
        detail: what happened and what to do next; it is shown to the client, so never an exception's own text.
        limit: the number that was exceeded, where there is one.
        actual: the number that the request came with.
        retry_after_s: seconds after which the same request may succeed.
        position: pictures before it.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        limit: int | None = None,
        actual: int | None = None,
        retry_after_s: int | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(detail, limit, actual, retry_after_s, position)
        self.detail = detail
        self.limit = limit
        self.actual = actual
        self.retry_after_s = retry_after_s
        self.position = position

    def __str__(self) -> str:
        return self.detail

    def problem(self) -> dict[str, Any]:
        """The members of a problem document (RFC 9457)."""
        members: dict[str, Any] = {
            "type": f"urn:animegan-serve:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        numbers = {
            "limit": self.limit,
            "actual": self.actual,
            "position": self.position,
            "retry_after_s": self.retry_after_s,
        }
        return members | {name: number for name, number in numbers.items() if number is not None}


class NoImage(RequestError):
    status, code, title = 400, "no-image", "No image in the request"


class BadOption(RequestError):
    status, code, title = 400, "bad-option", "An option is not valid"


class UnknownStyle(RequestError):
    status, code, title = 404, "unknown-style", "No such style"


class DeadlineExceeded(RequestError):
    status, code, title = 408, "deadline-exceeded", "The time given was not enough"


class TooManyBytes(RequestError):
    status, code, title = 413, "too-many-bytes", "The upload is too large"


class TooManyPixels(RequestError):
    status, code, title = 413, "too-many-pixels", "The picture has too many pixels"


class TooLargeToPaint(RequestError):
    status, code, title = 413, "too-large-to-paint", "Painting the picture takes more memory than there is"


class UnsupportedFormat(RequestError):
    status, code, title = 415, "unsupported-format", "Not a picture format that is read here"


class BrokenImage(RequestError):
    status, code, title = 422, "broken-image", "The picture cannot be decoded"


class TooSmall(RequestError):
    status, code, title = 422, "too-small", "The picture is too small to paint"


class TooBusy(RequestError):
    status, code, title = 429, "too-busy", "Too many pictures are waiting"


class NotReady(RequestError):
    status, code, title = 503, "not-ready", "The service is starting"


class OutOfMemory(RequestError):
    status, code, title = 503, "out-of-memory", "Not enough memory for this picture"
