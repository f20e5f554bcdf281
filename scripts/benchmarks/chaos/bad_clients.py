"""Clients that mean no good, over plain sockets; the tests use them too."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit


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
    """Returns the first line and the headers of a request."""
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
    """Yields a byte each second, for ever."""
    while True:
        yield b"x"
        await asyncio.sleep(interval_s)


async def nothing() -> AsyncIterator[bytes]:
    """Yields nothing."""
    for data in list[bytes]():
        yield data


def chunked(total: int, size: int = 2**18) -> Callable[[], AsyncIterator[bytes]]:
    """Returns a body of `total` bytes in chunks, for `converse`."""

    async def chunks() -> AsyncIterator[bytes]:
        data = b"%x\r\n%b\r\n" % (size, bytes(size))
        for _ in range(total // size):
            yield data
        yield b"0\r\n\r\n"

    return chunks
