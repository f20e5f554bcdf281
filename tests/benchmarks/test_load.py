"""The load generator: what it sends when, and how it sums up the responses. Figures are never asserted here."""

import argparse
import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from benchmarks.load import (
    Clock,
    RequestResult,
    arrival_times,
    closed_loop,
    loopback_url,
    open_loop,
    run_load,
    summary,
)

PHOTOS = [bytes([number]) for number in range(20)]


class Server:
    """Answers after a moment, and notes which client sent which photograph; the first `refusals` responses are 429."""

    def __init__(self, clock: Clock, latency_s: float = 0.01, refusals: int = 0, retry_after_s: float = 0.0) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.refusals = refusals
        self.retry_after_s = retry_after_s
        self.sent: list[tuple[int, bytes]] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def send(self, client: int, photo: bytes, due_s: float) -> RequestResult:
        self.sent.append((client, photo))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.latency_s)
        self.in_flight -= 1
        is_refused = len(self.sent) <= self.refusals
        status, retry_after_s = (429, self.retry_after_s) if is_refused else (200, 0.0)
        return RequestResult(due_s, self.clock.now() - due_s, status, retry_after_s=retry_after_s)


def test_closed_loop_has_as_many_requests_in_flight_as_there_are_clients() -> None:
    server = Server(clock := Clock())
    results = asyncio.run(closed_loop(server.send, clock, PHOTOS, clients=3, seconds=60))
    assert server.most_in_flight == 3
    assert [photo for _, photo in server.sent] == PHOTOS
    assert len(results) == len(PHOTOS)


def test_closed_loop_begins_nothing_after_its_time() -> None:
    server = Server(clock := Clock(), latency_s=0.05)
    results = asyncio.run(closed_loop(server.send, clock, PHOTOS, clients=2, seconds=0.12))
    assert 2 <= len(results) < len(PHOTOS)
    assert max(result.started_s for result in results) < 0.12


def test_refused_client_waits_as_long_as_it_was_told_and_sends_the_same_photograph() -> None:
    server = Server(clock := Clock(), latency_s=0, refusals=1, retry_after_s=0.1)
    results = asyncio.run(closed_loop(server.send, clock, PHOTOS[:2], clients=1, seconds=60))
    assert [result.status for result in results] == [429, 200, 200]
    assert [photo for _, photo in server.sent] == [PHOTOS[0], PHOTOS[0], PHOTOS[1]]
    assert results[1].started_s >= results[0].ended_s + 0.1


def test_open_loop_sends_by_the_clock_whatever_has_been_answered() -> None:
    server = Server(clock := Clock(), latency_s=0.1)
    arrivals = [0.0, 0.01, 0.02, 0.03]
    results = asyncio.run(open_loop(server.send, clock, PHOTOS[:4], arrivals))
    assert server.most_in_flight == 4
    assert [result.started_s for result in results] == arrivals
    assert [client for client, _ in server.sent] == [0, 1, 2, 3]


def test_latency_counts_from_when_the_request_was_due() -> None:
    clock = Clock()

    async def late() -> list[RequestResult]:
        while clock.now() < 0.05:
            await asyncio.sleep(0.01)
        return await open_loop(Server(clock, latency_s=0).send, clock, PHOTOS[:1], [0.0])

    (result,) = asyncio.run(late())
    assert result.latency_s >= 0.05


@pytest.mark.parametrize("kind", ["fixed", "poisson"])
def test_arrivals_end_in_time_and_in_number(kind: str) -> None:
    times = arrival_times(50, 40, kind)
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] < 40
    assert len(times) == pytest.approx(2000, rel=0.1)
    assert len(arrival_times(50, 40, kind, limit=7)) == 7


def test_poisson_arrivals_repeat_by_seed_and_fixed_ones_are_even() -> None:
    assert arrival_times(4, 1, "fixed") == pytest.approx([0, 0.25, 0.5, 0.75])
    assert arrival_times(4, 9, "poisson", seed=1) == arrival_times(4, 9, "poisson", seed=1)
    assert arrival_times(4, 9, "poisson", seed=1) != arrival_times(4, 9, "poisson", seed=2)


def test_summary_keeps_painted_refused_and_failed_apart() -> None:
    results = [
        RequestResult(1.0, 2.0, 200, timings_ms={"paint": 10.0}),
        RequestResult(1.5, 3.5, 200, timings_ms={"paint": 30.0}),
        RequestResult(2.0, 0.1, 429),
        RequestResult(2.0, 9.0, 503),
        RequestResult(2.0, 1.0, 0),
    ]
    figures = summary(results, cpu_s=0.5)
    assert figures["throughput"] == 2 / 4  # from the first request to the last painting
    assert figures["seconds"] == 10
    assert (figures["p50_s"], figures["p99_s"]) == (2.0, 3.5)
    assert (figures["refusal_p50_s"], figures["refusal_p99_s"]) == (0.1, 0.1)
    assert figures["statuses"] == {0: 1, 200: 2, 429: 1, 503: 1}
    assert (figures["faults"], figures["unanswered"]) == (1, 1)
    assert figures["steps_ms"] == {"paint": 20.0}


def test_summary_of_nothing_painted_has_no_latencies() -> None:
    figures = summary([RequestResult(0.0, 0.1, 429)], cpu_s=0.0)
    assert figures["throughput"] == 0
    assert figures["p99_s"] is None


@pytest.mark.parametrize(
    "url", ["http://example.com/", "http://10.0.0.1:80/", "http://127.0.0.1.example.com/", "file:"]
)
def test_loads_go_to_this_machine_only(url: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="this machine only"):
        loopback_url(url)
    assert loopback_url("http://127.0.0.1:8000/v1/stylize") == "http://127.0.0.1:8000/v1/stylize"


class Handler(BaseHTTPRequestHandler):
    """Every third photograph is refused."""

    bodies: ClassVar[list[bytes]] = []
    peers: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.peers.add(self.client_address[0])
        self.send_response(429 if len(self.bodies) % 3 == 0 else 200)
        self.send_header("Server-Timing", "decode;dur=1.5, paint;dur=20.0")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"done")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/stylize"
        server.shutdown()


def test_load_of_its_own_process_sends_different_photographs_from_several_addresses(server_url: str) -> None:
    result = run_load(server_url, side=32, seconds=5, count=9, rate=100, arrivals="fixed", addresses=2)
    assert result["statuses"] == {"200": 6, "429": 3}
    assert len(set(Handler.bodies)) == len(Handler.bodies) == 9
    assert all(body.startswith(b"\xff\xd8\xff") for body in Handler.bodies)
    assert Handler.peers == {"127.0.0.2", "127.0.0.3"}
    assert result["steps_ms"] == {"decode": 1.5, "paint": 20.0}
    assert result["cpu_s"] > 0
    assert Counter(status for _, _, status, _ in result["requests"]) == {200: 6, 429: 3}
    assert {size for _, _, _, size in result["requests"]} == {4}
