"""Takes the bodies of requests in: within bounds of memory and disk, of size and of slowness."""

import asyncio
import io
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from starlette.types import Message, Receive

from serve_app.errors import SlowUpload, TooBusy
from serve_app.queueing.admission import SHARE_OF_FREE
from serve_app.settings import MIB, GuardSettings
from serve_app.web.uploads import too_many_bytes

logger = logging.getLogger(__name__)

MEMORY_BYTES = MIB  # of one body; what is longer goes to a file
PIECE_BYTES = 2 * MIB  # in which a file is handed on


class ClientGone(Exception):
    """The client has closed the connection before its body was complete."""


class Intake:
    """The bodies that one proxy holds, and what they take together. For one event loop.

    Args:
        settings: limits of a body and of all of them.
        retry_after_s: returns the seconds after which a refused client may try again.
    """

    def __init__(self, settings: GuardSettings, retry_after_s: Callable[[], int]) -> None:
        self.settings = settings
        self.uploads: Counter[str] = Counter()  # bodies by client
        self.disk: Counter[str] = Counter()  # bytes in files by client
        self.memory_bytes = 0
        self._retry_after_s = retry_after_s

    @contextmanager
    def place(self, client: str, announced: int) -> "Iterator[Body]":
        """Holds a place for one body; whatever the body takes is given back when the block ends.

        Args:
            client: whose share it counts to.
            announced: the length of the body in bytes, 0 if it is not known.

        Raises:
            TooBusy: if there is none.
        """
        settings = self.settings
        if not has_room(settings.max_uploads, self.uploads, client, 1) or (
            announced > MEMORY_BYTES and not has_room(settings.disk_bytes, self.disk, client, announced)
        ):
            raise self.full()
        body = Body(self, client)
        self.uploads[client] += 1
        try:
            yield body
        finally:
            body.close()
            subtract(self.uploads, client, 1)

    def full(self) -> TooBusy:
        """Returns the refusal of a body for which there is no room."""
        retry_after_s = self._retry_after_s()
        detail = f"Too many uploads are arriving or waiting here; try again in {retry_after_s} s."
        return TooBusy(detail, retry_after_s=retry_after_s)


class Body:
    """A body: its first bytes in memory, and what is longer in an unlinked temporary file.

    Attributes:
        size: bytes that it has.
    """

    def __init__(self, intake: Intake, client: str) -> None:
        self.size = 0
        self._intake = intake
        self._client = client
        self._buffer = io.BytesIO()  # what is not yet, or not any more, in the file
        self._file: IO[bytes] | None = None
        self._on_disk = 0
        self._unread = 0

    async def write(self, data: bytes) -> None:
        """Appends data.

        Raises:
            TooBusy: if there is no room for it on the disk.
        """
        self._buffer.write(data)
        self._intake.memory_bytes += len(data)
        self.size += len(data)
        self._unread += len(data)
        crowded = self._intake.memory_bytes > self._intake.settings.memory_bytes
        if self._buffer.tell() > MEMORY_BYTES or crowded:
            await self._flush()

    async def _flush(self) -> None:
        intake, count = self._intake, self._buffer.tell()
        if not has_room(intake.settings.disk_bytes, intake.disk, self._client, count):
            raise intake.full()
        intake.disk[self._client] += count
        self._on_disk += count
        try:
            # In a thread: a disk that is slow must not hold up everybody's requests.
            await asyncio.to_thread(self._append, self._buffer.getvalue())
        except OSError as error:
            logger.error("an upload cannot be kept in a temporary file: %s", error)
            raise intake.full() from None
        self._drop_buffer()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._intake.settings.spool_dir)  # noqa: SIM115
        self._file.write(data)

    def _drop_buffer(self) -> None:
        self._intake.memory_bytes -= self._buffer.tell()
        self._buffer = io.BytesIO()

    def rewind(self) -> None:
        """Ends writing; reading begins at the first byte."""
        if self._file is not None:
            self._file.seek(0)

    async def read(self) -> bytes:
        """Returns the next bytes, and nothing at the end. What the body takes is given back with its last bytes."""
        data = await asyncio.to_thread(self._file.read, PIECE_BYTES) if self._file is not None else b""
        data = data or self._buffer.getvalue()
        self._unread -= len(data)
        if self.is_read:
            self.close()
        return data

    @property
    def is_read(self) -> bool:
        """Whether all of it has been read."""
        return self._unread == 0

    def close(self) -> None:
        """Gives back what the body takes."""
        self._drop_buffer()
        subtract(self._intake.disk, self._client, self._on_disk)
        self._on_disk = 0
        if self._file is not None:
            self._file.close()
            self._file = None


async def take_in(body: Body, receive: Receive, limit: int) -> None:
    """Reads a body to its end.

    Args:
        body: where it is kept.
        receive: of the request, with nothing read yet.
        limit: bytes, at most.

    Raises:
        TooManyBytes: as soon as more than `limit` has arrived.
        SlowUpload: if it arrives too slowly, or not within `body_timeout_s`.
        TooBusy: if there is no room for it any more.
        ClientGone: if the client has closed the connection.
    """
    pace = Pace(body)
    while True:
        message = await pace.next(receive)
        if message["type"] == "http.disconnect":
            raise ClientGone
        data = message.get("body", b"")
        if body.size + len(data) > limit:
            raise too_many_bytes(limit, body.size + len(data))
        await body.write(data)
        if not message.get("more_body", False):
            body.rewind()
            return


class Pace:
    """Ends a body that arrives too slowly, judged in one window of time after another."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._settings = body._intake.settings
        self._began = time.monotonic()
        self._window_began = self._began
        self._window_size = 0  # of the body, when the window began

    async def next(self, receive: Receive) -> Message:
        """Returns the next message.

        Raises:
            SlowUpload: if the last window, or all of them, brought too little.
        """
        settings = self._settings
        while True:
            self._judge()
            window_end = self._window_began + settings.rate_window_s
            end = min(window_end, self._began + settings.body_timeout_s)
            try:
                async with asyncio.timeout(max(end - time.monotonic(), 0)):
                    return await receive()
            except TimeoutError:
                continue

    def _judge(self) -> None:
        settings, now = self._settings, time.monotonic()
        if now - self._began >= settings.body_timeout_s:
            detail = f"The upload has not arrived within {settings.body_timeout_s:g} seconds; send it smaller."
            raise SlowUpload(detail, settings.body_timeout_s, round(now - self._began, 1), "seconds")
        if now - self._window_began < settings.rate_window_s:
            return
        rate = (self._body.size - self._window_size) / (now - self._window_began)
        if rate < settings.min_bytes_per_s:
            raise SlowUpload(
                f"The upload brought {rate:.0f} bytes a second during the last {settings.rate_window_s:g} seconds; at "
                f"least {settings.min_bytes_per_s:g} are needed here. Send it over a better connection, or smaller.",
                settings.min_bytes_per_s,
                round(rate),
                "bytes per second",
            )
        self._window_began, self._window_size = now, self._body.size


def has_room(limit: int, held: "Counter[str]", client: str, count: int) -> bool:
    """Returns whether a client may hold `count` more: within the limit of all, and within its share of what is free."""
    free = limit - held.total() - count
    return free >= 0 and (not held[client] or held[client] + count <= SHARE_OF_FREE * free)


def subtract(held: "Counter[str]", client: str, count: int) -> None:
    """Takes from what a client holds, and forgets a client that holds nothing."""
    held[client] -= count
    if not held[client]:
        del held[client]
