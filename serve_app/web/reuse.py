"""Pictures that are painted already: answered from the store of jobs, or not at all if the client has them."""

import asyncio
import time
from dataclasses import replace

from starlette.background import BackgroundTask
from starlette.responses import Response

from serve_app.frames import Client, EncodedImage, StylizeRequest
from serve_app.jobs.words import Job
from serve_app.jobs.works import content_digest, photo_digest, work_digest
from serve_app.web.conditions import Condition, entity_tag
from serve_app.web.pipeline import Jobs, Pipeline
from serve_app.web.receipts import receipt_headers
from serve_app.web.request_log import note

HASHED_AT_ONCE = 2**20  # bytes, which take some milliseconds at most; more are hashed in a thread
VARY = {"Vary": "Accept"}  # what the format of a painting depends on


async def stylize_or_reuse(
    pipeline: Pipeline, jobs: Jobs, data: bytes, request: StylizeRequest, client: Client, condition: Condition
) -> Response:
    """Answers with an earlier painting of the client, or paints, or says that the client has the painting already.

    Args:
        pipeline: that paints.
        jobs: whose store has the earlier paintings.
        data: the photograph's file.
        request: the client's options.
        client: who asks.
        condition: If-None-Match.

    Raises:
        RequestError: if it cannot be painted.
    """
    photo = await hashed(data)
    work = work_digest(photo, pipeline.painter(request.style), request)
    if work is not None:
        if condition.foresees(entity_tag(work)):
            return not_modified(entity_tag(work), VARY)
        earlier = await find_earlier(jobs, client, work)
        if earlier is not None:
            if condition.is_any:
                return not_modified(entity_tag(work), VARY)
            return painting_answer(earlier, entity_tag(work))
    painting = await pipeline.stylize(data, request, client)
    painted = work_digest(photo, painting.receipt.painter, request)  # another painter may have done it
    if painted is None:
        return painting_answer(painting, entity_tag(await hashed(painting.data)))
    if condition.foresees(entity_tag(painted)):
        return not_modified(entity_tag(painted), VARY)

    async def keep() -> None:
        jobs.paintings.keep(client.name, painted, request, painting)

    return painting_answer(painting, entity_tag(painted), BackgroundTask(keep))


async def paint_or_reuse(pipeline: Pipeline, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
    """Returns an earlier painting of the client; or paints, and begins to keep the painting.

    Args:
        pipeline: that paints.
        data: the photograph's file.
        request: the client's options.
        client: who asks.

    Raises:
        RequestError: if it cannot be painted.
    """
    jobs = pipeline.jobs
    if jobs is None:
        return await pipeline.stylize(data, request, client)
    photo = await hashed(data)
    work = work_digest(photo, pipeline.painter(request.style), request)
    earlier = None if work is None else await find_earlier(jobs, client, work)
    if earlier is not None:
        return earlier
    painting = await pipeline.stylize(data, request, client)
    painted = work_digest(photo, painting.receipt.painter, request)  # another painter may have done it
    if painted is not None:
        jobs.paintings.keep(client.name, painted, request, painting)
    return painting


async def find_earlier(jobs: Jobs, client: Client, work: str) -> EncodedImage | None:
    """Returns what a client was painted before, with the time that fetching it took; None if it is not there."""
    began = time.monotonic()
    earlier = await jobs.paintings.find(client.name, work)
    return None if earlier is None else fetched_in(earlier, time.monotonic() - began)


async def known_tag(
    pipeline: Pipeline, jobs: Jobs, data: bytes, request: StylizeRequest, client: Client, condition: Condition
) -> str | None:
    """Returns the entity tag of a painting that the client has already, as If-None-Match says; None if it has not."""
    if condition.is_empty:
        return None
    work = work_digest(await hashed(data), pipeline.painter(request.style), request)
    if work is None:
        return None
    is_known = condition.foresees(entity_tag(work))
    if condition.is_any:
        is_known = await jobs.paintings.find(client.name, work) is not None
    return entity_tag(work) if is_known else None


def job_tag(job: Job) -> str | None:
    """Returns the entity tag of a job's painting; None if there is no painting."""
    return None if job.painting is None else entity_tag(job.work or content_digest(job.painting))


def painting_answer(
    painting: EncodedImage, tag: str | None = None, background: BackgroundTask | None = None
) -> Response:
    """Answers with a painting."""
    note(receipt=painting.receipt)
    headers = receipt_headers(painting.receipt) | VARY | ({} if tag is None else {"ETag": tag})
    return Response(painting.data, media_type=painting.media_type, headers=headers, background=background)


def not_modified(tag: str, headers: dict[str, str]) -> Response:
    """Answers that the client has the painting already."""
    return Response(status_code=304, headers=headers | {"ETag": tag})


def fetched_in(painting: EncodedImage, seconds: float) -> EncodedImage:
    """Returns a painting from the store, with the time that fetching it took as the time of waiting."""
    timings_ms = painting.receipt.timings_ms | {"queue": 1000 * seconds}
    return replace(painting, receipt=replace(painting.receipt, timings_ms=timings_ms))


async def hashed(data: bytes) -> str:
    """Returns the SHA-256 of a file, in hexadecimal, without holding up others for long."""
    return photo_digest(data) if len(data) <= HASHED_AT_ONCE else await asyncio.to_thread(photo_digest, data)
