"""What the routes have answered, for whoever counts it: by route, style and outcome, all of them few."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal, Protocol

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.web.request_log import CLIENT_CLOSED_REQUEST, WAITED

OTHER = "other"  # a path that no route has
SECONDS = re.compile(rb"\d{1,6}\.\d{3}")  # as the guard writes them

Outcome = Literal["ok", "accepted", "refused", "busy", "late", "unavailable", "failed", "gone"]
OUTCOMES: dict[Outcome, str] = {
    "ok": "a painting, or whatever was asked for",
    "accepted": "202: it will be painted later",
    "refused": "4xx: the request was wrong",
    "busy": "429: there was no room",
    "late": "408: it was not there, or not painted, in time",
    "unavailable": "503 or 507: a part of the service was missing",
    "failed": "another 5xx: a fault of the service",
    "gone": "the client did not wait for the answer",
}


@dataclass(frozen=True)
class Answered:
    """A request that has been answered.

    Attributes:
        route: the template of its path.
        style: the name of an installed style; empty where none was asked for, or an unknown one.
        outcome: what became of it.
        code: of the refusal, if it was refused.
        seconds: from the arrival of its body, in the guard where there is one, to the end of its answer.
    """

    route: str
    style: str
    outcome: Outcome
    code: str | None
    seconds: float


class Observer(Protocol):
    """Counts answers."""

    def answered(self, answer: Answered) -> None:
        """Counts one; it must return at once."""


class CountAnswers:
    """ASGI middleware, innermost, that tells an observer of every answer.

    Args:
        app: that answers.
        observer: is told.
        clock: seconds, monotonic.
    """

    def __init__(self, app: ASGIApp, observer: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._observer = observer
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = self._clock()
        scope = {**scope, "state": dict(scope.get("state", {}))}  # the routes write into both
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value  # of an exception

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except asyncio.CancelledError:
            status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            seconds = self._clock() - began + waited_s(scope)
            state, outcome = scope["state"], outcome_of(status)
            code = state.get("code", "internal-error" if outcome == "failed" else None)
            self._observer.answered(Answered(template(scope), state.get("style", ""), outcome, code, seconds))


def outcome_of(status: int) -> Outcome:
    """Returns what an HTTP status says became of a request."""
    if status == CLIENT_CLOSED_REQUEST:
        return "gone"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "busy"
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return "late"
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE):
        return "unavailable"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "failed"
    if status >= HTTPStatus.BAD_REQUEST:
        return "refused"
    return "accepted" if status == HTTPStatus.ACCEPTED else "ok"


def template(scope: Scope) -> str:
    """Returns the template of the path of a request that was answered."""
    path: str = getattr(scope.get("route"), "path", OTHER)
    return path


def waited_s(scope: Scope) -> float:
    """Returns how long the guard has let a request wait."""
    found = next((value for name, value in scope["headers"] if name == WAITED.encode()), b"")
    return float(found) if SECONDS.fullmatch(found) else 0.0


def note_style(request: Request, style: str) -> None:
    """Notes the installed style that a request asks for."""
    request.state.style = style


def note_refusal(request: Request, code: str) -> None:
    """Notes why a request is refused."""
    request.state.code = code
