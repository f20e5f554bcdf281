"""The HTTP routes, over a small `Pipeline` protocol: no Ray here, so a fake pipeline tests every route.

Routes stay on the happy path. Every refusal is a `RequestError`, and one handler makes problem documents of them.
"""

import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from serve_app.errors import BadOption, NotReady, RequestError
from serve_app.frames import ImageFormat, Order, Picture, ResizeMode, Size
from serve_app.images.encode import MEDIA_TYPES, negotiate
from serve_app.settings import MIN_SIDE, IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style, find_style
from serve_app.web.clients import client_address
from serve_app.web.uploads import read_upload

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
PROBLEM = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # in access logs, as nginx has it


class Pipeline(Protocol):
    """What the routes need of the service behind them."""

    @property
    def settings(self) -> IngressSettings: ...

    @property
    def styles(self) -> Mapping[str, InstalledStyle]: ...

    @property
    def catalogue(self) -> Mapping[str, Style]: ...

    async def stylize(self, data: bytes, order: Order, client: str) -> Picture:
        """
        Args:
            client: whose request this is, as far as it can be known.

        Raises:
            RequestError: what the client is to be told.
        """

    async def is_ready(self) -> bool:
        """Whether a model replica has painted its warm-up picture."""


class Options(BaseModel):
    """Query of /v1/stylize; an unknown option is refused, since a misspelt one would be ignored in silence."""

    model_config = ConfigDict(extra="forbid")

    style: str | None = Field(None, description="A name from /v1/styles; default from the settings.", max_length=64)
    max_side: int | None = Field(
        None, ge=MIN_SIDE, description="The longer painted side in pixels, at most; up to the setting."
    )
    format: ImageFormat | None = Field(None, description="Else by `Accept`, else the setting's default.")
    quality: int | None = Field(None, ge=1, le=100, description="Of jpeg, webp and avif; png is lossless.")
    timeout_s: float | None = Field(
        None, gt=0, description="Seconds that it may take; past them 408, and it is not painted. Up to the setting."
    )


class StyleInfo(BaseModel):
    name: str
    title: str
    licence: str
    source: str
    credit: str
    resize: ResizeMode
    installed: bool
    default: bool
    thumbnail: str | None = Field(None, description="Address of a small sample painting, where there is one.")


class StyleList(BaseModel):
    styles: list[StyleInfo]
    max_side: int = Field(description="Larger photographs are fitted to this longer side, in pixels.")
    max_bytes: int = Field(description="Of one upload.")


class Status(BaseModel):
    status: Literal["ok"]


class Problem(BaseModel):
    """RFC 9457, with the limit met where there is a number."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    limit: int | None = None
    actual: int | None = None
    position: int | None = Field(None, description="Pictures before it.")
    retry_after_s: int | None = None


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of refusals."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {status: {"description": "Refused", "content": {PROBLEM: schema}} for status in statuses}


BINARY = {"type": "string", "format": "binary"}
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The photograph, as the body or as the form's file field `image`.",
        "content": {
            "image/*": {"schema": BINARY},
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": BINARY}}
            },
        },
    }
}
RECEIPT_HEADERS = {
    "X-Style": "The style painted with.",
    "X-Original-Size": "Width x height of the photograph, upright.",
    "X-Painted-Size": "Width x height of the painting.",
    "X-Resized": "true exactly when the two differ.",
    "Server-Timing": "Milliseconds of decode, queue (all waiting on the way), paint and encode.",
}
PAINTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The painting.",
        "content": {media_type: {"schema": BINARY} for media_type in MEDIA_TYPES.values()},
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in RECEIPT_HEADERS.items()
        },
    }
}


def create_app(pipeline: Pipeline) -> FastAPI:
    """The service's ASGI application over a pipeline."""
    app = FastAPIOffline(
        title="animegan-serve",
        summary="Turns photographs into anime with AnimeGANv2.",
        version=importlib.metadata.version("animegan-serve"),
        redoc_url=None,
    )
    app.add_exception_handler(RequestError, answer_refusal)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(ClientDisconnect, answer_nobody)
    app.add_exception_handler(Exception, answer_fault)

    @app.post(
        "/v1/stylize",
        response_class=Response,
        responses=PAINTED | problems(400, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra=UPLOAD,
        summary="Paint a photograph now",
    )
    async def stylize(
        request: Request, options: Annotated[Options, Query()], accept: Annotated[str | None, Header()] = None
    ) -> Response:
        order = fill_in(options, accept, pipeline)
        data = await read_upload(request, pipeline.settings.max_bytes)
        picture = await pipeline.stylize(data, order, whose(request, pipeline.settings))
        return Response(picture.data, media_type=picture.media_type, headers=receipt_headers(picture))

    @app.get("/v1/styles", summary="Styles that paint here, and those that can be pulled")
    async def styles() -> StyleList:
        return list_styles(pipeline)

    @app.get("/livez", summary="Whether this process answers")
    async def livez() -> Status:
        return Status(status="ok")

    @app.get("/readyz", responses=problems(503), summary="Whether a model replica has painted its warm-up picture")
    async def readyz() -> Status:
        if not await pipeline.is_ready():
            raise NotReady("No model replica has painted its warm-up picture yet; try again shortly.", retry_after_s=2)
        return Status(status="ok")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/samples", StaticFiles(directory=PAGE / "samples"))
    describe_problems(app)
    return app


def describe_problems(app: FastAPI) -> None:
    """Puts the problem document into the schema, and takes out FastAPI's own 422, which never leaves this service."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        components = schema["components"]["schemas"]
        components["Problem"] = Problem.model_json_schema()
        components.pop("HTTPValidationError", None)
        components.pop("ValidationError", None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema


def whose(request: Request, settings: IngressSettings) -> str:
    peer = request.client.host if request.client else None
    return client_address(peer, request.headers.getlist("x-forwarded-for"), settings.trusted_proxies)


def fill_in(options: Options, accept: str | None, pipeline: Pipeline) -> Order:
    """
    Raises:
        UnknownStyle: if the style is not installed.
        BadOption: if `max_side` or `timeout_s` is above the setting.
    """
    settings = pipeline.settings
    style = find_style(pipeline.styles, options.style or settings.default_style)
    max_side = options.max_side or settings.max_side
    if max_side > settings.max_side:
        raise BadOption(
            f"max_side is {max_side}; at most {settings.max_side} pixels are painted here.", settings.max_side, max_side
        )
    timeout_s = options.timeout_s or settings.timeout_s
    if timeout_s > settings.timeout_s:
        raise BadOption(f"timeout_s is {timeout_s:g}; a picture may take {settings.timeout_s:g} seconds here at most.")
    return Order(
        style=style.name,
        max_side=max_side,
        multiple=style.multiple,
        format=options.format or negotiate(accept, settings.default_format),
        quality=options.quality,
        timeout_s=timeout_s,
    )


def receipt_headers(picture: Picture) -> dict[str, str]:
    receipt = picture.receipt
    timings = ", ".join(f"{name};dur={duration:.1f}" for name, duration in receipt.timings_ms.items())
    return {
        "X-Style": receipt.style,
        "X-Original-Size": width_x_height(receipt.original),
        "X-Painted-Size": width_x_height(receipt.painted),
        "X-Resized": "true" if receipt.resized else "false",
        "Server-Timing": timings,
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }


def width_x_height(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def list_styles(pipeline: Pipeline) -> StyleList:
    """Installed styles first, then those of the catalogue that could be pulled."""
    default = pipeline.settings.default_style
    listed: dict[str, Style] = {**pipeline.catalogue, **pipeline.styles}
    infos = [
        StyleInfo(
            **style.model_dump(include={"name", "title", "licence", "source", "credit", "resize"}),
            installed=style.name in pipeline.styles,
            default=style.name == default,
        )
        for style in listed.values()
    ]
    infos.sort(key=lambda info: (not info.default, not info.installed, info.name))
    return StyleList(styles=infos, max_side=pipeline.settings.max_side, max_bytes=pipeline.settings.max_bytes)


async def answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # what this handler is registered for
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.problem(), error.status, headers, PROBLEM)


async def answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    sentences = []
    for detail in error.errors():
        name = detail["loc"][-1]
        unknown = detail["type"] == "extra_forbidden"
        known = ", ".join(Options.model_fields)
        sentences.append(f"{name} is not an option (known: {known})" if unknown else f"{name}: {detail['msg']}")
    return await answer_refusal(request, BadOption("; ".join(sentences)[:500] + "."))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    document = {"type": "about:blank", "title": error.detail, "status": error.status_code}
    document |= {
        "code": error.detail.lower().replace(" ", "-"),
        "detail": f"{request.method} {request.url.path}: {error.detail}.",
    }
    return JSONResponse(document, error.status_code, error.headers, PROBLEM)


async def answer_nobody(request: Request, error: Exception) -> Response:
    """The client broke its upload off: nobody reads this, and it is no fault to log."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def answer_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the log has it whole, the client gets a sentence."""
    logger.error("unexpected error on %s %s", request.method, request.url.path, exc_info=error)
    return await answer_refusal(request, RequestError("Something went wrong here; the fault has been logged."))
