"""An HTTP load generator for services on this machine, in a process of its own so that its CPU is counted apart.

    cd scripts
    ../.venv/bin/python -m benchmarks.load http://127.0.0.1:8000/v1/stylize --side 512 --clients 4
    ../.venv/bin/python -m benchmarks.load http://127.0.0.1:8000/v1/stylize --side 512 --rate 2 --arrivals poisson

Closed loop: each client sends its next photograph when the last one has been answered; after a 429 it waits as long
as `Retry-After` says. Open loop: requests are sent by the clock, whether or not earlier ones have been answered. They
come from several loopback addresses, which a service may count as different clients. All photographs differ, and are
made before the clock starts. Prints one line of JSON: the summary, and each request.
"""

import argparse
import asyncio
import dataclasses
import ipaddress
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from benchmarks.photographs import photograph, random_sizes
from benchmarks.processes import run_module
from benchmarks.reporting import percentile

TIMEOUT_S = 300.0
MAX_REQUESTS = 20_000
FIRST_ADDRESS = ipaddress.IPv4Address("127.0.0.2")
TIMING = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True)
class RequestResult:
    """One request and its response.

    Attributes:
        started_s: since the load began. In the open loop, when the request was due: a late generator must not flatter
            the service.
        latency_s: until the whole response had been read.
        status: of HTTP; 0 if there was no response.
        size_bytes: of the response's body.
        timings_ms: from `Server-Timing`.
    """

    started_s: float
    latency_s: float
    status: int
    size_bytes: int = 0
    retry_after_s: float = 0.0
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def ended_s(self) -> float:
        """When the whole response had been read, since the load began."""
        return self.started_s + self.latency_s


# Sends one request: the client's number, the photograph, when it was due.
Send = Callable[[int, bytes, float], Coroutine[Any, Any, RequestResult]]


class Clock:
    """Seconds since the load began."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def now(self) -> float:
        """Returns the seconds."""
        return time.perf_counter() - self._began


async def closed_loop(
    send: Send, clock: Clock, photos: Iterable[bytes], clients: int, seconds: float
) -> list[RequestResult]:
    """Sends photographs from so many clients at once; each waits for the response before it sends the next.

    No request begins after `seconds`.
    """
    results: list[RequestResult] = []
    waiting = iter(photos)

    async def client(number: int) -> None:
        for photo in waiting:
            status = 429
            while status == 429:
                if clock.now() >= seconds:
                    return
                result = await send(number, photo, clock.now())
                results.append(result)
                status = result.status
                if status == 429:
                    await asyncio.sleep(min(result.retry_after_s, max(seconds - clock.now(), 0)))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return results


async def open_loop(
    send: Send, clock: Clock, photos: Sequence[bytes], arrivals: Sequence[float]
) -> list[RequestResult]:
    """Sends a photograph at each of `arrivals`, in seconds; then waits for the responses."""
    tasks: list[asyncio.Task[RequestResult]] = []
    for number, (photo, due_s) in enumerate(zip(photos, arrivals, strict=True)):
        await asyncio.sleep(max(due_s - clock.now(), 0))
        tasks.append(asyncio.create_task(send(number, photo, due_s)))
    return list(await asyncio.gather(*tasks))


def arrival_times(rate: float, seconds: float, kind: str, limit: int = MAX_REQUESTS, seed: int = 0) -> list[float]:
    """Returns the seconds at which requests are due, the first at 0.

    Args:
        rate: arrivals a second.
        seconds: all are due earlier.
        kind: `fixed` intervals, or those of a `poisson` process.
        limit: arrivals at most.
        seed: of the poisson process.
    """
    count = min(limit, math.ceil(2 * rate * seconds) + 100)
    gaps = np.full(count, 1 / rate)
    if kind == "poisson":
        gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    times = np.cumsum(gaps) - gaps[0]
    return [float(due_s) for due_s in times if due_s < seconds]


def summary(results: Sequence[RequestResult], cpu_s: float) -> dict[str, Any]:
    """Returns latencies in seconds, and counts; None where there was nothing to measure.

    Throughput counts from the first request to the last painting. A server that is kept busy has worked all that time,
    so the figure does not depend on where in an image, or in a batch, the load ended.
    """
    painted = [result for result in results if result.status == 200]
    refusals = [result.latency_s for result in results if result.status == 429]
    began_s = min(result.started_s for result in results)
    busy_s = max((result.ended_s for result in painted), default=math.inf) - began_s
    steps = {step: None for result in painted for step in result.timings_ms}
    return {
        "sent": len(results),
        "seconds": max(result.ended_s for result in results) - began_s,
        "throughput": len(painted) / busy_s,
        **latencies("", [result.latency_s for result in painted], [50, 95, 99]),
        **latencies("refusal_", refusals, [50, 99]),
        "statuses": dict(sorted(Counter(result.status for result in results).items())),
        "faults": sum(result.status >= 500 for result in results),
        "unanswered": sum(result.status == 0 for result in results),
        "steps_ms": {step: median(result.timings_ms.get(step, 0.0) for result in painted) for step in steps},
        "cpu_s": cpu_s,
    }


def latencies(prefix: str, values: Sequence[float], percents: Sequence[int]) -> dict[str, float | None]:
    """Returns percentiles by name; None of no values."""
    return {f"{prefix}p{percent}_s": percentile(values, percent) if values else None for percent in percents}


def sender(sessions: Sequence[aiohttp.ClientSession], url: str, clock: Clock) -> Send:
    """Returns a function that posts a photograph, from one of the sessions in turn."""

    async def send(client: int, photo: bytes, due_s: float) -> RequestResult:
        try:
            async with sessions[client % len(sessions)].post(url, data=photo) as response:
                size = len(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return RequestResult(due_s, clock.now() - due_s, 0)
        timings = {step: float(ms) for step, ms in TIMING.findall(response.headers.get("Server-Timing", ""))}
        retry_after_s = float(response.headers.get("Retry-After", 0))
        return RequestResult(due_s, clock.now() - due_s, response.status, size, retry_after_s, timings)

    return send


def open_session(address: str, timeout_s: float) -> aiohttp.ClientSession:
    """Returns a session that sends curl's headers from a loopback address, each request on a connection of its own."""
    return aiohttp.ClientSession(
        # A client that takes gzip makes some servers compress JPEGs.
        headers={"Content-Type": "image/jpeg", "Accept": "*/*", "Accept-Encoding": "identity"},
        connector=aiohttp.TCPConnector(limit=0, force_close=True, local_addr=(address, 0)),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )


async def send_all(options: argparse.Namespace) -> tuple[list[RequestResult], float]:
    """Sends a load as the command line says; returns the results, and the CPU-seconds that sending took."""
    arrivals: list[float] = []
    if options.rate:
        arrivals = arrival_times(options.rate, options.seconds, options.arrivals, options.count, options.seed)
    count = len(arrivals) or options.count
    sizes = random_sizes(options.side, options.spread, count, options.seed)
    photos = [photograph(options.seed + number, size, "JPEG") for number, size in enumerate(sizes)]
    addresses = [str(FIRST_ADDRESS + number) for number in range(options.addresses)]
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(open_session(each, options.timeout)) for each in addresses]
        clock, cpu_s = Clock(), time.process_time()
        send = sender(sessions, options.url, clock)
        if options.rate:
            results = await open_loop(send, clock, photos, arrivals)
        else:
            results = await closed_loop(send, clock, photos, options.clients, options.seconds)
        return results, time.process_time() - cpu_s


def loopback_url(text: str) -> str:
    """Returns the URL.

    Raises:
        ArgumentTypeError: if it names another machine.
    """
    try:
        is_loopback = ipaddress.IPv4Address(urlsplit(text).hostname or "").is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise argparse.ArgumentTypeError(f"{text!r} is not on 127.0.0.1: loads go to this machine only")
    return text


def run_load(url: str, side: int, seconds: float, count: int, **options: Any) -> dict[str, Any]:
    """Sends a load from a fresh process.

    Args:
        url: where photographs are posted.
        side: pixels of the photographs.
        seconds: after which nothing more is sent.
        count: photographs at most.
        options: `clients`, or `rate` and `arrivals`; `spread`, `addresses`, `timeout`, `seed`.

    Returns:
        The `summary`, and under `requests` start, latency, status and bytes of each request.
    """
    arguments = {"side": side, "seconds": seconds, "count": count} | options
    return run_module("benchmarks.load", url, *(part for name in arguments for part in (f"--{name}", arguments[name])))


def positive(text: str) -> float:
    """Returns a number of the command line.

    Raises:
        ArgumentTypeError: if it is not above 0, or is infinite.
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main() -> None:
    """Sends the load that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", type=loopback_url)
    parser.add_argument("--side", type=int, default=512, help="pixels of the square photographs")
    parser.add_argument("--spread", type=float, default=0.0, help="of their sides: 0.2 is up to 20 %% more or less")
    parser.add_argument("--clients", type=int, default=4, help="of the closed loop")
    parser.add_argument("--rate", type=positive, help="open loop: arrivals a second")
    parser.add_argument("--arrivals", choices=["fixed", "poisson"], default="poisson")
    parser.add_argument("--seconds", type=positive, default=20.0, help="after which nothing more is sent")
    parser.add_argument("--count", type=int, default=200, help=f"photographs at most, up to {MAX_REQUESTS}")
    parser.add_argument("--addresses", type=int, default=8, help="to send from in turn, 127.0.0.2 and on")
    parser.add_argument("--timeout", type=positive, default=TIMEOUT_S, help="seconds for one response")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not 0 <= options.spread <= 0.9:
        parser.error("--spread from 0 to 0.9")
    if not (0 < options.count <= MAX_REQUESTS and options.clients > 0 and 0 < options.addresses <= 200):
        parser.error(f"--clients from 1, --addresses from 1 to 200, --count from 1 to {MAX_REQUESTS}")
    results, cpu_s = asyncio.run(send_all(options))
    print(json.dumps(summary(results, cpu_s) | {"requests": [dataclasses.astuple(result)[:4] for result in results]}))


if __name__ == "__main__":
    main()
