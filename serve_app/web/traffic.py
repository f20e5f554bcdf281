"""What the routes have answered, for whoever counts it: by route, style and outcome, all of them few."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal, Protocol

from serve_app.web.request_log import CLIENT_CLOSED_REQUEST, CLIENT_GONE, OK, EndOfRequest, Entry

OTHER = "other"  # a path that no route has

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
        code: of the refusal, if it was refused; `status-404` for one that has none.
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


def told(observer: Observer) -> EndOfRequest:
    """Returns what a `RequestLog` calls, so that an observer is told of every answer."""

    def tell(entry: Entry, route: str | None) -> None:
        outcome: Outcome = "gone" if entry.outcome == CLIENT_GONE else outcome_of(entry.status or CLIENT_CLOSED_REQUEST)
        code = None if entry.outcome in (OK, CLIENT_GONE) else entry.outcome
        observer.answered(Answered(route or OTHER, entry.style or "", outcome, code, entry.seconds))

    return tell


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
