"""The HTTP routes of jobs: pictures that are painted later.

An id is the right to see its job and to erase it, so only submitting asks for an API key.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from serve_app.errors import BadHeader, JobsOff, UnknownJob
from serve_app.frames import Client
from serve_app.jobs.words import Job, JobReport, NewJob, Status
from serve_app.web.albums import NO_DEADLINE_S, Albums
from serve_app.web.conditions import read_condition
from serve_app.web.events import EVENTS, EventResponse
from serve_app.web.options import Photograph
from serve_app.web.pipeline import Jobs, Pipeline
from serve_app.web.preferences import Preference, read_preference
from serve_app.web.receipts import job_address, job_error, job_info, poll_after_s, receipt_headers
from serve_app.web.reuse import VARY, job_tag, known_tag, not_modified
from serve_app.web.schemas import (
    ALBUM,
    EVENT_STREAM,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    JOB_ID,
    KEY,
    LAST_EVENT_ID,
    NOT_MODIFIED,
    PAINTED,
    PHOTOGRAPH,
    PREFER,
    PROBLEM,
    SUBMITTED,
    JobIds,
    JobInfo,
    JobList,
    SubmitOptions,
    problems,
)
from serve_app.web.turns import Turns

IDEMPOTENCY_KEY_LENGTH = 255
NO_STORE = {"Cache-Control": "no-store"}
PRIVATE = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}

Identify = Callable[[Request], Awaitable[Client]]


def add_job_routes(app: FastAPI, pipeline: Pipeline, identify: Identify, address_of: Callable[[Request], str]) -> None:
    """Adds the routes to an application.

    Args:
        app: to which they are added.
        pipeline: that does the work.
        identify: says whose request it is, or refuses it.
        address_of: returns the address of a client.
    """
    busy = "Too many pictures are being fetched; try again shortly."
    paintings, photographs = Turns(8, 32, busy), Turns(2, 8, busy)
    albums = Albums(pipeline)

    def jobs() -> Jobs:
        """Returns the jobs, before anything of a body is read."""
        return enabled(pipeline)

    Desk = Annotated[Jobs, Depends(jobs)]

    @app.post(
        "/v1/jobs",
        status_code=202,
        response_model=None,
        responses=PAINTED | SUBMITTED | problems(400, 401, 404, 408, 410, 413, 415, 422, 429, 503, 507),
        openapi_extra=ALBUM | KEY | {"parameters": [IDEMPOTENCY_KEY, PREFER]},
        summary="Paint photographs later",
        description='A form with several photographs makes as many jobs, and `{"jobs": […]}` is the answer.',
    )
    async def submit(
        request: Request,
        client: Annotated[Client, Depends(identify)],
        desk: Desk,
        options: Annotated[SubmitOptions, Query()],
    ) -> Response:
        key = idempotency_key(request)
        preference = read_preference(request.headers.getlist("prefer"))
        async with albums.new_jobs(request, options, desk) as new:
            reports = await desk.submit(client.name, new, key)
        return await answer_submission(pipeline, desk, request, reports, preference)

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

    @app.get(
        EVENTS,
        response_class=Response,
        responses=EVENT_STREAM | problems(400, 404, 503),
        openapi_extra={"parameters": [LAST_EVENT_ID]},
        summary="Be told of some jobs as they change",
    )
    async def events(request: Request, desk: Desk, asked: Annotated[JobIds, Query()]) -> Response:
        streams = pipeline.streams
        assert streams is not None  # there are jobs
        return EventResponse(streams, address_of(request), root_path(request))

    @app.get("/v1/jobs/{job_id}", responses=problems(404, 410, 503), summary="Look at a job")
    async def look(request: Request, answer: Response, desk: Desk, job_id: str) -> JobInfo:
        report = await desk.report(known(job_id))
        answer.headers.update(job_headers(report))
        return job_info(report, root_path(request))

    @app.get(
        "/v1/jobs/{job_id}/image",
        response_class=Response,
        responses=PAINTED | NOT_MODIFIED | problems(404, 409, 410, 429, 503),
        openapi_extra={"parameters": [IF_NONE_MATCH]},
        summary="Fetch the painting of a job",
    )
    async def image(request: Request, desk: Desk, job_id: str) -> Response:
        condition = read_condition(request.headers.getlist("if-none-match"))
        if not condition.is_empty:
            tag = job_tag((await desk.report(known(job_id))).job)
            if tag is not None and condition.is_met_by(tag):
                return not_modified(tag, PRIVATE)
        async with paintings.turn():
            job, data = await desk.painting(known(job_id))
        return Response(data, media_type=job.media_type, headers=image_headers(job))

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


async def stylize_as_job(
    pipeline: Pipeline, request: Request, photograph: Photograph, client: Client, preference: Preference
) -> Response:
    """Makes a job of a photograph, and answers with its painting if that is finished as soon as the client wishes.

    Raises:
        RequestError: if there is no room for it, or it can never be painted.
    """
    desk, condition = enabled(pipeline), read_condition(request.headers.getlist("if-none-match"))
    tag = await known_tag(pipeline, desk, photograph.data, photograph.request, client, condition)
    if tag is not None:
        return not_modified(tag, VARY)
    pixels = await pipeline.check(photograph.data, photograph.request)
    wanted = replace(photograph.request, timeout_s=NO_DEADLINE_S)
    new = NewJob(wanted, photograph.data, pixels=pixels, painter=pipeline.painter(wanted.style))
    reports = await desk.submit(client.name, [new], idempotency_key(request))
    return await answer_submission(pipeline, desk, request, reports, preference)


async def answer_submission(
    pipeline: Pipeline, desk: Jobs, request: Request, reports: list[JobReport], preference: Preference
) -> Response:
    """Answers with the jobs of a submission, or with the painting of its one job if the client waits for that."""
    if preference.wait_s and any(report.job.status.is_unfinished for report in reports):
        wait_s = min(preference.wait_s, pipeline.settings.timeout_s)
        reports = await desk.wait([report.job.id for report in reports], wait_s) or reports
    applied = {"Preference-Applied": preference.applied()} if preference.wants_job else {}
    if len(reports) > 1:
        return accepted_album(reports, request, applied)
    (report,) = reports
    error = job_error(report.job)
    if preference.wants_job and error is not None and report.job.status is Status.FAILED:
        where = {"Location": job_address(report.job, root_path(request))}  # to ask for it again, or to erase it
        return JSONResponse(error.model_dump(exclude_none=True), error.status, applied | where | NO_STORE, PROBLEM)
    if preference.wait_s is None or report.job.status is not Status.SUCCEEDED:
        return accepted(report, request, applied)
    job, data = await desk.painting(report.job.id)
    headers = image_headers(job) | applied | VARY
    headers |= {"Content-Location": f"{job_address(job, root_path(request))}/image"}
    return Response(data, media_type=job.media_type, headers=headers)


def image_headers(job: Job) -> dict[str, str]:
    """Returns the headers of the painting of a job."""
    tag = job_tag(job)
    headers = PRIVATE if tag is None else PRIVATE | {"ETag": tag}
    return headers if job.receipt is None else receipt_headers(job.receipt) | headers


def accepted_album(reports: list[JobReport], request: Request, applied: dict[str, str]) -> JSONResponse:
    """Answers that photographs will be painted."""
    infos = [job_info(report, root_path(request)) for report in reports]
    query = "&".join(f"id={info.id}" for info in infos)
    after_s = max((poll_after_s(report) or 0 for report in reports), default=0)
    headers = NO_STORE | applied | {"Location": f"{root_path(request)}/v1/jobs?{query}", "Retry-After": str(after_s)}
    return JSONResponse(JobList(jobs=infos).model_dump(mode="json", by_alias=True), 202, headers)


def accepted(report: JobReport, request: Request, applied: dict[str, str]) -> JSONResponse:
    """Answers that a photograph will be painted."""
    info = job_info(report, root_path(request))
    headers = job_headers(report) | applied | {"Location": info.links.self_}
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
