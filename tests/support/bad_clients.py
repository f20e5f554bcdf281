"""Clients that mean no good, over plain sockets, and a watch on how the service answers others meanwhile."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

import psutil
import requests


@dataclass
class Outcome:
    """How one connection ended: the first bytes of the answer, and after how many seconds."""

    answer: bytes = b""
    seconds: float = 0.0

    @property
    def status(self) -> int:
        """The status code; 0 if there was no answer."""
        parts = self.answer.split(b" ", 2)
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def request_head(path: str, *headers: str, method: str = "POST") -> bytes:
    """The first line and the headers of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


async def converse(
    address: str, first: bytes, more: Callable[[], AsyncIterator[bytes]], timeout_s: float = 120
) -> Outcome:
    """Sends `first` and then what `more` yields, until the service closes the connection; returns its answer."""
    url = urlsplit(address)
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    outcome = Outcome()

    async def send() -> None:
        try:
            writer.write(first)
            async for data in more():
                writer.write(data)
                await writer.drain()
        except OSError:
            pass

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(timeout_s):
            while data := await reader.read(65536):
                outcome.answer += data
    except (OSError, TimeoutError):
        pass
    finally:
        sending.cancel()
        writer.close()
    outcome.seconds = time.monotonic() - began
    return outcome


async def drip(interval_s: float = 1.0) -> AsyncIterator[bytes]:
    """A byte each second, for ever."""
    while True:
        yield b"x"
        await asyncio.sleep(interval_s)


async def nothing() -> AsyncIterator[bytes]:
    """Nothing more."""
    for data in list[bytes]():
        yield data


def chunked(total: int, size: int = 2**18) -> Callable[[], AsyncIterator[bytes]]:
    """A body of `total` bytes in chunks."""

    async def chunks() -> AsyncIterator[bytes]:
        data = b"%x\r\n%b\r\n" % (size, bytes(size))
        for _ in range(total // size):
            yield data
        yield b"0\r\n\r\n"

    return chunks


@dataclass
class Health:
    """Asks `/livez` ten times a second in a thread, and keeps the longest time to an answer.

    With `process`es given, it also keeps the most memory that they had together.
    """

    address: str
    processes: tuple[psutil.Process, ...] = ()
    worst_s: float = 0.0
    failures: int = 0
    peak_bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Health":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            began = time.monotonic()
            try:
                answered = requests.get(f"{self.address}/livez", timeout=60).status_code == 200
            except requests.RequestException:
                answered = False
            self.failures += not answered
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            self.peak_bytes = max(self.peak_bytes, memory_bytes(*self.processes))


def memory_bytes(*processes: psutil.Process) -> int:
    """Memory that is resident in these processes, in bytes; the object store, which all of them map, counts once."""
    sizes = [process.memory_info() for process in processes]
    return sum(size.rss - size.shared for size in sizes) + max(size.shared for size in sizes)
