"""The load generator: what it sends when, and what it makes of the answers. Figures are never asserted here."""

import argparse
import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from benchmarks.load import (
    Answer,
    Clock,
    arrival_times,
    closed_loop,
    loopback_url,
    open_loop,
    percentile,
    run_load,
    shapes,
    summary,
)
from benchmarks.service import targets

PHOTOS = [bytes([number]) for number in range(20)]


class Server:
    """Answers after a moment, and notes who sent which photograph; the first `refusals` answers are 429."""

    def __init__(self, clock: Clock, latency_s: float = 0.01, refusals: int = 0, retry_after_s: float = 0.0) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.refusals = refusals
        self.retry_after_s = retry_after_s
        self.sent: list[tuple[int, bytes]] = []
        self.inside = 0
        self.most_inside = 0

    async def send(self, who: int, photo: bytes, due_s: float) -> Answer:
        self.sent.append((who, photo))
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await asyncio.sleep(self.latency_s)
        self.inside -= 1
        is_refused = len(self.sent) <= self.refusals
        status, retry_after_s = (429, self.retry_after_s) if is_refused else (200, 0.0)
        return Answer(due_s, self.clock.now() - due_s, status, retry_after_s=retry_after_s)


def test_closed_loop_keeps_as_many_under_way_as_there_are_clients() -> None:
    server = Server(clock := Clock())
    answers = asyncio.run(closed_loop(server.send, clock, PHOTOS, clients=3, seconds=60))
    assert server.most_inside == 3
    assert [photo for _, photo in server.sent] == PHOTOS
    assert len(answers) == len(PHOTOS)


def test_closed_loop_begins_nothing_after_its_time() -> None:
    server = Server(clock := Clock(), latency_s=0.05)
    answers = asyncio.run(closed_loop(server.send, clock, PHOTOS, clients=2, seconds=0.12))
    assert 2 <= len(answers) < len(PHOTOS)
    assert max(answer.started_s for answer in answers) < 0.12


def test_refused_client_waits_as_long_as_it_was_told_and_sends_the_same_photograph() -> None:
    server = Server(clock := Clock(), latency_s=0, refusals=1, retry_after_s=0.1)
    answers = asyncio.run(closed_loop(server.send, clock, PHOTOS[:2], clients=1, seconds=60))
    assert [answer.status for answer in answers] == [429, 200, 200]
    assert [photo for _, photo in server.sent] == [PHOTOS[0], PHOTOS[0], PHOTOS[1]]
    assert answers[1].started_s >= answers[0].ended_s + 0.1


def test_open_loop_sends_by_the_clock_whatever_has_been_answered() -> None:
    server = Server(clock := Clock(), latency_s=0.1)
    arrivals = [0.0, 0.01, 0.02, 0.03]
    answers = asyncio.run(open_loop(server.send, clock, PHOTOS[:4], arrivals))
    assert server.most_inside == 4
    assert [answer.started_s for answer in answers] == arrivals
    assert [who for who, _ in server.sent] == [0, 1, 2, 3]


def test_latency_counts_from_when_the_request_was_due() -> None:
    clock = Clock()

    async def late() -> list[Answer]:
        while clock.now() < 0.05:
            await asyncio.sleep(0.01)
        return await open_loop(Server(clock, latency_s=0).send, clock, PHOTOS[:1], [0.0])

    (answer,) = asyncio.run(late())
    assert answer.latency_s >= 0.05


@pytest.mark.parametrize("kind", ["fixed", "poisson"])
def test_arrivals_end_in_time_and_in_number(kind: str) -> None:
    times = arrival_times(50, 40, kind)
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] < 40
    assert len(times) == pytest.approx(2000, rel=0.1)
    assert len(arrival_times(50, 40, kind, most=7)) == 7


def test_poisson_arrivals_repeat_by_seed_and_fixed_ones_are_even() -> None:
    assert arrival_times(4, 1, "fixed") == pytest.approx([0, 0.25, 0.5, 0.75])
    assert arrival_times(4, 9, "poisson", seed=1) == arrival_times(4, 9, "poisson", seed=1)
    assert arrival_times(4, 9, "poisson", seed=1) != arrival_times(4, 9, "poisson", seed=2)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([3.0], 99) == 3
    assert percentile([], 50) is None


def test_summary_keeps_painted_refused_and_failed_apart() -> None:
    answers = [
        Answer(1.0, 2.0, 200, timings_ms={"paint": 10.0}),
        Answer(1.5, 3.5, 200, timings_ms={"paint": 30.0}),
        Answer(2.0, 0.1, 429),
        Answer(2.0, 9.0, 503),
        Answer(2.0, 1.0, 0),
    ]
    figures = summary(answers, cpu_s=0.5)
    assert figures["throughput"] == 2 / 4  # from the first request to the last painting
    assert figures["seconds"] == 10
    assert (figures["p50_s"], figures["p99_s"]) == (2.0, 3.5)
    assert (figures["refusal_p50_s"], figures["refusal_p99_s"]) == (0.1, 0.1)
    assert figures["statuses"] == {0: 1, 200: 2, 429: 1, 503: 1}
    assert (figures["faults"], figures["unanswered"]) == (1, 1)
    assert figures["steps_ms"] == {"paint": 20.0}


def test_summary_of_nothing_painted_has_no_latencies() -> None:
    figures = summary([Answer(0.0, 0.1, 429)], cpu_s=0.0)
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
    assert Counter(status for _, _, status, _ in result["answers"]) == {200: 6, 429: 3}
    assert {size for _, _, _, size in result["answers"]} == {4}


def test_targets_compare_with_the_bare_loop_and_with_rivals() -> None:
    quiet = {"side": 512, "p99_s": 1.0, "refusal_p99_s": None, "faults": 0, "unanswered": 0}
    ours = quiet | {"server": "Ray Serve, ours"}
    theirs = quiet | {"server": "LitServe, our engine"}
    rows = [
        ours | {"load": "closed, 4 clients", "throughput": 1.9},
        ours | {"load": "closed, 8 clients", "throughput": 1.8},
        ours | {"load": "open, 2 x peak", "throughput": 1.9, "p99_s": 4.0, "refusal_p99_s": 0.1},
        ours | {"load": "open, 5 x peak", "throughput": 1.0, "p99_s": 5.0, "refusal_p99_s": 0.3},
        theirs | {"load": "closed, 8 clients", "throughput": 1.0},
        theirs | {"load": "open, 2 x peak", "throughput": 1.0, "p99_s": 16.0},
    ]
    bare = {512: [{"spinning": 1.0, "passive": 2.0}, {"spinning": 2.0, "passive": 0.5}]}
    options = argparse.Namespace(loads=[2, 5], queue_time_s=8, threads=2)
    found = {row["target"]: row for row in targets(rows, bare, options)}
    assert found["peak / bare loop"] | {"measured": 0.95, "met": True} == found["peak / bare loop"]
    assert not found["accepted at 5 x peak / peak"]["met"]
    assert found["p99 of accepted at 5 x peak, s"]["measured"] == 5.0
    assert found["p99 of refusals, ms"]["measured"] == 300
    assert not found["p99 of refusals, ms"]["met"]
    assert found["5xx and unanswered"]["met"]
    assert found["painted, closed, 8 clients / LitServe, our engine"]["measured"] == 1.8
    assert found["p99 at 2 x / LitServe, our engine"]["measured"] == 0.25


def test_shapes_lie_about_the_side_and_differ() -> None:
    drawn = shapes(500, 0.2, 100, seed=1)
    assert all(400 <= side <= 600 for size in drawn for side in size)
    assert len(set(drawn)) > 90
    assert shapes(500, 0.0, 2) == [(500, 500)] * 2
