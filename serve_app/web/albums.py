"""What a submission asks for: one job, as many as a form has photographs, or an earlier photograph once more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.requests import Request

from serve_app.errors import BadOption, NoImage, RequestError, TooBusy
from serve_app.frames import StylizeRequest
from serve_app.images.resize import painted_size
from serve_app.jobs.words import NewJob
from serve_app.web.options import accepted_types, callback_url, refuse_repeated, stylize_request, with_fields
from serve_app.web.pipeline import Jobs, Pipeline
from serve_app.web.schemas import SubmitOptions
from serve_app.web.turns import Turns
from serve_app.web.uploads import album, no_image, too_many_bytes

NO_DEADLINE_S = StylizeRequest.timeout_s  # whatever the settings are, or a repeated submission would not be the same


class Albums:
    """Reads submissions. Albums are held in memory one at a time; until its turn comes, one lies on the disk.

    Args:
        pipeline: of the service.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._turns = Turns(1, 8, "Too many albums are arriving; try again shortly.")

    @asynccontextmanager
    async def new_jobs(self, request: Request, options: SubmitOptions, jobs: Jobs) -> AsyncIterator[list[NewJob]]:
        """Reads the photographs of a submission, for as long as they are needed.

        One photograph that can never be painted is refused. In an album it becomes a job that has failed, so that the
        others are not lost, unless it is so with all of them.

        Raises:
            RequestError: if an option is wrong, or there is nothing that could be painted.
        """
        settings = self._pipeline.settings
        refuse_repeated(request)
        stylize_request(options, accepted_types(request), self._pipeline)  # what is wrong need not wait for the upload
        callback_url(options, self._pipeline)
        async with album(request, settings.max_bytes, settings.max_form_bytes) as sent:
            if sent.fields:
                options = with_fields(options, sent.fields)
            wanted = stylize_request(options, accepted_types(request), self._pipeline)
            wanted, url = replace(wanted, timeout_s=NO_DEADLINE_S), callback_url(options, self._pipeline)
            if options.source_job is not None:
                if sent.photos:
                    raise BadOption("source_job is given in place of a photograph, not with one.")
                job = await again(jobs, options.source_job, wanted, url)
                yield [replace(job, painter=self._pipeline.painter(wanted.style))]
            elif not sent.photos:
                raise no_image()
            elif len(sent.photos) > 1:
                async with self._turns.turn():
                    new = [await self._new_job(await sent.read(at), wanted, url) for at in range(len(sent.photos))]
                    errors = [job.error for job in new if job.error is not None]
                    if len(errors) == len(new):
                        raise errors[0]
                    yield new
            else:
                job = await self._new_job(await sent.read(0), wanted, url)
                if job.error is not None:
                    raise job.error
                yield [job]

    async def _new_job(self, data: bytes, wanted: StylizeRequest, url: str | None) -> NewJob:
        """Looks at the header of a photograph.

        Raises:
            RequestError: if that cannot be done now.
        """
        max_bytes = self._pipeline.settings.max_bytes
        try:
            if not data:
                raise NoImage("The file is empty.")
            if len(data) > max_bytes:
                raise too_many_bytes(max_bytes, len(data))
            painter = self._pipeline.painter(wanted.style)
            return NewJob(
                wanted, data, pixels=await self._pipeline.check(data, wanted), painter=painter, callback_url=url
            )
        except RequestError as error:
            if error.status >= 500 or isinstance(error, TooBusy):
                raise
            return NewJob(wanted, data, error=error, callback_url=url)


async def again(jobs: Jobs, job_id: str, wanted: StylizeRequest, url: str | None) -> NewJob:
    """Returns a job that paints the photograph of an earlier one.

    Raises:
        UnknownJob, Gone: if there is no such job any more.
        TooSmall: if a painted side would be under the generator's minimum.
    """
    receipt = (await jobs.report(job_id)).job.receipt
    pixels = None if receipt is None else painted_size(receipt.original, wanted.max_side, wanted.multiple).pixels
    return NewJob(wanted, source=job_id, pixels=pixels, callback_url=url)
