"""Handlers that answer every refusal and fault: with a problem document (RFC 9457), or as OpenAI's clients read it."""

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from serve_app.errors import BadOption, RequestError, Unauthorized
from serve_app.web.openai_errors import NO_RETRY, error_document, is_openais, openai_error
from serve_app.web.request_log import CLIENT_CLOSED_REQUEST, note
from serve_app.web.schemas import PROBLEM

logger = logging.getLogger(__name__)

JSON = "application/json"
CHALLENGE = 'Bearer realm="animegan-serve"'


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answers a refusal of this service."""
    assert isinstance(error, RequestError)  # what this handler is registered for
    note(outcome=error.code)
    return refusal_answer(error, request.url.path)


def refusal_answer(refusal: RequestError, path: str) -> Response:
    """Returns the answer that refuses a request for a path."""
    document, media_type, headers = written(refusal, path)
    return JSONResponse(document, refusal.status, headers, media_type)


def written(refusal: RequestError, path: str) -> tuple[dict[str, Any], str, dict[str, str]]:
    """Returns the document of a refusal, its media type and its headers, as the clients of a route read them."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == Unauthorized.status:
        headers["WWW-Authenticate"] = CHALLENGE
    if not is_openais(path):
        return refusal.problem(), PROBLEM, headers
    return openai_error(refusal), JSON, headers if refusal.retry_after_s is not None else headers | NO_RETRY


async def answer_invalid(request: Request, error: Exception) -> Response:
    """Answers a query that FastAPI's validation refused."""
    assert isinstance(error, RequestValidationError)
    return await answer_refusal(request, wrong_options(error.errors(), query_model(request)))


def query_model(request: Request) -> type[BaseModel]:
    """Returns the model of the query that the route of a request takes."""
    parameters = request.scope["route"].dependant.query_params
    annotations = (parameter.field_info.annotation for parameter in parameters)
    return next(model for model in annotations if isinstance(model, type) and issubclass(model, BaseModel))


def wrong_options(errors: Iterable[Mapping[str, Any]], model: type[BaseModel]) -> BadOption:
    """Returns the refusal of options that pydantic found wrong, naming each, and those that the model has."""
    sentences = []
    for detail in errors:
        name = next(str(part) for part in reversed(detail["loc"]) if isinstance(part, str))[:64]
        unknown = detail["type"] == "extra_forbidden"
        known = ", ".join(model.model_fields)
        sentences.append(f"{name} is not an option (known: {known})" if unknown else f"{name}: {detail['msg']}")
    return BadOption("; ".join(sentences)[:500] + ".")


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answers a refusal of the framework: an unknown path, or a method that a path does not support."""
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "-")
    note(outcome=code)
    headers = dict(error.headers or {})
    if "Allow" in headers:  # of the first route of this path; there may be others
        headers["Allow"] = ", ".join(sorted({method for route in routes_of(request) for method in route.methods or ()}))
    path, allowed = request.url.path, headers.get("Allow", "")
    detail = f"There is nothing at {path}; the API is described at /docs."
    if error.status_code != HTTPStatus.NOT_FOUND:
        detail = f"{path} does not take {request.method}" + (f"; it takes {allowed}." if allowed else ".")
    if is_openais(path):
        return JSONResponse(error_document(detail, error.status_code, code), error.status_code, headers)
    document = {"type": "about:blank", "title": error.detail, "status": error.status_code, "code": code}
    document["detail"] = detail
    return JSONResponse(document, error.status_code, headers, PROBLEM)


def routes_of(request: Request) -> list[Route]:
    """Returns the routes whose path is that of a request, whatever their methods are."""
    scope = {**request.scope, "path": request.scope["path"].rstrip("/") or "/"}
    routes = (route for route in request.app.routes if isinstance(route, Route))
    return [route for route in routes if route.matches(scope)[0] is not Match.NONE]


async def answer_nobody(request: Request, error: Exception) -> Response:
    """Ends a request whose client disconnected during the upload; nobody reads the answer, and nothing is logged."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def answer_fault(request: Request, error: Exception) -> Response:
    """Logs a fault of this service in full, and answers with one sentence."""
    template = next((route.path for route in routes_of(request)), "an unknown path")  # the path may hold a job's id
    logger.error("unexpected error on %s %s", request.method, template, exc_info=error)
    refusal = RequestError("Something went wrong here; the fault has been logged.")
    return refusal_answer(refusal, request.url.path)
