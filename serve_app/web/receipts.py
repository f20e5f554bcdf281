"""What a client is told of its photograph and its jobs: headers and members of JSON."""

import math

from serve_app.errors import Cancelled
from serve_app.frames import Receipt, Size
from serve_app.jobs.words import Job, JobReport, Status
from serve_app.settings import JobsSettings
from serve_app.web.schemas import JobInfo, JobLinks, JobTerms, Problem, ReceiptInfo, SizeInfo

POLL_S = (1, 30)  # bounds of the time after which a client is asked to look again
UNKNOWN_ETA_S = 2.0


def receipt_headers(receipt: Receipt) -> dict[str, str]:
    """Returns the headers that tell a client what was done to its photograph."""
    timings = ", ".join(f"{name};dur={duration:.1f}" for name, duration in receipt.timings_ms.items())
    return {
        "X-Style": receipt.style,
        "X-Original-Size": f"{receipt.original.width}x{receipt.original.height}",
        "X-Painted-Size": f"{receipt.painted.width}x{receipt.painted.height}",
        "X-Resized": "true" if receipt.resized else "false",
        "X-Reused": "true" if receipt.reused else "false",
        "Server-Timing": timings,
        "X-Content-Type-Options": "nosniff",
    }


def job_info(report: JobReport, root_path: str) -> JobInfo:
    """Returns what a client is told of a job.

    Args:
        report: of the job.
        root_path: of the service, before the paths of its routes.
    """
    job, outlook = report.job, report.outlook
    eta_s = None if outlook is None or outlook.eta_s is None else round(outlook.eta_s, 1)
    address = job_address(job, root_path)
    return JobInfo(
        id=job.id,
        status=job.status,
        position=None if outlook is None else outlook.position,
        eta_s=eta_s,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        receipt=None if job.receipt is None else receipt_info(job.receipt),
        error=job_error(job),
        links=JobLinks(
            self=address,
            image=f"{address}/image",
            photo=f"{address}/photo",
            events=f"{root_path.rstrip('/')}/v1/jobs/events?id={job.id}",
        ),
    )


def job_address(job: Job, root_path: str) -> str:
    """Returns the path of a job's address."""
    return f"{root_path.rstrip('/')}/v1/jobs/{job.id}"


def job_error(job: Job) -> Problem | None:
    """Returns why there will be no painting of a job; None if there may be one, or the job has expired."""
    if job.status is Status.CANCELLED:
        return Problem.model_validate(Cancelled("The job was cancelled before it was painted.").problem())
    return None if job.problem is None else Problem.model_validate(job.problem)


def receipt_info(receipt: Receipt) -> ReceiptInfo:
    """Returns a receipt as members of JSON."""
    return ReceiptInfo(
        style=receipt.style,
        original=size_info(receipt.original),
        painted=size_info(receipt.painted),
        resized=receipt.resized,
        reused=receipt.reused,
        timings_ms={name: round(duration, 1) for name, duration in receipt.timings_ms.items()},
    )


def size_info(size: Size) -> SizeInfo:
    """Returns a size as members of JSON."""
    return SizeInfo(width=size.width, height=size.height)


def job_terms(settings: JobsSettings) -> JobTerms:
    """Returns how long jobs keep what, as the expiry of jobs has it."""
    keep_photos_for_s = min(settings.keep_photos_for_s, settings.keep_for_s)
    return JobTerms(keep_for_s=settings.keep_for_s, keep_photos_for_s=keep_photos_for_s)


def poll_after_s(report: JobReport) -> int | None:
    """Returns the seconds after which to look at a job again; None if it is finished."""
    if not report.job.status.is_unfinished:
        return None
    eta_s = None if report.outlook is None else report.outlook.eta_s
    least, most = POLL_S
    return max(least, min(most, math.ceil(UNKNOWN_ETA_S if eta_s is None else eta_s)))
