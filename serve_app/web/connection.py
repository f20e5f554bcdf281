"""The connection of a client as Serve's HTTP proxy reads it: headers are bounded in size and in time."""

import asyncio
import json
import uuid
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from serve_app.errors import BadHeader, HeadersTooLarge, RequestError, SlowUpload

MAX_HEADER_BYTES = 64 * 1024
DISCARD_BYTES = 256 * 1024  # read after a refusal, so that a client that has sent a little too much can read it
DISCARD_S = 1.0
UNSENT_S = 60.0  # for a client to read the rest of its answer, after its connection has been closed
PROBLEM_TYPE = "application/problem+json"


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol over h11, which refuses headers that are too large, too slow or malformed.

    uvicorn's default, httptools, collects headers without any limit. uvicorn constructs protocols by itself, so a
    subclass sets `header_timeout_s`.
    """

    header_timeout_s: ClassVar[float] = 15.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
        self._header_timer: asyncio.TimerHandle | None = None
        self._left_to_discard: int | None = None  # None: no refusal has been sent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time in which the headers of the first request must arrive."""
        super().connection_made(transport)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._unwatch_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what has arrived."""
        if self._left_to_discard is not None:
            self._left_to_discard -= len(data)
            if self._left_to_discard < 0:
                self.transport.abort()
            return
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        """Goes on to a next request, which may have begun to arrive."""
        super().on_response_complete()
        self._watch_headers()

    def _watch_headers(self) -> None:
        """Runs the timer while headers are awaited: of the first request at once, of others from their first byte."""
        awaited = self.conn.their_state is h11.IDLE and (self.cycle is None or bool(self.conn.trailing_data[0]))
        if not awaited:
            self._unwatch_headers()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self._headers_are_late)

    def _unwatch_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:  # nothing was asked, so there is nothing to answer
            self.transport.close()
            return
        detail = f"The headers of the request have not arrived within {self.header_timeout_s:g} seconds."
        self._refuse(SlowUpload(detail, self.header_timeout_s, None, "seconds"))

    def send_400_response(self, msg: str) -> None:
        """Refuses what h11 cannot parse."""
        if len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES:
            self._refuse(headers_too_large(len(self.conn.trailing_data[0])))
        else:
            self._refuse(
                BadHeader("The request is not valid HTTP/1.1: its first line, a header or a chunk is malformed.")
            )

    def _refuse(self, refusal: RequestError) -> None:
        body = json.dumps(refusal.problem()).encode()
        headers = [
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", str(uuid.uuid4()).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=refusal.status, headers=headers, reason=STATUS_PHRASES[refusal.status])
        try:
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:  # in the middle of an answer, which cannot be taken back
            self.transport.abort()
            return
        self._unwatch_headers()
        self._left_to_discard = DISCARD_BYTES
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # To close with unread data resets the connection, and the client might lose the answer.
        self.loop.call_later(DISCARD_S, self.transport.close)

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection that is idle, or whose client does not read its answer."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(UNSENT_S, self.transport.abort)

    def _should_upgrade(self) -> bool:
        """Returns that no request is: a WebSocket's handshake is then an ordinary request, as RFC 9110 allows."""
        return False


def headers_too_large(actual: int) -> HeadersTooLarge:
    """Returns the refusal of headers of at least `actual` bytes."""
    detail = f"The headers of the request have {actual} bytes or more; at most {MAX_HEADER_BYTES} are taken here."
    return HeadersTooLarge(detail, MAX_HEADER_BYTES, actual, "bytes")
