"""Query options, answers and the OpenAPI description of the HTTP interface."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from serve_app.frames import MIN_SIDE, ImageFormat, ResizeMode
from serve_app.images.encode import MEDIA_TYPES
from serve_app.jobs.words import Status as JobStatus

PROBLEM = "application/problem+json"
MOST_JOBS = 100  # in one question, and in one form
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def format_name(value: Any) -> Any:
    """Returns the usual name of an image format, which people also write `jpg` or `JPEG`."""
    name = value.lower() if isinstance(value, str) else value
    return "jpeg" if name == "jpg" else name


class JobOptions(BaseModel):
    """The options of every picture. Unknown ones are refused, or a misspelt one would be ignored silently."""

    model_config = ConfigDict(extra="forbid")

    style: str | None = Field(None, description="A name from /v1/styles; default from the settings.", max_length=64)
    max_side: int | None = Field(
        None, ge=MIN_SIDE, description="The longer painted side in pixels, at most; up to the setting."
    )
    format: Annotated[ImageFormat | None, BeforeValidator(format_name)] = Field(
        None, description="`jpg` is jpeg too. Else by `Accept`, else the setting's default."
    )
    quality: int | None = Field(None, ge=1, le=100, description="Of jpeg, webp and avif; png is lossless.")


class Options(JobOptions):
    """The options of /v1/stylize."""

    timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds from admission to the answer; then 408, and it is not painted. Up to the setting.",
    )


class SubmitOptions(JobOptions):
    """The options of POST /v1/jobs."""

    source_job: str | None = Field(
        None,
        pattern=f"^{JOB_ID.pattern}$",
        description="Id of an earlier job whose photograph is painted again, in place of a photograph.",
    )
    callback_url: str | None = Field(
        None, description="An https URL that is sent the job when it has ended, if this service sends webhooks."
    )


class StyleInfo(BaseModel):
    """A style as clients see it."""

    name: str
    title: str
    summary: str | None = Field(None, description="What it is good for, in a sentence.")
    licence: str
    source: str
    credit: str
    resize: ResizeMode
    installed: bool
    default: bool
    thumbnail: str | None = Field(None, description="Address of a small sample painting, where there is one.")


class JobTerms(BaseModel):
    """How long jobs keep what."""

    keep_for_s: float = Field(description="Seconds for which a painting is kept after the end of its job.")
    keep_photos_for_s: float = Field(description="Seconds for which its photograph is kept then.")


class StyleList(BaseModel):
    """All styles, and the limits that a client needs before it uploads."""

    styles: list[StyleInfo]
    max_side: int = Field(description="Larger photographs are fitted to this longer side, in pixels.")
    max_bytes: int = Field(description="Of one upload.")
    jobs: JobTerms | None = Field(description="null where jobs are switched off.")


class Status(BaseModel):
    """The answer of a health check."""

    status: Literal["ok"]


class Readiness(Status):
    """The answer of `/readyz`."""

    jobs: Literal["off", "ready", "full", "unavailable", "schema-behind"] = Field(description="Whether jobs work.")


class Problem(BaseModel):
    """A refusal (RFC 9457), with the limit that was met where there is a number."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    limit: float | None = Field(None, description="The number that was exceeded.")
    actual: float | None = Field(None, description="The number that the request came with.")
    unit: str | None = Field(None, description="Of both: bytes, pixels or seconds.")
    position: int | None = Field(None, description="How many images are ahead of this one.")
    retry_after_s: int | None = None


class JobIds(BaseModel):
    """The query of GET /v1/jobs."""

    model_config = ConfigDict(extra="forbid")

    id: list[str] = Field(min_length=1, max_length=MOST_JOBS, description="Of a job; may be given many times.")

    @field_validator("id", mode="before")
    @classmethod
    def _is_a_fair_number(cls, ids: Any) -> Any:
        if isinstance(ids, list) and not 1 <= len(ids) <= MOST_JOBS:
            raise PydanticCustomError("ids", f"name 1 to {MOST_JOBS} jobs, as id=…&id=…")
        return ids


class SizeInfo(BaseModel):
    """The size of an image in pixels."""

    width: int
    height: int


class ReceiptInfo(BaseModel):
    """What was done to a photograph."""

    style: str
    original: SizeInfo = Field(description="Of the photograph, upright.")
    painted: SizeInfo
    resized: bool = Field(description="true exactly when the two sizes differ.")
    reused: bool = Field(description="Whether it was painted for an earlier request of the client.")
    timings_ms: dict[str, float] = Field(
        description=(
            "Milliseconds of decode, queue (all waiting together after the job was started), paint and encode; all 0 "
            "if the painting was reused."
        )
    )


class JobLinks(BaseModel):
    """Addresses that belong to a job."""

    self_: str = Field(alias="self")
    image: str = Field(description="The painting, once the job has succeeded.")
    photo: str = Field(description="The upright photograph at the painted size, while it is kept.")
    events: str = Field(description="Server-sent events of this job.")


class JobInfo(BaseModel):
    """A photograph that is painted later, as clients see it."""

    id: str = Field(description="Random. Whoever knows it may see the job and erase it.")
    status: JobStatus
    position: int | None = Field(description="Unfinished jobs ahead of this one; null when it is finished.")
    eta_s: float | None = Field(
        description="Seconds until it should be finished; null when it is, and while nothing is known of the pace."
    )
    created_at: datetime
    started_at: datetime | None = Field(description="When it was started for the first time.")
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="Until when a finished job is kept; when an expired one expired.")
    receipt: ReceiptInfo | None = Field(description="Of a job that has succeeded.")
    error: Problem | None = Field(description="Why a job has failed or was cancelled.")
    links: JobLinks


class JobList(BaseModel):
    """Some jobs: those that were asked for, without those that are not known; or those of a form, in its order."""

    jobs: list[JobInfo]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI description of refusals with these statuses."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {status: {"description": "Refused", "content": {PROBLEM: schema}} for status in statuses}


BINARY = {"type": "string", "format": "binary"}
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The photograph, as the body or as the form's field `image`; a form may hold options too.",
        "content": {
            "image/*": {"schema": BINARY},
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": BINARY}}
            },
        },
    }
}
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": (
        "Of your own making, up to 255 characters. Repeated with the same photograph and options, it returns the job "
        "that it has made before, so a submission may be sent again after a failure."
    ),
    "schema": {"type": "string", "maxLength": 255},
}
PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "description": (
        "`respond-async` makes a job (RFC 7240). With `wait=N`, the answer is the painting if it is finished within N "
        "seconds, else the job."
    ),
    "schema": {"type": "string"},
}


LAST_EVENT_ID: dict[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that came, if a stream goes on where another ended; EventSource sends it.",
    "schema": {"type": "string"},
}
IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "Entity tags of paintings that the client has: then the answer is 304. Only where jobs are on.",
    "schema": {"type": "string"},
}


def headers(**texts: str) -> dict[str, Any]:
    """Returns the OpenAPI description of an answer's headers; `_` stands for `-`."""
    return {name.replace("_", "-"): {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


ALBUM: dict[str, Any] = {
    "requestBody": {
        "description": (
            "The photograph, as the body or as the form's field `image`; a form may hold options too. A form with "
            "several fields `image` makes as many jobs. With `source_job` there is no photograph."
        ),
        "content": {
            "image/*": {"schema": BINARY},
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "array", "items": BINARY}}}
            },
        },
    }
}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobInfo,
        "description": "The job. Its photograph is on the disk: it will be painted, whatever happens to a process.",
        "headers": headers(Location="Address of the job.", Retry_After="Seconds after which to ask for it."),
    }
}
SUBMITTED: dict[int | str, dict[str, Any]] = {202: ACCEPTED[202] | {"model": JobInfo | JobList}}
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Events `position`, `running`, `done` and `failed`, with a job as data. The stream ends after the last "
            "job, or after less than a minute; EventSource comes back by itself."
        ),
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "All of the jobs are finished, and Last-Event-ID says that the client knows it."},
}
# The last alternative, nothing, is for a service that has its keys off.
KEY: dict[str, Any] = {"security": [{"bearer": []}, {"header": []}, {}]}
KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this service."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same keys."},
}
RECEIPT_HEADERS = {
    "X-Style": "The style that it was painted in.",
    "X-Original-Size": "Width x height of the photograph, upright.",
    "X-Painted-Size": "Width x height of the painting.",
    "X-Resized": "true exactly when the two sizes differ.",
    "X-Reused": "true if it was painted for an earlier request of the client, and not for this one.",
    "Server-Timing": "Milliseconds of decode, queue (all waiting together), paint and encode.",
    "ETag": "Of this photograph, painted in this way. Only where jobs are on.",
}
IMAGES = {media_type: {"schema": BINARY} for media_type in MEDIA_TYPES.values()}
PAINTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The painting.",
        "content": IMAGES,
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in RECEIPT_HEADERS.items()
        },
    }
}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The client has the painting already.", "headers": headers(ETag="Of the painting.")}
}
THUMBNAIL: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A painting of 256 x 256 pixels; of every style, the same photograph.",
        "content": {"image/webp": IMAGES["image/webp"]},
        "headers": headers(ETag="Of the painting.", Cache_Control="How long it may be kept."),
    }
}
PHOTOGRAPH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The photograph: JPEG, or PNG where it has transparency.",
        "content": {media_type: IMAGES[media_type] for media_type in ("image/jpeg", "image/png")},
    }
}


def describe_problems(app: FastAPI) -> None:
    """Adds problem documents and API keys to the OpenAPI schema, and removes FastAPI's own 422, which is never sent."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        components = schema["components"]["schemas"]
        components["Problem"] = Problem.model_json_schema()
        schema["components"]["securitySchemes"] = KEY_SCHEMES
        components.pop("HTTPValidationError", None)
        components.pop("ValidationError", None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
