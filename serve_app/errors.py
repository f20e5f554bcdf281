"""The tree of everything that can go wrong.

    AnimeganError
    ├── SettingsError             a wrong key or value in a configuration, found at start-up
    ├── DeviceError               the device asked for is not there, found at start-up
    ├── StyleError                a style cannot be installed or loaded
    └── RequestError              answered to a client, as application/problem+json
        ├── NoImage           400
        ├── BadOption         400
        ├── BadHeader         400
        ├── UnknownHost       400
        ├── Unauthorized      401
        ├── UnknownStyle      404
        ├── NoThumbnail       404
        ├── UnknownJob        404
        ├── JobsOff           404
        ├── DeadlineExceeded  408
        ├── SlowUpload        408
        ├── DecodeTimeout     408
        ├── NotFinished       409
        ├── Gone              410
        ├── Cancelled         410
        ├── TooManyBytes      413
        ├── TooManyPixels     413
        ├── TooLargeToPaint   413
        ├── DecodeMemory      413
        ├── UnsupportedFormat 415
        ├── BrokenImage       422
        ├── TooSmall          422
        ├── KeyReused         422
        ├── TooBusy           429
        ├── HeadersTooLarge   431
        ├── NotReady          503
        ├── OutOfMemory       503
        ├── Lost              503
        ├── Stopping          503
        ├── StoreUnavailable  503
        ├── TooManyStreams    503
        └── StoreFull         507

Request errors are sent between processes. Pickle rebuilds them from `args`, so constructors take positional arguments.
"""

from typing import Any, ClassVar


class AnimeganError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsError(AnimeganError):
    """A wrong key or value in a configuration, found at start-up."""


class DeviceError(AnimeganError):
    """The device that was asked for is missing or cannot be used, found at start-up."""


class StyleError(AnimeganError):
    """A style that cannot be installed, loaded or exported."""


class RequestError(AnimeganError):
    """A refusal with an HTTP status, a code, and a sentence for the client.

    Args:
        detail: what happened and what to do next. Clients see it, so it is never the text of another exception.
        limit: the number that was exceeded, where there is one.
        actual: the number that the request came with.
        unit: of `limit` and `actual`: bytes, pixels, seconds. Pixels are those of a side where a side is limited.
        retry_after_s: seconds after which the same request may succeed.
        position: how many images are ahead of this one.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        limit: float | None = None,
        actual: float | None = None,
        unit: str | None = None,
        retry_after_s: int | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(detail, limit, actual, unit, retry_after_s, position)
        self.detail = detail
        self.limit = limit
        self.actual = actual
        self.unit = unit
        self.retry_after_s = retry_after_s
        self.position = position

    def __str__(self) -> str:
        return self.detail

    def problem(self) -> dict[str, Any]:
        """Returns the members of a problem document (RFC 9457)."""
        members: dict[str, Any] = {
            "type": f"urn:animegan-serve:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        optional = {
            "limit": self.limit,
            "actual": self.actual,
            "unit": self.unit,
            "position": self.position,
            "retry_after_s": self.retry_after_s,
        }
        return members | {name: value for name, value in optional.items() if value is not None}


class NoImage(RequestError):
    """A request without a photograph."""

    status, code, title = 400, "no-image", "No image in the request"


class BadOption(RequestError):
    """An option with a wrong name or value."""

    status, code, title = 400, "bad-option", "An option is not valid"


class BadHeader(RequestError):
    """A request whose line or headers are malformed."""

    status, code, title = 400, "bad-header", "The request is malformed"


class UnknownHost(RequestError):
    """A request for a host name that this service does not go by."""

    status, code, title = 400, "unknown-host", "Not a name of this service"


class Unauthorized(RequestError):
    """A request without an API key that is known here."""

    status, code, title = 401, "unauthorized", "An API key is needed"


class UnknownStyle(RequestError):
    """A style that is not installed."""

    status, code, title = 404, "unknown-style", "No such style"


class NoThumbnail(RequestError):
    """A style that has no sample painting here."""

    status, code, title = 404, "no-thumbnail", "The style has no thumbnail"


class UnknownJob(RequestError):
    """A job id that this service never gave out, or has forgotten."""

    status, code, title = 404, "unknown-job", "No such job"


class JobsOff(RequestError):
    """A request for jobs where they are switched off."""

    status, code, title = 404, "jobs-off", "Jobs are switched off here"


class DeadlineExceeded(RequestError):
    """A request that was not painted in the time that it was given."""

    status, code, title = 408, "deadline-exceeded", "The time given was not enough"


class SlowUpload(RequestError):
    """An upload, or the headers before it, that arrived too slowly."""

    status, code, title = 408, "slow-upload", "The upload is too slow"


class DecodeTimeout(RequestError):
    """A photograph whose decoding takes longer than a photograph's does."""

    status, code, title = 408, "decode-timeout", "Decoding the picture takes too long"


class NotFinished(RequestError):
    """A request for the painting of a job that is not finished."""

    status, code, title = 409, "not-finished", "The job is not finished"


class Gone(RequestError):
    """A job, photograph or painting that was erased or has expired."""

    status, code, title = 410, "gone", "It has expired or was erased"


class Cancelled(RequestError):
    """A job that will not be painted, because it was cancelled."""

    status, code, title = 410, "cancelled", "The job was cancelled"


class TooManyBytes(RequestError):
    """An upload over the limit of bytes."""

    status, code, title = 413, "too-many-bytes", "The upload is too large"


class TooManyPixels(RequestError):
    """A photograph whose header states more pixels than are decoded here."""

    status, code, title = 413, "too-many-pixels", "The picture has too many pixels"


class TooLargeToPaint(RequestError):
    """An image whose painting would exceed the memory budget."""

    status, code, title = 413, "too-large-to-paint", "Painting the picture takes more memory than there is"


class DecodeMemory(RequestError):
    """A photograph whose decoding would exceed the memory budget."""

    status, code, title = 413, "decode-memory", "Decoding the picture takes more memory than there is"


class UnsupportedFormat(RequestError):
    """A file in a format that is not read here."""

    status, code, title = 415, "unsupported-format", "Not a picture format that is read here"


class BrokenImage(RequestError):
    """A file that is damaged, malformed or incomplete."""

    status, code, title = 422, "broken-image", "The picture cannot be decoded"


class TooSmall(RequestError):
    """An image with a painted side under the generator's minimum."""

    status, code, title = 422, "too-small", "The picture is too small to paint"


class KeyReused(RequestError):
    """An idempotency key that came with another payload before."""

    status, code, title = 422, "key-reused", "The idempotency key belongs to another request"


class TooBusy(RequestError):
    """A request refused because too many are waiting."""

    status, code, title = 429, "too-busy", "Too many pictures are waiting"


class HeadersTooLarge(RequestError):
    """A request whose headers take too many bytes."""

    status, code, title = 431, "headers-too-large", "The headers are too large"


class NotReady(RequestError):
    """A request that came before the service could paint."""

    status, code, title = 503, "not-ready", "The service is starting"


class OutOfMemory(RequestError):
    """An image for which there was not enough memory at this moment."""

    status, code, title = 503, "out-of-memory", "Not enough memory for this picture"


class Lost(RequestError):
    """A request that was lost with the processes that worked on it."""

    status, code, title = 503, "lost", "The request was lost"


class Stopping(RequestError):
    """A request that came when the service only finished what it had in hand."""

    status, code, title = 503, "stopping", "The service is stopping"


class StoreUnavailable(RequestError):
    """A request that needs the database or the blob store of jobs while it cannot be used."""

    status, code, title = 503, "store-unavailable", "The store of jobs cannot be used"


class TooManyStreams(RequestError):
    """A client that wants to be told of events while too many others are."""

    status, code, title = 503, "too-many-streams", "Too many clients wait for events"


class StoreFull(RequestError):
    """A photograph or painting for which the store has no room."""

    status, code, title = 507, "store-full", "The store of jobs is full"
