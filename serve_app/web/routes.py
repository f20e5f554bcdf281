"""The HTTP routes. Every refusal is raised as a `RequestError`, and `problems` turns it into a problem document."""

import importlib.metadata
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import NotReady, RequestError
from serve_app.frames import Client
from serve_app.settings import IngressSettings
from serve_app.web.clients import client_address
from serve_app.web.conditions import read_condition
from serve_app.web.events import EVENTS
from serve_app.web.job_routes import add_job_routes, stylize_as_job
from serve_app.web.openai_routes import add_openai_routes
from serve_app.web.options import read_photograph, without_waited
from serve_app.web.page_routes import add_page_routes
from serve_app.web.pipeline import Pipeline
from serve_app.web.preferences import read_preference
from serve_app.web.problems import (
    answer_fault,
    answer_http_error,
    answer_invalid,
    answer_nobody,
    answer_refusal,
)
from serve_app.web.request_log import WAITED, RequestLog
from serve_app.web.reuse import painting_answer, stylize_or_reuse
from serve_app.web.schemas import (
    ACCEPTED,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    KEY,
    NOT_MODIFIED,
    PAINTED,
    PREFER,
    UPLOAD,
    Options,
    Readiness,
    Status,
    describe_problems,
    problems,
)
from serve_app.web.style_routes import add_style_routes
from serve_app.web.traffic import Observer, told


def create_app(pipeline: Pipeline, observer: Observer | None = None) -> FastAPI:
    """Returns the ASGI application that serves a pipeline over HTTP, and tells an observer of every answer."""
    app = FastAPIOffline(
        title="animegan-serve",
        summary="Turns photographs into anime with AnimeGANv2.",
        version=importlib.metadata.version("animegan-serve"),
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own spans and records hold paths, in which ids of jobs are; deployments/tracing.py has ours.
        telemetry={"tracing": False, "logs": False},
    )
    on_end = None if observer is None else told(observer)
    app.add_middleware(RequestLog, settings=lambda: pipeline.settings, on_end=on_end)
    app.add_middleware(WithoutTrailingSlash)  # around the log, which looks at the scope that the routes have seen
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
        responses=PAINTED | ACCEPTED | NOT_MODIFIED | problems(400, 401, 404, 408, 413, 415, 422, 429, 503, 507),
        openapi_extra=UPLOAD | KEY | {"parameters": [PREFER, IDEMPOTENCY_KEY, IF_NONE_MATCH]},
        summary="Paint a photograph now",
    )
    async def stylize(
        request: Request, client: Annotated[Client, Depends(identify)], options: Annotated[Options, Query()]
    ) -> Response:
        photograph = await read_photograph(request, options, pipeline)
        preference = read_preference(request.headers.getlist("prefer"))
        if preference.wants_job and pipeline.jobs is not None and not photograph.has_deadline:
            return await stylize_as_job(pipeline, request, photograph, client, preference)
        wanted = without_waited(photograph.request, request.headers.get(WAITED, ""))
        if pipeline.jobs is None:
            return painting_answer(await pipeline.stylize(photograph.data, wanted, client))
        condition = read_condition(request.headers.getlist("if-none-match"))
        return await stylize_or_reuse(pipeline, pipeline.jobs, photograph.data, wanted, client, condition)

    add_job_routes(app, pipeline, identify, lambda request: client_of(request, pipeline.settings))
    add_style_routes(app, pipeline)
    add_openai_routes(app, pipeline, identify)

    @app.get("/livez", summary="Whether this process answers")
    async def livez() -> Status:
        return Status(status="ok")

    @app.get("/readyz", responses=problems(503), summary="Whether a model replica has painted its warm-up picture")
    async def readyz() -> Readiness:
        if not await pipeline.is_ready():
            raise NotReady("No model replica has painted its warm-up picture yet; try again shortly.", retry_after_s=2)
        return Readiness(status="ok", jobs="off" if pipeline.jobs is None else await pipeline.jobs.state())

    answer_head(app)
    add_page_routes(app)
    describe_problems(app)
    return app


def answer_head(app: FastAPI) -> None:
    """Has HEAD answered wherever GET is, but for events, which have no end; the server leaves the bodies out."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and route.methods == {"GET"} and route.path != EVENTS:
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


class WithoutTrailingSlash:
    """ASGI middleware that takes `/v1/stylize/` for `/v1/stylize`: a redirect would lose many clients their upload."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "http" and scope["path"] != "/" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


def client_of(request: Request, settings: IngressSettings) -> str:
    """Returns the address that identifies the client of a request."""
    peer = request.client.host if request.client else None
    return client_address(peer, request.headers.getlist("x-forwarded-for"), settings.trusted_proxies)
