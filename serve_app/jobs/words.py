"""The words of jobs: statuses, and the data that callers get and give."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from serve_app.errors import RequestError, StoreUnavailable
from serve_app.frames import Receipt, StylizeRequest


class Status(StrEnum):
    """Where a job is on its way: queued, running, then one of the finished ones, at last expired."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_unfinished(self) -> bool:
        """Whether the job still waits or is being painted."""
        return self in UNFINISHED


UNFINISHED = (Status.QUEUED, Status.RUNNING)
FINISHED = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True)
class NewJob:
    """A photograph to be painted.

    Attributes:
        request: what to do with it; its `timeout_s` means nothing here.
        photo: the bytes of the file.
        source: in place of `photo`, the id of an earlier job whose photograph is painted again.
        pixels: that will be painted, for estimates of time; None if that is not known: then the most that `max_side`
            allows counts.
        error: why it can never be painted, if that is known already: the job is made, and has failed.
        callback_url: that is told when the job has ended; may hold a secret.
        painter: name of what would paint it now (see `works`): what the same painter has painted for the client before
            is reused. Empty: nothing is.
    """

    request: StylizeRequest
    photo: bytes | None = None
    source: str | None = None
    pixels: int | None = None
    error: RequestError | None = None
    callback_url: str | None = field(default=None, repr=False)
    painter: str = ""

    def __post_init__(self) -> None:
        if (self.photo is None) == (self.source is None):
            raise ValueError("a job has either a photo or a source")


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read.

    Attributes:
        id: random; whoever knows it may see the job.
        number: its place in the order of arrival; shown to nobody.
        client: who submitted it; empty once it has expired.
        status: see `Status`.
        request: None once the job has expired.
        attempt: times that it was started.
        created_at, started_at, finished_at: by the database's clock; `started_at` is the first start.
        expires_at: when a finished job expires, or when an expired one did.
        photo: name of the photograph in the blob store, while it is kept.
        painting: name of the painting, while it is kept.
        media_type: of the painting.
        receipt: of a succeeded job.
        problem: of a failed job: the members of a problem document.
        callback_url: that is told when the job has ended; may hold a secret.
        work: digest of what was painted (see `works`), of a succeeded job.
    """

    id: str
    number: int
    client: str
    status: Status
    request: StylizeRequest | None
    attempt: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    photo: str | None = None
    painting: str | None = None
    media_type: str | None = None
    receipt: Receipt | None = None
    problem: dict[str, Any] | None = None
    callback_url: str | None = field(default=None, repr=False)
    work: str | None = None


@dataclass(frozen=True)
class Outlook:
    """What an unfinished job has before it.

    Attributes:
        position: unfinished jobs ahead, those that run included; 0 for a job that runs.
        eta_s: seconds until it should be finished, or None as long as nothing is known of the pace of painting.
    """

    position: int
    eta_s: float | None


@dataclass(frozen=True)
class JobReport:
    """A job, and its outlook if it is unfinished."""

    job: Job
    outlook: Outlook | None = None


@dataclass(frozen=True)
class Submission:
    """The jobs of one submission, in its order.

    Attributes:
        jobs: as they are now.
        is_new: False if an earlier submission with the same idempotency key made them.
    """

    jobs: tuple[Job, ...]
    is_new: bool


@dataclass(frozen=True)
class Lease:
    """The right to work on a running job, for `lease_s` from the claim and from each renewal.

    Attributes:
        job: as it was when it was claimed.
        token: random; without it the job cannot be finished. It is void once the lease has passed to another worker, or
            the job was cancelled.
        lease_s: seconds; renew at a third of it.
    """

    job: Job
    token: str
    lease_s: float


@dataclass(frozen=True)
class SeenLease:
    """A lease as any process sees it.

    Attributes:
        number: of the job.
        token: of the lease.
        until: when it ends, in milliseconds by the database's clock; another value after each renewal.
        lease_s: for which it lasts.
    """

    number: int
    token: str
    until: int
    lease_s: float


@dataclass(frozen=True)
class Reaped:
    """What a look at leases that ran out has done.

    Attributes:
        queued: ids of jobs that wait again.
        failed: ids of jobs that had been started too often.
    """

    queued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Swept:
    """What one sweep has done: the number of each."""

    queued: int = 0
    failed: int = 0
    expired: int = 0
    photos: int = 0
    forgotten: int = 0
    blobs: int = 0


@dataclass(frozen=True)
class Census:
    """The jobs of a store, counted.

    Attributes:
        jobs: number of each status for each client. Expired jobs have no client any more: theirs is empty.
        oldest_queued_s: seconds since the job was submitted that has waited longest; None if none waits.
        stored_bytes: of all photographs and paintings.
    """

    jobs: dict[str, dict[Status, int]]
    oldest_queued_s: float | None
    stored_bytes: int


@dataclass(frozen=True)
class Tally:
    """The jobs of a store, counted for metrics, by status; one of which there are none is left out.

    Attributes:
        jobs: number of them.
        oldest_s: seconds since the oldest was submitted.
        attempts: most attempts at one of them.
        stored_bytes: of all photographs and paintings.
    """

    jobs: dict[Status, int]
    oldest_s: dict[Status, float]
    attempts: dict[Status, int]
    stored_bytes: int


class SchemaBehind(StoreUnavailable):
    """The store cannot be used until somebody brings the schema of its database up to date."""
