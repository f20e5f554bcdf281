"""HTTP load on a service of this machine, from a process of its own, so that its CPU is told apart.

    cd scripts
    ../.venv/bin/python -m benchmarks.load http://127.0.0.1:8000/v1/stylize --side 512 --clients 4
    ../.venv/bin/python -m benchmarks.load http://127.0.0.1:8000/v1/stylize --side 512 --rate 2 --arrivals poisson

Closed loop: each client sends its next photograph when the last one has been answered, and after a 429 waits as long
as `Retry-After` says. Open loop: requests arrive by the clock, whatever has become of those before. They come from
several loopback addresses, which a service may take for as many people. Photographs differ from each other and are
made before the clock starts. Prints one line of JSON: the summary, and each request.
"""

import argparse
import asyncio
import dataclasses
import ipaddress
import json
import math
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from benchmarks import child_environment
from benchmarks.soak import photograph

TIMEOUT_S = 300.0
MOST_REQUESTS = 20_000
FIRST_ADDRESS = ipaddress.IPv4Address("127.0.0.2")
TIMING = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True)
class Answer:
    """One request and what came of it.

    Attributes:
        started_s: since the load began. In the open loop, when it was due: a generator that is late must not flatter
            the service.
        latency_s: until the whole answer had been read.
        status: of HTTP; 0 if there was no answer.
        size_bytes: of the answer's body.
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
        return self.started_s + self.latency_s


Send = Callable[[int, bytes, float], Awaitable[Answer]]  # who sends, the photograph, when it was due


class Clock:
    """Seconds since the load began."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began


async def closed_loop(send: Send, clock: Clock, photos: Iterable[bytes], clients: int, seconds: float) -> list[Answer]:
    """Begins no request after `seconds`, or when every photograph has been answered."""
    answers: list[Answer] = []
    waiting = iter(photos)

    async def client(number: int) -> None:
        for photo in waiting:
            status = 429
            while status == 429:
                if clock.now() >= seconds:
                    return
                answer = await send(number, photo, clock.now())
                answers.append(answer)
                status = answer.status
                if status == 429:
                    await asyncio.sleep(min(answer.retry_after_s, max(seconds - clock.now(), 0)))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return answers


async def open_loop(send: Send, clock: Clock, photos: Sequence[bytes], arrivals: Sequence[float]) -> list[Answer]:
    """One request at each of `arrivals`, in seconds; then waits for the answers."""
    tasks = []
    for number, (photo, due_s) in enumerate(zip(photos, arrivals, strict=True)):
        await asyncio.sleep(max(due_s - clock.now(), 0))
        tasks.append(asyncio.create_task(send(number, photo, due_s)))
    return list(await asyncio.gather(*tasks))


def arrival_times(rate: float, seconds: float, kind: str, most: int = MOST_REQUESTS, seed: int = 0) -> list[float]:
    """Seconds at which requests are due, the first at 0.

    Args:
        rate: arrivals a second.
        seconds: none is due later.
        kind: `fixed` intervals, or those of a `poisson` process.
        most: arrivals.
    """
    count = min(most, math.ceil(2 * rate * seconds) + 100)
    gaps = np.full(count, 1 / rate)
    if kind == "poisson":
        gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    times = np.cumsum(gaps) - gaps[0]
    return [float(due_s) for due_s in times if due_s < seconds]


def summary(answers: Sequence[Answer], cpu_s: float) -> dict[str, Any]:
    """Seconds, and counts; None where there was nothing to measure.

    Throughput counts from the first request to the last painting. A server that is kept busy has worked all that time,
    so the figure does not depend on where in a picture, or in a batch, the load ended.
    """
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer.latency_s for answer in answers if answer.status == 429]
    latencies = [answer.latency_s for answer in accepted]
    began_s = min(answer.started_s for answer in answers)
    busy_s = max((answer.ended_s for answer in accepted), default=math.inf) - began_s
    steps = {step: None for answer in accepted for step in answer.timings_ms}
    return {
        "sent": len(answers),
        "seconds": max(answer.ended_s for answer in answers) - began_s,
        "throughput": len(accepted) / busy_s,
        "p50_s": percentile(latencies, 50),
        "p95_s": percentile(latencies, 95),
        "p99_s": percentile(latencies, 99),
        "refusal_p50_s": percentile(refused, 50),
        "refusal_p99_s": percentile(refused, 99),
        "statuses": dict(sorted(Counter(answer.status for answer in answers).items())),
        "faults": sum(answer.status >= 500 for answer in answers),
        "unanswered": sum(answer.status == 0 for answer in answers),
        "steps_ms": {step: median(answer.timings_ms.get(step, 0.0) for answer in accepted) for step in steps},
        "cpu_s": cpu_s,
    }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """A value that was measured, by the nearest rank; None of no values."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if values else None


def sender(sessions: Sequence[aiohttp.ClientSession], url: str, clock: Clock) -> Send:
    async def send(who: int, photo: bytes, due_s: float) -> Answer:
        try:
            async with sessions[who % len(sessions)].post(url, data=photo) as response:
                size = len(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Answer(due_s, clock.now() - due_s, 0)
        timings = {step: float(ms) for step, ms in TIMING.findall(response.headers.get("Server-Timing", ""))}
        retry_after_s = float(response.headers.get("Retry-After", 0))
        return Answer(due_s, clock.now() - due_s, response.status, size, retry_after_s, timings)

    return send


def open_session(address: str, timeout_s: float) -> aiohttp.ClientSession:
    """Sends what curl sends, from a loopback address, each request on a connection of its own."""
    return aiohttp.ClientSession(
        # A client that takes gzip makes some servers compress JPEGs.
        headers={"Content-Type": "image/jpeg", "Accept": "*/*", "Accept-Encoding": "identity"},
        connector=aiohttp.TCPConnector(limit=0, force_close=True, local_addr=(address, 0)),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )


def shapes(side: int, spread: float, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Heights and widths, each evenly drawn from `side` * (1 - spread) to `side` * (1 + spread)."""
    drawn = np.random.default_rng(seed).uniform(1 - spread, 1 + spread, (count, 2))
    return [(round(side * height), round(side * width)) for height, width in drawn]


async def send_all(options: argparse.Namespace) -> tuple[list[Answer], float]:
    """The answers, and the CPU seconds that sending took."""
    arrivals = []
    if options.rate:
        arrivals = arrival_times(options.rate, options.seconds, options.arrivals, options.count, options.seed)
    count = len(arrivals) or options.count
    sizes = shapes(options.side, options.spread, count, options.seed)
    photos = [photograph(options.seed + number, *size, "JPEG") for number, size in enumerate(sizes)]
    addresses = [str(FIRST_ADDRESS + number) for number in range(options.addresses)]
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(open_session(each, options.timeout)) for each in addresses]
        clock, cpu_s = Clock(), time.process_time()
        send = sender(sessions, options.url, clock)
        if options.rate:
            answers = await open_loop(send, clock, photos, arrivals)
        else:
            answers = await closed_loop(send, clock, photos, options.clients, options.seconds)
        return answers, time.process_time() - cpu_s


def loopback_url(text: str) -> str:
    """
    Raises:
        ArgumentTypeError: if it names another machine.
    """
    try:
        here = ipaddress.IPv4Address(urlsplit(text).hostname or "").is_loopback
    except ValueError:
        here = False
    if not here:
        raise argparse.ArgumentTypeError(f"{text!r} is not on 127.0.0.1: loads go to this machine only")
    return text


def run_load(url: str, side: int, seconds: float, count: int, **options: Any) -> dict[str, Any]:
    """Sends a load from a fresh process.

    Args:
        options: `clients`, or `rate` and `arrivals`; `spread`, `addresses`, `timeout`, `seed`.

    Returns:
        What `summary` says, and under `answers` each request.
    """
    command = [sys.executable, "-m", "benchmarks.load", url, "--side", str(side), "--seconds", str(seconds)]
    command += ["--count", str(count)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment())
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", type=loopback_url)
    parser.add_argument("--side", type=int, default=512, help="pixels of the square photographs")
    parser.add_argument("--spread", type=float, default=0.0, help="of their sides: 0.2 is 20 %% about it")
    parser.add_argument("--clients", type=int, default=4, help="of the closed loop")
    parser.add_argument("--rate", type=positive, help="open loop: arrivals a second")
    parser.add_argument("--arrivals", choices=["fixed", "poisson"], default="poisson")
    parser.add_argument("--seconds", type=positive, default=20.0, help="after which nothing more is sent")
    parser.add_argument("--count", type=int, default=200, help=f"photographs at most, up to {MOST_REQUESTS}")
    parser.add_argument("--addresses", type=int, default=8, help="that requests come from in turn, 127.0.0.2 and on")
    parser.add_argument("--timeout", type=positive, default=TIMEOUT_S, help="seconds for one answer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not 0 <= options.spread <= 0.9:
        parser.error("--spread from 0 to 0.9")
    if not (0 < options.count <= MOST_REQUESTS and options.clients > 0 and 0 < options.addresses <= 200):
        parser.error(f"--clients from 1, --addresses from 1 to 200, --count from 1 to {MOST_REQUESTS}")
    answers, cpu_s = asyncio.run(send_all(options))
    print(json.dumps(summary(answers, cpu_s) | {"answers": [dataclasses.astuple(answer)[:4] for answer in answers]}))


if __name__ == "__main__":
    main()
