"""The HTTP routes. Every refusal is raised as a `RequestError`, and `problems` turns it into a problem document."""

import importlib.metadata
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import BadOption, DeadlineExceeded, NotReady, RequestError
from serve_app.frames import Client, Receipt, StylizeRequest
from serve_app.settings import IngressSettings
from serve_app.styles.catalogue import Style, find_style
from serve_app.web.clients import client_address
from serve_app.web.guard import WAITED
from serve_app.web.negotiation import negotiate
from serve_app.web.pipeline import Pipeline
from serve_app.web.problems import (
    answer_fault,
    answer_http_error,
    answer_invalid,
    answer_nobody,
    answer_refusal,
    wrong_options,
)
from serve_app.web.schemas import (
    KEY,
    PAINTED,
    UPLOAD,
    Options,
    Status,
    StyleInfo,
    StyleList,
    describe_problems,
    problems,
)
from serve_app.web.uploads import read_upload

PAGE = Path(__file__).parent / "page"


def create_app(pipeline: Pipeline) -> FastAPI:
    """Returns the ASGI application that serves a pipeline over HTTP."""
    app = FastAPIOffline(
        title="animegan-serve",
        summary="Turns photographs into anime with AnimeGANv2.",
        version=importlib.metadata.version("animegan-serve"),
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(WithoutTrailingSlash)
    app.add_exception_handler(RequestError, answer_refusal)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(ClientDisconnect, answer_nobody)
    app.add_exception_handler(Exception, answer_fault)

    async def identify(request: Request) -> Client:
        """Says whose request it is, before anything of its body is read."""
        authorization, api_key = (request.headers.getlist(name) for name in ("authorization", "x-api-key"))
        return pipeline.keys.identify(authorization, api_key, client_of(request, pipeline.settings))

    @app.post(
        "/v1/stylize",
        response_class=Response,
        responses=PAINTED | problems(400, 401, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra=UPLOAD | KEY,
        summary="Paint a photograph now",
    )
    async def stylize(
        request: Request, client: Annotated[Client, Depends(identify)], options: Annotated[Options, Query()]
    ) -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        wanted = stylize_request(options, accept, pipeline)  # before the upload: a wrong option need not wait for it
        upload = await read_upload(request, pipeline.settings.max_bytes)
        if upload.fields:
            wanted = stylize_request(with_fields(options, upload.fields), accept, pipeline)
        wanted = without_waited(wanted, request.headers.get(WAITED, ""))
        painting = await pipeline.stylize(upload.data, wanted, client)
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

    for path, endpoint in (("/", page), ("/livez", livez), ("/readyz", readyz)):  # health checkers ask by HEAD
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.mount("/samples", StaticFiles(directory=PAGE / "samples"))
    describe_problems(app)
    return app


class WithoutTrailingSlash:
    """ASGI middleware that takes `/v1/stylize/` for `/v1/stylize`: a redirect would lose many clients their upload."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "http" and scope["path"] != "/" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


def with_fields(options: Options, fields: dict[str, str]) -> Options:
    """Returns the options of a query together with those of a form.

    Raises:
        BadOption: if a field is not an option, has a wrong value, or is in the query too.
    """
    given = options.model_dump(exclude_unset=True)
    if both := given.keys() & fields.keys():
        raise BadOption(f"{', '.join(sorted(both))}: given in the query and in the form.")
    try:
        return Options.model_validate({**given, **fields})
    except ValidationError as error:
        raise wrong_options(error.errors()) from None


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


def without_waited(wanted: StylizeRequest, waited_s: str) -> StylizeRequest:
    """Returns the request with less time, by the seconds that it has waited in the guard.

    Raises:
        DeadlineExceeded: if there is no time left.
    """
    if not re.fullmatch(r"\d{1,6}\.\d{3}", waited_s):  # not the guard's
        return wanted
    left_s = wanted.timeout_s - float(waited_s)
    if left_s <= 0:
        raise DeadlineExceeded(f"The picture had to wait for more than the {wanted.timeout_s:g} seconds it was given.")
    return replace(wanted, timeout_s=left_s)


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
