"""The HTTP routes of jobs: pictures that are painted later.

An id is the right to see its job and to erase it, so only submitting asks for an API key.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from serve_app.errors import BadHeader, JobsOff, UnknownJob
from serve_app.frames import Client, StylizeRequest
from serve_app.jobs.words import JobReport, NewJob, Status
from serve_app.web.options import Photograph, read_photograph
from serve_app.web.pipeline import Jobs, Pipeline
from serve_app.web.preferences import Preference
from serve_app.web.receipts import job_address, job_error, job_info, poll_after_s, receipt_headers
from serve_app.web.schemas import (
    ACCEPTED,
    IDEMPOTENCY_KEY,
    KEY,
    PAINTED,
    PHOTOGRAPH,
    PROBLEM,
    UPLOAD,
    JobIds,
    JobInfo,
    JobList,
    JobOptions,
    problems,
)
from serve_app.web.turns import Turns

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
IDEMPOTENCY_KEY_LENGTH = 255
NO_STORE = {"Cache-Control": "no-store"}
PRIVATE = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
NO_DEADLINE_S = StylizeRequest.timeout_s  # whatever the settings are, or a repeated submission would not be the same

Identify = Callable[[Request], Awaitable[Client]]


def add_job_routes(app: FastAPI, pipeline: Pipeline, identify: Identify) -> None:
    """Adds the routes to an application.

    Args:
        app: to which they are added.
        pipeline: that does the work.
        identify: says whose request it is, or refuses it.
    """
    paintings, photographs = Turns(8, 32), Turns(2, 8)

    def jobs() -> Jobs:
        """Returns the jobs, before anything of a body is read."""
        return enabled(pipeline)

    Desk = Annotated[Jobs, Depends(jobs)]

    @app.post(
        "/v1/jobs",
        status_code=202,
        responses=ACCEPTED | problems(400, 401, 404, 408, 413, 415, 422, 429, 503, 507),
        openapi_extra=UPLOAD | KEY | {"parameters": [IDEMPOTENCY_KEY]},
        summary="Paint a photograph later",
    )
    async def submit(
        request: Request,
        client: Annotated[Client, Depends(identify)],
        desk: Desk,
        options: Annotated[JobOptions, Query()],
    ) -> JobInfo:
        key = idempotency_key(request)
        photograph = await read_photograph(request, options, pipeline)
        return accepted(await submit_photograph(pipeline, photograph, client, key), request)  # type: ignore[return-value]

    @app.get(
        "/v1/jobs",
        responses=problems(400, 404, 503),
        summary="Look at some jobs",
        description="Jobs that are not known are left out. Nothing lists the jobs of others.",
    )
    async def look_at_some(
        request: Request, answer: Response, desk: Desk, asked: Annotated[JobIds, Query()]
    ) -> JobList:
        answer.headers.update(NO_STORE)
        reports = await desk.reports([each for each in asked.id if JOB_ID.fullmatch(each)])
        return JobList(jobs=[job_info(report, root_path(request)) for report in reports])

    @app.get("/v1/jobs/{job_id}", responses=problems(404, 410, 503), summary="Look at a job")
    async def look(request: Request, answer: Response, desk: Desk, job_id: str) -> JobInfo:
        report = await desk.report(known(job_id))
        answer.headers.update(job_headers(report))
        return job_info(report, root_path(request))

    @app.get(
        "/v1/jobs/{job_id}/image",
        response_class=Response,
        responses=PAINTED | problems(404, 409, 410, 429, 503),
        summary="Fetch the painting of a job",
    )
    async def image(desk: Desk, job_id: str) -> Response:
        async with paintings.turn():
            job, data = await desk.painting(known(job_id))
        headers = PRIVATE if job.receipt is None else receipt_headers(job.receipt) | PRIVATE
        return Response(data, media_type=job.media_type, headers=headers)

    @app.get(
        "/v1/jobs/{job_id}/photo",
        response_class=Response,
        responses=PHOTOGRAPH | problems(404, 408, 410, 413, 415, 422, 429, 503),
        summary="Fetch the photograph of a job, upright and at the painted size",
    )
    async def photo(desk: Desk, job_id: str) -> Response:
        async with photographs.turn():
            job, data = await desk.photo(known(job_id))
            assert job.request is not None  # only an expired job has none, and it has no photograph either
            upright, media_type = await pipeline.upright(data, job.request)
        return Response(upright, media_type=media_type, headers=PRIVATE)

    @app.delete(
        "/v1/jobs/{job_id}",
        responses=problems(404, 410, 503),
        summary="Cancel a job, or erase a finished one with its photograph and painting",
    )
    async def remove(request: Request, answer: Response, desk: Desk, job_id: str) -> JobInfo:
        answer.headers.update(NO_STORE)
        return job_info(await desk.remove(known(job_id)), root_path(request))


def enabled(pipeline: Pipeline) -> Jobs:
    """Returns the jobs of a service.

    Raises:
        JobsOff: if there are none.
    """
    if pipeline.jobs is None:
        raise JobsOff("This service paints while you wait, at /v1/stylize. Whoever runs it can switch jobs on.")
    return pipeline.jobs


def known(job_id: str) -> str:
    """Returns an id that may be one.

    Raises:
        UnknownJob: if it has characters that no id has, which not every database can even look up.
    """
    if not JOB_ID.fullmatch(job_id):
        raise UnknownJob("There is no job with this id.")
    return job_id


def idempotency_key(request: Request) -> str | None:
    """Returns the Idempotency-Key of a request, or None if it has none.

    Raises:
        BadHeader: if it has several, or one that is empty or too long.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not 0 < len(keys[0].strip()) <= IDEMPOTENCY_KEY_LENGTH:
        raise BadHeader(f"Idempotency-Key must be given once, and have 1 to {IDEMPOTENCY_KEY_LENGTH} characters.")
    return keys[0].strip()


async def submit_photograph(pipeline: Pipeline, photograph: Photograph, client: Client, key: str | None) -> JobReport:
    """Makes a job of a photograph, unless it can be told at once that it can never be painted.

    Raises:
        RequestError: if it can, or there is no room for it.
    """
    pixels = await pipeline.check(photograph.data, photograph.request)
    request = replace(photograph.request, timeout_s=NO_DEADLINE_S)
    return await enabled(pipeline).submit(client.name, NewJob(request, photograph.data, pixels=pixels), key)


async def stylize_as_job(
    pipeline: Pipeline, request: Request, photograph: Photograph, client: Client, preference: Preference
) -> Response:
    """Makes a job of a photograph, and answers with its painting if that is finished as soon as the client wishes.

    Raises:
        RequestError: if there is no room for it, or it can never be painted.
    """
    report = await submit_photograph(pipeline, photograph, client, idempotency_key(request))
    if preference.wait_s:
        wait_s = min(preference.wait_s, pipeline.settings.timeout_s)
        report = await enabled(pipeline).wait(report.job.id, wait_s)
    applied = {"Preference-Applied": preference.applied()}
    error = job_error(report.job)
    if error is not None and report.job.status is Status.FAILED:
        return JSONResponse(error.model_dump(exclude_none=True), error.status, applied | NO_STORE, PROBLEM)
    if preference.wait_s is None or report.job.status is not Status.SUCCEEDED:
        answer = accepted(report, request)
        answer.headers.update(applied)
        return answer
    job, data = await enabled(pipeline).painting(report.job.id)
    assert job.receipt is not None  # it has succeeded
    headers = receipt_headers(job.receipt) | PRIVATE | applied
    headers |= {"Vary": "Accept", "Content-Location": f"{job_address(job, root_path(request))}/image"}
    return Response(data, media_type=job.media_type, headers=headers)


def accepted(report: JobReport, request: Request) -> JSONResponse:
    """Answers that a photograph will be painted."""
    info = job_info(report, root_path(request))
    headers = job_headers(report) | {"Location": info.links.self_}
    headers.setdefault("Retry-After", "0")  # of a key that was repeated: the job is finished
    return JSONResponse(info.model_dump(mode="json", by_alias=True), 202, headers)


def job_headers(report: JobReport) -> dict[str, str]:
    """Returns the headers of an answer that tells of a job."""
    after_s = poll_after_s(report)
    return NO_STORE if after_s is None else NO_STORE | {"Retry-After": str(after_s)}


def root_path(request: Request) -> str:
    """Returns what stands before the paths of the routes."""
    path: str = request.scope.get("root_path", "")
    return path
