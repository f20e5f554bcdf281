"""ASGI middleware for Serve's HTTP proxy: nothing gets to Serve before it is complete, bounded and clean.

Serve's proxy reads a body without a limit while it holds one of the Ingress's few places, and obeys headers that are
not meant for strangers. So the guard takes bodies in first, and hands a request on when there is room for it.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import (
    BadHeader,
    DeadlineExceeded,
    HeadersTooLarge,
    Lost,
    NotReady,
    RequestError,
    TooBusy,
    TooManyBytes,
    UnknownHost,
)
from serve_app.jobs.news import News
from serve_app.queueing.gate import FairGate
from serve_app.settings import MIB, GuardSettings, LogClients
from serve_app.web.clients import client_address
from serve_app.web.connection import MAX_HEADER_BYTES, PROBLEM_TYPE, headers_too_large
from serve_app.web.draining import Draining
from serve_app.web.events import Streams, is_for_events, root_path_of
from serve_app.web.intake import Body, ClientGone, Intake, take_in
from serve_app.web.openai_uploads import EDITS, most_body_bytes
from serve_app.web.problems import JSON, written
from serve_app.web.refusals import HeldRefusals, key_of
from serve_app.web.request_log import PROBES, REQUEST_ID, WAITED, note, well_formed_id
from serve_app.web.uploads import FORM_OVERHEAD_BYTES, too_many_bytes

Headers = list[tuple[bytes, bytes]]

UPLOADS = ("/v1/stylize",)  # routes that take a photograph
ALBUMS = ("/v1/jobs",)  # routes whose forms may hold many
OTHER_BYTES = MIB  # of a body for any other route
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

# Serve obeys these headers; the forms with underscores too.
CONTROL_HEADERS = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id", b"x-session-id"}
)
SERVE_ROUTER_PREFIX = b"x-serve-router-"
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

PIECE_PAUSE_S = 0.01  # between two pieces of a body that is handed on
PROBE_S = 3.0  # for the answer to a health check
NO_ROUTE = re.compile(rb"Path '.*' not found\. Ping http://\.\.\./-/routes for available routes\.", re.DOTALL)
RETRY_AFTER_S = 5  # a replica takes some seconds to come back
LINGER_S = 3.0  # how long what a refused client still sends is read and dropped
LINGER_QUIET_S = 0.5  # unless it sends nothing
LINGER_PAUSE_S = 0.005
MAX_LINGERING = 128


class GuardObserver(Protocol):
    """Counts what the guard does; each method must return at once."""

    def refused(self, code: str) -> None:
        """Counts a refusal."""

    def holds(self, guard: "Guard") -> None:
        """Takes note that what the guard holds has changed."""


class Unobserved:
    """Counts nothing."""

    def refused(self, code: str) -> None:
        """Counts a refusal."""

    def holds(self, guard: "Guard") -> None:
        """Takes note that what the guard holds has changed."""


@dataclass(frozen=True)
class Site:
    """What the guard knows of the service beside its own settings.

    Attributes:
        trusted_proxies: the Ingress's setting.
        session_header: the name of the header that Serve routes sessions by.
        is_loopback: whether the service listens on the loopback interface only.
        log_clients: the Ingress's setting.
    """

    trusted_proxies: Sequence[IPv4Network | IPv6Network] = ()
    session_header: str = "x-session-id"
    is_loopback: bool = False
    log_clients: LogClients = "off"


class Guard:
    """Pure ASGI middleware, one for each proxy.

    Args:
        app: Serve's proxy.
        settings: its limits.
        site: the rest of the configuration.
        observer: is told what happens.
        news: of jobs; None where there are none.
        draining: whether the proxy drains, and what it has in hand.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: GuardSettings | None = None,
        site: Site | None = None,
        observer: GuardObserver | None = None,
        news: News | None = None,
        draining: Draining | None = None,
    ) -> None:
        self.settings = settings or GuardSettings()
        self.site = site or Site()
        self.gate = FairGate(self.settings.max_forwarded, self.settings.max_forwarded_bytes)
        self.intake = Intake(self.settings, lambda: self.gate.retry_after_s)
        self.refusals = HeldRefusals()
        self.draining = draining or Draining()
        self.draining.has_guard = True
        self._app = app
        self._observer: GuardObserver = observer or Unobserved()
        self.streams: Streams | None = None
        if news is not None:
            most, changed = self.settings.max_streams, lambda: self._observer.holds(self)
            self.streams = Streams(news, lambda: most, on_change=changed)
        self._dropped = CONTROL_HEADERS | {WAITED.encode(), dashed(self.site.session_header.encode())}
        self._lingering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, answer = Incoming(receive, scope["headers"]), Answer(send, scope["path"])
        try:
            await self._handle(scope, request, answer)
        except ClientGone:
            return
        except RequestError as refusal:
            note(outcome=refusal.code)
            self._observer.refused(refusal.code)
            is_last = request.is_unread or isinstance(refusal, TooManyBytes | HeadersTooLarge)
            await answer.refuse(refusal, is_last)
            if is_last:
                await self._linger(request, send)

    async def _handle(self, scope: Scope, request: "Incoming", answer: "Answer") -> None:
        headers, answer.request_id = clean_headers(scope, self._dropped)
        scope = {**scope, "headers": headers}
        check_host(scope, self.settings.allowed_hosts, self.site.is_loopback)
        self.draining.check(scope["path"], request.is_unread)
        if self.streams is not None and is_for_events(scope):  # here, where a client that waits takes nobody's place
            send = with_id(answer.send, answer.request_id)
            await self.streams.respond(scope, request.receive, send, self._client(scope), root_path_of(scope))
            return
        if scope["path"] in PROBES and not request.is_unread:
            await self._forward_in_time(scope, request, answer)
            return
        with self.draining.hand():
            if request.is_unread:
                await self._take_in(scope, request, answer)
            else:
                await self._forward(scope, request.receive, request, answer)

    async def _take_in(self, scope: Scope, request: "Incoming", answer: "Answer") -> None:
        """Takes in the body of a request, and forwards it then.

        Raises:
            RequestError: if it is too large or too slow, or there is no room for it.
            ClientGone: if nobody waits for an answer.
        """
        headers = scope["headers"]
        limit, announced = body_limit(scope, self.settings), content_length(headers)
        if announced > limit:
            raise too_many_bytes(limit, announced)
        client = self._client(scope)
        key = key_of(scope["path"], client, telling_apart(headers))
        self.refusals.check(key)
        answer.on_too_busy = partial(self.refusals.hold, key)
        try:
            with self.intake.place(client, announced) as body:
                self._observer.holds(self)
                await take_in(body, request.receive, limit)
                await self._forward_body(scope, request, answer, client, body)
        finally:
            self._observer.holds(self)

    async def _forward_body(self, scope: Scope, request: "Incoming", answer: "Answer", client: str, body: Body) -> None:
        """Waits for the turn of a request whose body has arrived, and forwards it."""
        arrived, size = time.monotonic(), body.size
        await self._turn(request, client, size)
        entered = time.monotonic()
        try:
            self._observer.holds(self)
            waited = f"{entered - arrived:.3f}".encode()
            scope = {**scope, "headers": [*with_length(scope["headers"], size), (WAITED.encode(), waited)]}
            await self._forward(scope, Replay(body, request).receive, request, answer)
        finally:
            self.gate.release(size, time.monotonic() - entered)

    async def _turn(self, request: "Incoming", client: str, size: int) -> None:
        """Waits until a request may go on to the service.

        Raises:
            TooBusy: if that takes longer than `queue_time_s`.
            ClientGone: if the client does not wait.
        """
        turn = asyncio.ensure_future(self.gate.acquire(client, size))
        try:
            await asyncio.wait({turn, request.gone}, timeout=self.settings.queue_time_s, return_when="FIRST_COMPLETED")
            if turn.done():
                return turn.result()
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.gate.release(size, 0)
            raise
        finally:
            turn.cancel()
        if request.gone.done():
            raise ClientGone
        raise self.intake.full()

    async def _forward_in_time(self, scope: Scope, request: "Incoming", answer: "Answer") -> None:
        """Lets Serve answer a health check; while it has no Ingress, that is told at once.

        Raises:
            NotReady: if it is not answered within `PROBE_S`.
        """
        try:
            async with asyncio.timeout(PROBE_S) as timeout:
                await self._forward(scope, request.receive, request, answer)
        except (TimeoutError, Lost) as error:  # Serve may end a cancelled request quietly, as if its Ingress were lost
            if isinstance(error, Lost) and not timeout.expired():
                raise
            raise NotReady("No Ingress has answered; try again shortly.", retry_after_s=RETRY_AFTER_S) from None

    async def _forward(self, scope: Scope, receive: Receive, request: "Incoming", answer: "Answer") -> None:
        """Lets Serve answer.

        Raises:
            RequestError: what is to be said in place of Serve's own words, or of nothing.
            ClientGone: if nobody waits for an answer.
        """
        answer.may_replace = not scope["path"].startswith("/-/")  # Serve's own routes
        note(is_handed_on=True)
        await self._app(scope, receive, answer.send)
        if request.is_gone:
            raise ClientGone
        if answer.instead is not None:
            raise answer.instead
        if not answer.has_begun:
            raise Lost("The process that handled the request was lost; try again later.", retry_after_s=RETRY_AFTER_S)

    def _client(self, scope: Scope) -> str:
        """Returns the address that identifies the client of a request."""
        peer = scope["client"][0] if scope.get("client") else None
        forwarded_for = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return client_address(peer, forwarded_for, self.site.trusted_proxies)

    async def _linger(self, request: "Incoming", send: Send) -> None:
        """Reads for a while what a refused client still sends: to close at once could take its answer from it."""
        if self._lingering < MAX_LINGERING:
            self._lingering += 1
            try:
                async with asyncio.timeout(LINGER_S):
                    while request.is_unread:
                        async with asyncio.timeout(LINGER_QUIET_S):
                            await request.receive()
                        await asyncio.sleep(LINGER_PAUSE_S)
            except TimeoutError:
                pass
            finally:
                self._lingering -= 1
        await send({"type": "http.response.body", "body": b""})


class Incoming:
    """What a client sends.

    Attributes:
        is_unread: whether there is more of the body to come.
        is_gone: whether the client has closed the connection.
    """

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self.is_unread = has_body(headers)
        self.is_gone = False
        self._receive = receive
        self._gone: asyncio.Task[Message] | None = None

    async def receive(self) -> Message:
        """Returns the next message."""
        message = await self._receive()
        self.is_gone = message["type"] == "http.disconnect"
        if self.is_gone or not message.get("more_body", False):
            self.is_unread = False
        return message

    @property
    def gone(self) -> "asyncio.Task[Message]":
        """The message after the body: that the client has gone, or that its answer is complete."""
        if self._gone is None:
            self._gone = asyncio.create_task(self.receive())
        return self._gone


class Replay:
    """Hands a body that has been taken in to the service, as it would have arrived.

    Serve takes all that it can get at once, and copies it as a whole. So a long body is handed on in pieces, with time
    for Serve to pass each one on.
    """

    def __init__(self, body: Body, request: Incoming) -> None:
        self._body = body
        self._request = request
        self._has_begun = False
        self._is_done = False

    async def receive(self) -> Message:
        """Returns the next message."""
        if self._is_done:
            return await asyncio.shield(self._request.gone)
        if self._has_begun:
            await asyncio.sleep(PIECE_PAUSE_S)
        self._has_begun = True
        data = await self._body.read()
        self._is_done = self._body.is_read
        return {"type": "http.request", "body": data, "more_body": not self._is_done}


class Answer:
    """What a client is answered: the service's words, but not Serve's own.

    Attributes:
        request_id: of the request.
        has_begun: whether something has been sent.
        instead: a refusal that the client is to get in place of Serve's bare text.
        may_replace: whether a bare text is Serve's at all.
        on_too_busy: is called with the document and its Retry-After if the service refuses one picture too many.
    """

    def __init__(self, send: Send, path: str) -> None:
        self.request_id = b""
        self.has_begun = False
        self.instead: RequestError | None = None
        self.may_replace = False
        self.on_too_busy: Callable[[bytes, int | None], None] = nobody
        self._too_busy: bytes | None = None  # the document as far as it has come
        self._retry_after_s: int | None = None
        self._held: Message | None = None  # the start of a bare 404 that may be Serve's
        self._send = send
        self._path = path  # of the request, by whose clients refusals are read

    async def send(self, message: Message) -> None:
        """Passes a message of the service on."""
        if self._held is not None:
            start, self._held = self._held, None
            if NO_ROUTE.fullmatch(message.get("body", b"")):
                self.instead = NotReady("The service is starting; try again shortly.", retry_after_s=RETRY_AFTER_S)
            else:
                self.has_begun = True
                await self._send(start)
        if message["type"] == "http.response.start":
            if self.may_replace and message["status"] == 404 and is_bare(message):
                self._held = message
                return
            self.instead = in_own_words(message) if self.may_replace else None
            self._too_busy = b"" if is_too_busy(message) else None
            self._retry_after_s = retry_after(message)
        elif self._too_busy is not None:
            self._too_busy += message.get("body", b"")
            if not message.get("more_body", False):
                self.on_too_busy(self._too_busy, self._retry_after_s)
        if self.instead is None:
            self.has_begun = True
            await self._send(message)

    async def refuse(self, refusal: RequestError, is_last: bool) -> None:
        """Answers a refusal.

        Args:
            refusal: what it says.
            is_last: whether the connection is to be closed, because there is more of the request to come. The caller
                ends the answer then.
        """
        if self.has_begun:
            return
        self.has_begun = True
        document, media_type, more = written(refusal, self._path)
        body = json.dumps(document).encode()
        headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID, self.request_id or new_request_id()),
            *((name.lower().encode(), value.encode()) for name, value in more.items()),
        ]
        if is_last:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": is_last})


def with_id(send: Send, request_id: bytes) -> Send:
    """Returns a `send` that adds the id of the request to the headers of the answer."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (REQUEST_ID, request_id)]}
        await send(message)

    return send_with_id


def nobody(document: bytes, retry_after_s: int | None) -> None:
    """Hears of a refusal and forgets it."""


def is_too_busy(start: Message) -> bool:
    """Returns whether an answer is the service's own refusal of one picture too many."""
    types = [value for name, value in start.get("headers", []) if name == b"content-type"]
    return start["status"] == TooBusy.status and types in ([PROBLEM_TYPE.encode()], [JSON.encode()])


def retry_after(start: Message) -> int | None:
    """Returns the seconds that the header Retry-After of an answer says; None if it has none."""
    after = dict(start.get("headers", [])).get(b"retry-after", b"")
    return int(after) if after.isdigit() else None


def is_bare(start: Message) -> bool:
    """Returns whether an answer is bare text, as Serve's own are."""
    types = [value for name, value in start.get("headers", []) if name == b"content-type"]
    return len(types) == 1 and types[0].startswith(b"text/plain")


def in_own_words(start: Message) -> RequestError | None:
    """Returns the refusal that says what Serve answers as bare text, or None if the answer is not Serve's."""
    if not is_bare(start):
        return None
    retry_after_s = retry_after(start)
    retry_after_s = RETRY_AFTER_S if retry_after_s is None else retry_after_s
    if start["status"] == 408:
        return DeadlineExceeded("The request was not answered within the time that the service gives any request.")
    if start["status"] == 429:
        return TooBusy("Too many requests are waiting; try again shortly.", retry_after_s=retry_after_s)
    if start["status"] == 503:
        return NotReady("The service cannot be reached now; try again shortly.", retry_after_s=retry_after_s)
    return None


def clean_headers(scope: Scope, dropped: frozenset[bytes]) -> tuple[Headers, bytes]:
    """Returns a request's headers without those that only Serve may set, and its id, which is among them.

    Raises:
        HeadersTooLarge: if they have more than `MAX_HEADER_BYTES` with the request line.
        BadHeader: if a value has control characters or is not UTF-8.
    """
    size = len(scope["raw_path"]) + len(scope["query_string"])
    headers: Headers = []
    request_id = b""
    for name, value in scope["headers"]:
        size += len(name) + len(value) + len(b": \r\n")
        if not is_clean(value):
            raise BadHeader(f"The header {name.decode('latin-1')[:64]} has bytes that are not valid in it.")
        dashes = dashed(name)
        if name == REQUEST_ID:
            request_id = request_id or (well_formed_id(value) or "").encode()
        elif dashes not in dropped and not dashes.startswith(SERVE_ROUTER_PREFIX):
            headers.append((name, value))
    if size > MAX_HEADER_BYTES:
        raise headers_too_large(size)
    request_id = request_id or new_request_id()
    return [*headers, (REQUEST_ID, request_id)], request_id


def is_clean(value: bytes) -> bool:
    """Returns whether the value of a header is text."""
    if value.isascii() and value.decode().isprintable():
        return True
    with suppress(UnicodeDecodeError):
        return not CONTROL_CHARACTERS.search(value.decode())
    return False


def dashed(name: bytes) -> bytes:
    """Returns the name of a header as Serve compares it: in lower case, underscores as dashes."""
    return name.lower().replace(b"_", b"-")


def new_request_id() -> bytes:
    """Returns a random id."""
    return str(uuid.uuid4()).encode()


def check_host(scope: Scope, allowed: Sequence[str] | None, is_loopback: bool) -> None:
    """Checks the name that a request is for: a page of another site could otherwise reach a service on this machine.

    Args:
        scope: of the request.
        allowed: names, `*.example.org` for all below one; None for those of the loopback interface.
        is_loopback: whether None stands for them; on other interfaces it allows any name.

    Raises:
        UnknownHost: if the name is none of them.
    """
    # Health checkers ask by address, whatever names are allowed.
    if scope["path"] in PROBES or (allowed is None and not is_loopback):
        return
    named = b"".join(value for name, value in scope["headers"] if name == b"host").decode("latin-1").lower()
    host = re.sub(r":\d*$", "", named).strip("[]").rstrip(".")
    for name in LOOPBACK_NAMES if allowed is None else allowed:
        if name == "*" or host == name.lower() or (name.startswith("*.") and host.endswith(name[1:].lower())):
            return
    raise UnknownHost(
        "The service does not go by the name in the header Host. Whoever runs it adds its names to allowed_hosts."
    )


def has_body(headers: Headers) -> bool:
    """Returns whether a request comes with a body."""
    return content_length(headers) > 0 or any(name == b"transfer-encoding" for name, _ in headers)


def content_length(headers: Headers) -> int:
    """Returns the announced length of a body in bytes; 0 if there is none."""
    lengths = [value for name, value in headers if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def telling_apart(headers: Headers) -> list[bytes]:
    """Returns the headers that decide whether a client is let in, and whether its picture is painted now or later."""
    return [name + b":" + value for name, value in headers if name in (b"authorization", b"x-api-key", b"prefer")]


def with_length(headers: Headers, size: int) -> Headers:
    """Returns the headers of a request whose body is known."""
    others = [header for header in headers if header[0] not in (b"content-length", b"transfer-encoding")]
    return [*others, (b"content-length", str(size).encode())]


def body_limit(scope: Scope, settings: GuardSettings) -> int:
    """Returns how many bytes the body of a request may have, by its route and media type."""
    path = scope["path"].rstrip("/")
    types = [value.lower() for name, value in scope["headers"] if name == b"content-type"]
    is_form = any(value.startswith(b"multipart/form-data") for value in types)
    if is_form and path.endswith(ALBUMS):
        return settings.max_form_bytes
    if path.endswith(EDITS):
        return most_body_bytes(settings.max_bytes, is_form)
    if path.endswith(UPLOADS + ALBUMS):
        return settings.max_bytes + (FORM_OVERHEAD_BYTES if is_form else 0)
    return OTHER_BYTES
