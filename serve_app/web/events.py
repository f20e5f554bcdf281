"""Server-sent events: one stream tells a client of all its jobs until the last one is finished.

The guard serves streams in Serve's proxies, so a client that waits takes no place of a replica; without the guard an
Ingress does. The id of each event says what the client knows of all its jobs by then. So a stream goes on where the one
before it ended, in another process or after a restart, and nothing is kept for clients that may come back.

sse-starlette would keep four tasks for each stream, and it wants to own the response; this keeps one.
"""

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.errors import Gone, TooManyStreams, UnknownJob
from serve_app.jobs.news import News, Watcher
from serve_app.jobs.words import JobReport, Status
from serve_app.web.intake import ClientGone, has_room, subtract
from serve_app.web.problems import wrong_options
from serve_app.web.receipts import job_info
from serve_app.web.schemas import JOB_ID, JobIds

EVENTS = "/v1/jobs/events"
IN_SERVE_S = 50.0  # for a stream in an Ingress, which Serve's request_timeout_s would cut off
IN_PROXY_S = 280.0  # for one in a proxy, where that limit does not count; the client comes back by itself
COMMENT_S = 15.0  # without a word, after which a comment keeps the connection open
RETRY_MS = 3000  # after which a client comes back that has lost its connection,
SOON_MS = 100  # and after an end of ours
POSITIONS_A_SECOND = 25.0  # streams that hear of positions, of all: each word costs time, and nobody counts seconds
POSITION_S = 1.0  # between two words on positions in one stream, at least
RETRY_AFTER_S = 10

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
    (b"x-content-type-options", b"nosniff"),
)
NAMES = {Status.QUEUED: "position", Status.RUNNING: "running", Status.SUCCEEDED: "done"}  # others have failed
LETTERS = {status: status[0] for status in Status} | {Status.EXPIRED: "x"}
UNKNOWN = "u"
STATE = re.compile(r"q\d{0,9}|[rsfcxu]|")


class Streams:
    """The streams of one process. For one event loop.

    Args:
        news: what happens to jobs.
        most: returns how many there may be at a time; one client has a share of those that are free.
        length_s: of a stream, at most.
        clock: seconds, monotonic.
        on_change: is called when a stream has begun or ended.
    """

    def __init__(
        self,
        news: News,
        most: Callable[[], int],
        length_s: float = IN_PROXY_S,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.open: Counter[str] = Counter()  # by client
        self._news = news
        self._most = most
        self._length_s = length_s
        self._clock = clock
        self._on_change = on_change

    async def respond(self, scope: Scope, receive: Receive, send: Send, client: str, root_path: str) -> None:
        """Answers a request for events.

        Args:
            scope: of the request.
            receive: of it.
            send: of it.
            client: whose share of the streams it counts to.
            root_path: of the service, before the paths of its routes.

        Raises:
            BadOption: if the query does not name jobs.
            UnknownJob: if none of them exists.
            TooManyStreams: if there are too many already.
            StoreUnavailable: if the jobs cannot be looked at now.
            ClientGone: if the client has closed the connection.
        """
        ids = asked_ids(scope)
        known = known_states(ids, Headers(scope=scope).get("last-event-id", ""))
        with self._place(client), self._news.watching(filter(JOB_ID.fullmatch, ids)) as watcher:
            await self._news.first_look(watcher)
            if all(watcher.report(each) is None for each in ids):
                raise UnknownJob("There is no job with any of these ids.")
            stream = Stream(watcher, ids, known, root_path)
            if watcher.is_over and not stream.has_news():
                await send({"type": "http.response.start", "status": 204, "headers": []})  # EventSource stays away
                await send({"type": "http.response.body", "body": b""})
                return
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            gone = asyncio.create_task(disconnect(receive))
            gone.add_done_callback(lambda _: watcher.has_news.set())
            try:
                async with asyncio.timeout(2 * self._length_s):
                    await self._tell(stream, watcher, send, gone)
            except TimeoutError:  # it does not read
                raise ClientGone from None
            finally:
                gone.cancel()

    async def _tell(self, stream: "Stream", watcher: Watcher, send: Send, gone: "asyncio.Task[None]") -> None:
        """Sends events until there is nothing more to tell, or it is time to end.

        Raises:
            ClientGone: if the client has closed the connection.
        """
        began = said_at = positions_at = self._clock()
        text = f"retry: {RETRY_MS}\n\n" + stream.news(with_positions=True)
        while not gone.done():
            now = self._clock()
            if not text and now - said_at >= COMMENT_S:
                text = ":\n\n"
            if text:
                said_at = now
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            if watcher.is_over or now - began >= self._length_s:
                break
            pause_s = self._position_s()
            until = min(positions_at + pause_s, said_at + COMMENT_S, began + self._length_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - self._clock())):
                    await watcher.news()
            with_positions = self._clock() - positions_at >= pause_s
            positions_at = self._clock() if with_positions else positions_at
            text = stream.news(with_positions)
        if gone.done():
            raise ClientGone
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % SOON_MS})

    def _position_s(self) -> float:
        return max(POSITION_S, self.open.total() / POSITIONS_A_SECOND)

    @contextmanager
    def _place(self, client: str) -> Iterator[None]:
        if not has_room(self._most(), self.open, client, 1):
            raise TooManyStreams(
                "Too many clients wait for events here; ask for the jobs.", retry_after_s=RETRY_AFTER_S
            )
        self.open[client] += 1
        self._on_change()
        try:
            yield
        finally:
            subtract(self.open, client, 1)
            self._on_change()


class Stream:
    """What one client knows of its jobs, and what is news to it.

    Args:
        watcher: of the jobs.
        ids: of the jobs, in the client's order.
        known: what the client knows of each of them, in their order.
        root_path: of the service.
    """

    def __init__(self, watcher: Watcher, ids: Sequence[str], known: list[str], root_path: str) -> None:
        self._watcher = watcher
        self._ids = ids
        self._prefix = digest(ids)
        self._known = known
        self._root_path = root_path

    def has_news(self) -> bool:
        """Whether there is something that the client does not know."""
        return any(state_of(self._watcher.report(each)) != self._known[at] for at, each in enumerate(self._ids))

    def news(self, with_positions: bool) -> str:
        """Returns the events that the client does not know, and takes note that it does.

        Args:
            with_positions: whether also of jobs that have only moved up.
        """
        events = []
        for at, job_id in enumerate(self._ids):
            report = self._watcher.report(job_id)
            state, known = state_of(report), self._known[at]
            if state == "q":  # its position is not known yet
                continue
            has_moved_only = state[0] == "q" and known[:1] == "q"
            if state != known and (with_positions or not has_moved_only):
                self._known[at] = state
                events.append(self._event(job_id, report))
        return "".join(events)

    def _event(self, job_id: str, report: JobReport | None) -> str:
        name = "failed" if report is None else NAMES.get(report.job.status, "failed")
        return f"id: {self._prefix}:{'.'.join(self._known)}\nevent: {name}\ndata: {self._data(job_id, report)}\n\n"

    def _data(self, job_id: str, report: JobReport | None) -> str:
        if report is None:
            return json.dumps({"id": job_id, "error": UnknownJob("There is no job with this id.").problem()})
        info = job_info(report, self._root_path)
        if report.job.status is Status.EXPIRED:
            error: dict[str, Any] = Gone("This job has expired or was erased.").problem()
            return json.dumps(info.model_dump(mode="json", by_alias=True) | {"error": error})
        return info.model_dump_json(by_alias=True)


class EventResponse(Response):
    """A stream as a response of Starlette's.

    Args:
        streams: of this process.
        client: see `Streams.respond`.
        root_path: see there.
    """

    background = None

    def __init__(self, streams: Streams, client: str, root_path: str) -> None:
        self._streams = streams
        self._client = client
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        with suppress(ClientGone):
            await self._streams.respond(scope, receive, send, self._client, self._root_path)


def asked_ids(scope: Scope) -> list[str]:
    """Returns the ids of the jobs that a query names, each once.

    Raises:
        BadOption: if it names none, too many, or has other options.
    """
    query = QueryParams(scope["query_string"])
    others = {name: query[name] for name in query if name != "id"}
    try:
        asked = JobIds.model_validate({**others, "id": query.getlist("id")})
    except ValidationError as error:
        raise wrong_options(error.errors(), JobIds) from None
    return list(dict.fromkeys(asked.id))


def known_states(ids: Sequence[str], last_event_id: str) -> list[str]:
    """Returns what a client knows of each job by its Last-Event-ID; empty texts if that is of other jobs, or none."""
    prefix, _, text = last_event_id.partition(":")
    states = text.split(".")
    if prefix == digest(ids) and len(states) == len(ids) and all(map(STATE.fullmatch, states)):
        return states
    return [""] * len(ids)


def state_of(report: JobReport | None) -> str:
    """Returns what there is to know of a job: a letter for its status, and its position while it waits."""
    if report is None:
        return UNKNOWN
    letter = LETTERS[report.job.status]
    return f"q{report.outlook.position}" if letter == "q" and report.outlook else letter


def digest(ids: Sequence[str]) -> str:
    """Returns a short digest of the ids of jobs in their order."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=4).hexdigest()


async def disconnect(receive: Receive) -> None:
    """Returns when a client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def is_for_events(scope: Scope) -> bool:
    """Returns whether a request is for a stream of events."""
    return bool(scope["method"] == "GET" and scope["path"].rstrip("/").endswith(EVENTS))


def root_path_of(scope: Scope) -> str:
    """Returns what stands before the paths of the service's routes, by a request for events."""
    path: str = scope["path"].rstrip("/")
    return path.removesuffix(EVENTS)
