"""What the routes tell of their answers: routes, styles and outcomes that are few, whatever clients send."""

import asyncio
from typing import Any

import pytest
from fakes import FakePipeline
from pictures import photo_bytes
from starlette.testclient import TestClient

from serve_app.errors import DeadlineExceeded, Lost, TooBusy
from serve_app.web.routes import create_app
from serve_app.web.traffic import OTHER, OUTCOMES, Answered, outcome_of

PHOTO = photo_bytes(24, 32)


class Heard:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.answers: list[Answered] = []

    def answered(self, answer: Answered) -> None:
        self.answers.append(answer)

    def last(self) -> tuple[str, str, str, str | None]:
        answer = self.answers[-1]
        return answer.route, answer.style, answer.outcome, answer.code


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline()


@pytest.fixture
def client(pipeline: FakePipeline, heard: Heard) -> TestClient:
    return TestClient(create_app(pipeline, heard), raise_server_exceptions=False)


def test_a_painting_counts_with_its_route_and_style(client: TestClient, heard: Heard) -> None:
    style = next(iter(FakePipeline().styles))
    assert client.post("/v1/stylize", content=PHOTO, params={"style": style}).status_code == 200
    assert heard.last() == ("/v1/stylize", style, "ok", None)
    client.post("/v1/stylize/", content=PHOTO)
    assert heard.last()[0] == "/v1/stylize"


def test_what_clients_make_up_is_no_label(client: TestClient, heard: Heard) -> None:
    client.post("/v1/stylize", content=PHOTO, params={"style": "made-up"})
    assert heard.last() == ("/v1/stylize", "", "refused", "unknown-style")
    client.get("/made/up")
    assert heard.last() == (OTHER, "", "refused", "not-found")
    client.get("/v1/jobs/made-up")
    assert heard.last()[0] == "/v1/jobs/{job_id}"
    client.request("MADEUP", "/livez")
    assert heard.last()[3] == "method-not-allowed"


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (TooBusy("full"), "busy", "too-busy"),
        (Lost("gone"), "unavailable", "lost"),
        (DeadlineExceeded("late"), "late", "deadline-exceeded"),
        (RuntimeError("a fault"), "failed", "internal-error"),
    ],
)
def test_refusals_and_faults_count_with_their_codes(
    client: TestClient,
    pipeline: FakePipeline,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    outcome: str,
    code: str,
) -> None:
    async def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "stylize", refuse)
    client.post("/v1/stylize", content=PHOTO)
    assert heard.last()[2:] == (outcome, code)


def test_seconds_count_from_the_arrival_in_the_guard(client: TestClient, heard: Heard) -> None:
    client.post("/v1/stylize", content=PHOTO, headers={"x-animegan-waited-seconds": "7.250"})
    assert 7.25 <= heard.answers[-1].seconds < 60
    client.post("/v1/stylize", content=PHOTO, headers={"x-animegan-waited-seconds": "-1"})
    assert 0 <= heard.answers[-1].seconds < 7


def test_a_client_that_goes_away_is_no_fault(
    pipeline: FakePipeline, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(*_: Any) -> None:
        raise asyncio.CancelledError

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": PHOTO, "more_body": False}

    async def unused(_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(pipeline, "stylize", cancelled)
    scope = {"type": "http", "method": "POST", "path": "/v1/stylize", "query_string": b"", "headers": []}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(create_app(pipeline, heard)(scope, receive, unused))
    assert heard.last() == ("/v1/stylize", "toon", "gone", None)


def test_every_status_has_one_of_the_documented_outcomes() -> None:
    outcomes = {status: outcome_of(status) for status in range(200, 600)}
    assert set(outcomes.values()) == set(OUTCOMES)
    assert [outcomes[status] for status in (200, 202, 304, 408, 413, 429, 499, 500, 503, 507)] == [
        "ok",
        "accepted",
        "ok",
        "late",
        "refused",
        "busy",
        "gone",
        "failed",
        "unavailable",
        "unavailable",
    ]
