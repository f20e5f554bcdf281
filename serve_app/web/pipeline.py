"""The service as the HTTP routes see it: protocols, so that a fake pipeline tests every route without Ray."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from serve_app.frames import Client, EncodedImage, StylizeRequest
from serve_app.jobs.news import News
from serve_app.jobs.words import Job, JobReport, NewJob
from serve_app.settings import IngressSettings, JobsSettings
from serve_app.styles.catalogue import InstalledStyle, Style
from serve_app.web.events import Streams
from serve_app.web.keys import Keys


class Paintings(Protocol):
    """Paintings that are used again. `serve_app.jobs.cache.PaintingCache` is one. Its methods raise nothing."""

    async def find(self, client: str, work: str) -> EncodedImage | None:
        """Returns what a client was painted before, by the digest of the work; None if it is not there at once."""

    def keep(self, client: str, work: str, request: StylizeRequest, painting: EncodedImage) -> None:
        """Begins to keep a painting that was no job's, if that is worth it."""


class Jobs(Protocol):
    """Pictures that are painted later. `serve_app.jobs.desk.JobDesk` is one.

    Every method raises StoreUnavailable if the store of jobs cannot be reached, and those that take an id UnknownJob or
    Gone if there is no such job any more.
    """

    @property
    def settings(self) -> JobsSettings:
        """Of jobs."""

    def check_callback_url(self, url: str) -> str:
        """Returns a URL that the end of a job may be sent to, as it will be called.

        Raises:
            BadOption: if this service does not call it.
        """

    @property
    def news(self) -> News:
        """What happens to jobs, for those who watch."""

    @property
    def paintings(self) -> Paintings:
        """Paintings that are used again."""

    async def submit(self, client: str, new: Sequence[NewJob], key: str | None = None) -> list[JobReport]:
        """Queues jobs, all or none; when it returns, they are on the disk. `key` is the client's idempotency key.

        Raises:
            RequestError: if the key came with other jobs before, or there is no room.
        """

    async def report(self, job_id: str) -> JobReport:
        """Returns a job with its outlook."""

    async def reports(self, job_ids: Sequence[str]) -> list[JobReport]:
        """Returns those of some jobs that exist, expired ones too, in the order of the ids."""

    async def painting(self, job_id: str) -> tuple[Job, bytes]:
        """Returns a job and its painting.

        Raises:
            NotFinished: if it waits or runs.
        """

    async def photo(self, job_id: str) -> tuple[Job, bytes]:
        """Returns a job and its photograph, as it was sent."""

    async def remove(self, job_id: str) -> JobReport:
        """Cancels a job that waits or runs, and erases a finished one. Returns the job as it is then."""

    async def wait(self, job_ids: Sequence[str], seconds: float) -> list[JobReport]:
        """Returns jobs when all are finished, and as they are after some seconds at the latest."""

    async def state(self) -> Literal["ready", "full", "unavailable", "schema-behind"]:
        """Returns whether jobs work."""


class Pipeline(Protocol):
    """The part of the service behind the routes."""

    @property
    def settings(self) -> IngressSettings:
        """Defaults and limits of a request; they may change while the service runs."""

    @property
    def keys(self) -> Keys:
        """Who may paint."""

    @property
    def styles(self) -> Mapping[str, InstalledStyle]:
        """Installed styles by name."""

    @property
    def catalogue(self) -> Mapping[str, Style]:
        """Styles that can be downloaded, by name."""

    @property
    def jobs(self) -> Jobs | None:
        """Pictures that are painted later; None if jobs are switched off."""

    @property
    def streams(self) -> Streams | None:
        """Streams of events; None if jobs are switched off."""

    def painter(self, style: str) -> str:
        """Returns the name of what would paint in an installed style now (see `serve_app.jobs.works`).

        It is empty if that is not known, because the file of the style was replaced and the service not restarted.
        """

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        """Paints a photograph.

        Args:
            data: the file as it was uploaded.
            request: the client's options.
            client: whose photograph it is, for sharing the queue.

        Raises:
            RequestError: a refusal for the client.
        """

    async def check(self, data: bytes, request: StylizeRequest) -> int:
        """Refuses a photograph that can never be painted, by its header; returns the pixels that will be painted.

        Raises:
            RequestError: as `stylize` would.
        """

    async def upright(self, data: bytes, request: StylizeRequest) -> tuple[bytes, str]:
        """Returns a photograph upright, at the size that it is painted at, and the media type of its file.

        Raises:
            RequestError: if it cannot be decoded now.
        """

    async def is_ready(self) -> bool:
        """Returns whether a model replica has painted its warm-up image."""
