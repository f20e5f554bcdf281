"""The log of requests: one line for each, with what it was, what became of it, and the time that each step took.

A line holds nothing that a client has sent as it was sent: of the photograph its size, of the address the template of
its route (a path may hold a job's id, and a query the secret of a callback), and of the headers only ids of a narrow
form.

An Ingress writes a line for each request that it answers, and a proxy for each that its guard answers or gives up.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RequestError
from serve_app.frames import Receipt, Size
from serve_app.settings import IngressSettings, LogClients
from serve_app.web.clients import logged_address

logger = logging.getLogger(__name__)

OK = "ok"
CLIENT_GONE = "client-gone"  # the outcome of a request whose client has closed the connection
CLIENT_CLOSED_REQUEST = 499  # its status in logs, as nginx has it; nobody gets it
WAITED = "x-animegan-waited-seconds"  # what the guard tells the Ingress
REQUEST_ID = b"x-request-id"
WELL_FORMED_ID = re.compile(rb"[\x21-\x7e]{1,128}")
TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")  # W3C Trace Context
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT")
PROBES = ("/livez", "/readyz", "/-/healthz")  # asked every few seconds by load balancers: they have no lines
# Of the routes that a guard answers or refuses; it does not know the application.
GUARDED = (
    (re.compile(r"/v1/(stylize|jobs|jobs/events|styles)$"), r"/v1/\1"),
    (re.compile(r"/v1/jobs/[^/]+(|/image|/photo)$"), r"/v1/jobs/{job_id}\1"),
    (re.compile(r"/v1/styles/[^/]+/thumbnail$"), "/v1/styles/{name}/thumbnail"),
    (re.compile(r"/v1/(images/edits|models)$"), r"/v1/\1"),
    (re.compile(r"/v1/models/[^/]+$"), "/v1/models/{model}"),
    (re.compile(r"/page/[^/]+/.+$"), "/page/{version}/{name:path}"),
    (re.compile(r"^/$"), "/"),
)


@dataclass
class Entry:
    """What is known of a request, from its arrival to the end of its answer.

    Attributes:
        method: of HTTP; `other` if it is none that is known.
        request_id: as the client or the guard has named it; None if nobody has, or not in the form of one.
        trace_id: of the trace that the request belongs to; None if it is not known.
        client: its address in as much detail as the settings allow; None if they allow none.
        bytes_in: of the body, as far as it was read.
        bytes_out: of the answer's body, as far as it was sent.
        status: of the answer; None if none was begun.
        is_complete: whether all of the answer was sent.
        outcome: `ok`, `client-gone` or the code of a refusal; None if nobody has noted one.
        style: that was asked for.
        receipt: of what was done to the photograph.
        is_handed_on: whether the guard has let the request through to an Ingress, which writes its line.
        waited_ms: in the guard, after the body had arrived.
        began: by the monotonic clock, in seconds.
        ended: when the last byte of the answer was sent; None if it has none.
    """

    method: str
    request_id: str | None = None
    trace_id: str | None = None
    client: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    status: int | None = None
    is_complete: bool = False
    outcome: str | None = None
    style: str | None = None
    receipt: Receipt | None = None
    is_handed_on: bool = False
    waited_ms: float | None = None
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """From the arrival of the body, in the guard where there is one, to the last byte of the answer, or to now."""
        return (self.ended or time.monotonic()) - self.began + (self.waited_ms or 0) / 1000

    def end(self) -> None:
        """Says what became of a request about which nobody has noted it."""
        if self.status is None:
            self.status = CLIENT_CLOSED_REQUEST
        if self.outcome is None:
            is_ok = self.status < 400
            self.outcome = OK if is_ok and self.is_complete else CLIENT_GONE if is_ok else f"status-{self.status}"
        if self.status == CLIENT_CLOSED_REQUEST:
            self.outcome = CLIENT_GONE

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds of each step. Those of a painting that was used again are of another request, and not here."""
        steps = {} if self.receipt is None else self.receipt.timings_ms
        if self.receipt is not None and self.receipt.reused:
            steps = {name: duration for name, duration in steps.items() if name == "queue"}
        guard = {} if self.waited_ms is None else {"guard": self.waited_ms}
        total = {"total": 1000 * ((self.ended or time.monotonic()) - self.began)}
        return {name: round(duration, 1) for name, duration in (guard | steps | total).items()}

    def members(self, route: str | None) -> dict[str, Any]:
        """Returns what a line says, without what is not known."""
        receipt = self.receipt
        known = {
            "id": self.request_id,
            "trace_id": self.trace_id,
            "client": self.client,
            "method": self.method,
            "route": route,
            "status": self.status,
            "outcome": self.outcome,
            "style": self.style,
            "photograph": None if receipt is None else by(receipt.original),
            "painting": None if receipt is None else by(receipt.painted),
            "reused": None if receipt is None else receipt.reused,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "timings_ms": self.timings_ms,
        }
        return {name: value for name, value in known.items() if value is not None}


EndOfRequest = Callable[[Entry, str | None], None]  # takes what is known in the end, and the template of the route
NOTED: ContextVar[Entry | None] = ContextVar("animegan_request", default=None)


def note(**changes: Any) -> None:
    """Adds to what is known of the request that is being handled; outside of any it does nothing.

    Args:
        changes: attributes of an `Entry`.
    """
    entry = NOTED.get()
    if entry is not None:
        for name, value in changes.items():
            setattr(entry, name, value)


class RequestLog:
    """ASGI middleware of the Ingress.

    Args:
        app: that sets `route` in the scope it is given, as FastAPI does.
        settings: returns those of the Ingress as they are now.
        on_end: is called at the end of every request; it must return at once.
    """

    def __init__(
        self, app: ASGIApp, settings: Callable[[], IngressSettings], on_end: EndOfRequest | None = None
    ) -> None:
        self._app = app
        self._settings = settings
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = self._settings()
        entry = new_entry(scope, settings.trusted_proxies, settings.log_clients)
        try:
            await follow(self._app, entry, scope, receive, send)
        finally:
            entry.end()
            route = template(scope)
            if self._on_end is not None:
                self._on_end(entry, route)
            if scope["path"] not in PROBES:
                write(entry, route)


class GuardLog:
    """ASGI middleware around the guard, which writes lines of what no Ingress answers.

    Args:
        app: the guard.
        trusted_proxies: the Ingress's setting.
        log_clients: the Ingress's setting.
    """

    def __init__(
        self, app: ASGIApp, trusted_proxies: Sequence[IPv4Network | IPv6Network] = (), log_clients: LogClients = "off"
    ) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies
        self._log_clients = log_clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = new_entry(scope, self._trusted_proxies, self._log_clients)
        try:
            await follow(self._app, entry, scope, receive, send)
        finally:
            is_answered_here = not entry.is_handed_on or entry.outcome is not None
            entry.end()
            if is_answered_here and scope["path"] not in PROBES:
                write(entry, guarded_template(scope["path"]))


def new_entry(scope: Scope, trusted: Sequence[IPv4Network | IPv6Network], log_clients: LogClients) -> Entry:
    """Returns what is known of a request that has just arrived."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    values = {name: value for name, value in headers if name in (REQUEST_ID, b"traceparent", WAITED.encode())}
    waited_s = values.get(WAITED.encode(), b"").decode("latin-1")
    traced = TRACEPARENT.fullmatch(values.get(b"traceparent", b""))
    forwarded_for = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    peer = scope["client"][0] if scope.get("client") else None
    return Entry(
        scope["method"] if scope["method"] in METHODS else "other",
        well_formed_id(values.get(REQUEST_ID, b"")),
        traced[1].decode() if traced else None,
        logged_address(peer, forwarded_for, trusted, log_clients),
        waited_ms=1000 * float(waited_s) if re.fullmatch(r"\d{1,6}\.\d{3}", waited_s, re.ASCII) else None,
    )


def well_formed_id(value: bytes) -> str | None:
    """Returns the id of a request; None if it is not 1 to 128 printable characters of ASCII."""
    return value.decode() if WELL_FORMED_ID.fullmatch(value) else None


async def follow(app: ASGIApp, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
    """Has a request handled, and notes what goes in and out."""

    async def counted_receive() -> Message:
        message = await receive()
        entry.bytes_in += len(message.get("body", b""))
        return message

    async def counted_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            entry.status = message["status"]
            entry.request_id = answered_id(message) or entry.request_id
        await send(message)
        if message["type"] == "http.response.body":
            if body := message.get("body", b""):
                entry.bytes_out += len(body)
                entry.ended = time.monotonic()
            entry.is_complete = not message.get("more_body", False)

    token = NOTED.set(entry)
    try:
        await app(scope, counted_receive, counted_send)
    except Exception:  # Starlette answers it outside of this middleware
        entry.status, entry.outcome = RequestError.status, RequestError.code
        raise
    finally:
        NOTED.reset(token)


def answered_id(start: Message) -> str | None:
    """Returns the id of a request that its answer states."""
    ids = [value for name, value in start.get("headers", []) if name.lower() == REQUEST_ID]
    return well_formed_id(ids[0]) if ids else None


def write(entry: Entry, route: str | None) -> None:
    """Writes the line of a request that has ended."""
    members = entry.members(route)
    timings = members["timings_ms"]
    words = f"{entry.method} {route or 'an unknown path'} {entry.status} {entry.outcome} in {timings['total']:.0f} ms"
    if entry.receipt is not None:
        steps = ", ".join(f"{name} {duration:.0f}" for name, duration in timings.items() if name != "total")
        words += f", {entry.style or entry.receipt.style} {members['photograph']} to {members['painting']}: {steps}"
    logger.info(words, extra={"request": members})


def template(scope: Scope) -> str | None:
    """Returns the template of the route of a request that FastAPI has handled; None if it has none."""
    route = scope.get("route")
    if route is None:  # of a method that the path does not take
        routes = getattr(scope.get("app"), "routes", ())
        route = next((each for each in routes if each.matches(scope)[0] is not Match.NONE), None)
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else None


def guarded_template(path: str) -> str | None:
    """Returns the template of a path that the guard has answered, as far as it can be told."""
    path = path.rstrip("/") or "/"
    matches = ((pattern.search(path), shape) for pattern, shape in GUARDED)
    return next((found.expand(shape) for found, shape in matches if found), None)


def by(size: Size) -> str:
    """Returns a size as headers state it, width first."""
    return f"{size.width}x{size.height}"
