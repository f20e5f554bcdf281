"""The HTTP routes. Every refusal is raised as a `RequestError`, and `problems` turns it into a problem document."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from serve_app.errors import BadOption, NotReady, RequestError
from serve_app.frames import Receipt, StylizeRequest
from serve_app.settings import IngressSettings
from serve_app.styles.catalogue import Style, find_style
from serve_app.web.clients import client_address
from serve_app.web.negotiation import negotiate
from serve_app.web.pipeline import Pipeline
from serve_app.web.problems import answer_fault, answer_http_error, answer_invalid, answer_nobody, answer_refusal
from serve_app.web.schemas import PAINTED, UPLOAD, Options, Status, StyleInfo, StyleList, describe_problems, problems
from serve_app.web.uploads import read_upload

PAGE = Path(__file__).parent / "page"


def create_app(pipeline: Pipeline) -> FastAPI:
    """Returns the ASGI application that serves a pipeline over HTTP."""
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
        wanted = stylize_request(options, accept, pipeline)
        data = await read_upload(request, pipeline.settings.max_bytes)
        painting = await pipeline.stylize(data, wanted, client_of(request, pipeline.settings))
        return Response(painting.data, media_type=painting.media_type, headers=receipt_headers(painting.receipt))

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


def client_of(request: Request, settings: IngressSettings) -> str:
    """Returns the address that identifies the client of a request."""
    peer = request.client.host if request.client else None
    return client_address(peer, request.headers.getlist("x-forwarded-for"), settings.trusted_proxies)


def stylize_request(options: Options, accept: str | None, pipeline: Pipeline) -> StylizeRequest:
    """Checks a client's options and fills in the defaults.

    Raises:
        UnknownStyle: if the style is not installed.
        BadOption: if `max_side` or `timeout_s` is above the setting.
    """
    settings = pipeline.settings
    style = find_style(pipeline.styles, options.style or settings.default_style, pipeline.catalogue)
    max_side = options.max_side or settings.max_side
    if max_side > settings.max_side:
        detail = f"max_side is {max_side}; at most {settings.max_side} pixels are painted here."
        raise BadOption(detail, settings.max_side, max_side, "pixels")
    timeout_s = options.timeout_s or settings.timeout_s
    if timeout_s > settings.timeout_s:
        detail = f"timeout_s is {timeout_s:g}; a picture may take {settings.timeout_s:g} seconds here at most."
        raise BadOption(detail, settings.timeout_s, timeout_s, "seconds")
    return StylizeRequest(
        style=style.name,
        max_side=max_side,
        multiple=style.multiple,
        format=options.format or negotiate(accept, settings.default_format),
        quality=options.quality,
        timeout_s=timeout_s,
    )


def receipt_headers(receipt: Receipt) -> dict[str, str]:
    """Returns the headers that tell a client what was done to its photograph."""
    timings = ", ".join(f"{name};dur={duration:.1f}" for name, duration in receipt.timings_ms.items())
    return {
        "X-Style": receipt.style,
        "X-Original-Size": f"{receipt.original.width}x{receipt.original.height}",
        "X-Painted-Size": f"{receipt.painted.width}x{receipt.painted.height}",
        "X-Resized": "true" if receipt.resized else "false",
        "Server-Timing": timings,
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }


def list_styles(pipeline: Pipeline) -> StyleList:
    """Returns the default style, then other installed ones, then those of the catalogue that can be downloaded."""
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
