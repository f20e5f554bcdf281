"""The log of requests: one line each, and nothing in any of the log that only the client should know."""

import asyncio
import hashlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import requests
from edge import Echo, guarded
from fakes import FakePipeline, fake_settings
from pictures import photo_bytes
from PIL import Image
from ray._common.formatters import JSONFormatter
from shop import Shop
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_app.errors import TooBusy
from serve_app.settings import LogClients, WebhookSettings
from serve_app.web.guard import Site
from serve_app.web.keys import Key, KeyRing
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)
PEER = "198.51.100.77"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serve_app.web.request_log")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of requests so far, without how long they took."""
    members: list[dict[str, Any]] = [record.request for record in caplog.records if hasattr(record, "request")]
    return members


def client(pipeline: FakePipeline | None = None) -> TestClient:
    app = create_app(pipeline or FakePipeline())
    return TestClient(app, raise_server_exceptions=False, client=(PEER, 50000))


def test_a_painted_photograph_has_one_line_with_sizes_style_timings_and_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline = FakePipeline()
    pipeline.paint_ms = 12.34
    headers = {
        "X-Request-ID": "from-the-caller",
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
        "x-animegan-waited-seconds": "0.250",
    }
    answer = client(pipeline).post("/v1/stylize/?max_side=40&style=papaya", content=PHOTO, headers=headers)
    (line,) = lines(caplog)
    timings = line.pop("timings_ms")
    assert line == {
        "id": "from-the-caller",
        "trace_id": TRACE,
        "method": "POST",
        "route": "/v1/stylize",
        "status": 200,
        "outcome": "ok",
        "style": "papaya",
        "photograph": "80x60",
        "painting": "40x28",
        "reused": False,
        "bytes_in": len(PHOTO),
        "bytes_out": len(answer.content),
    }
    assert timings == {
        "guard": 250,
        "decode": 1,
        "queue": 0,
        "paint": 12.3,
        "encode": 1,
        "total": timings["total"],
    }
    assert timings["total"] > 0
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("POST /v1/stylize 200 ok in ")
    assert said.endswith(" ms, papaya 80x60 to 40x28: guard 250, decode 1, queue 0, paint 12, encode 1")


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/v1/stylize?max_side=7", PHOTO, ("/v1/stylize", 400, "bad-option", None)),
        ("POST", "/v1/stylize?style=shinkai", PHOTO, ("/v1/stylize", 404, "unknown-style", None)),
        ("POST", "/v1/stylize", PHOTO[:200], ("/v1/stylize", 422, "broken-image", "toon")),
        ("POST", "/v1/stylize", b"", ("/v1/stylize", 400, "no-image", "toon")),
        ("PUT", "/v1/stylize", b"", ("/v1/stylize", 405, "method-not-allowed", None)),
        ("GET", "/v1/nothing", b"", (None, 404, "not-found", None)),
        ("GET", "/v1/styles/", b"", ("/v1/styles", 200, "ok", None)),
        ("GET", "/v1/jobs/0123", b"", ("/v1/jobs/{job_id}", 404, "jobs-off", None)),
    ],
)
def test_a_line_says_what_became_of_a_request(
    method: str, path: str, body: bytes, expected: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    client().request(method, path, content=body)
    (line,) = lines(caplog)
    assert (line.get("route"), line["status"], line["outcome"], line.get("style")) == expected
    assert line["method"] == method
    assert "photograph" not in line


@pytest.mark.parametrize(
    ("fault", "status", "outcome"),
    [(ValueError("secret"), 500, "internal-error"), (TooBusy("Later.", retry_after_s=7), 429, "too-busy")],
)
def test_faults_and_refusals_of_the_pipeline_have_their_lines(
    fault: Exception, status: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert client(FakePipeline(fault=fault)).post("/v1/stylize", content=PHOTO).status_code == status
    (line,) = lines(caplog)
    assert (line["status"], line["outcome"], line["bytes_in"]) == (status, outcome, len(PHOTO))


def test_a_client_that_goes_during_its_upload_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    arriving: list[Message] = [
        {"type": "http.request", "body": b"12345", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None:
        return None

    scope = {"type": "http", "method": "POST", "path": "/v1/stylize", "query_string": b"", "headers": []}
    asyncio.run(create_app(FakePipeline())(scope, receive, send))
    (line,) = lines(caplog)
    assert (line["status"], line["outcome"], line["bytes_in"]) == (499, "client-gone", 5)


def test_a_request_that_is_cancelled_before_its_answer_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """As Serve does it when the client has closed the connection."""
    never = asyncio.Event()

    async def receive() -> Message:
        await never.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        return None

    async def scene() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/stylize", "query_string": b"", "headers": []}
        handling = asyncio.create_task(create_app(FakePipeline())(scope, receive, send))
        await asyncio.sleep(0.05)
        handling.cancel()
        await asyncio.wait({handling})

    asyncio.run(scene())
    (line,) = lines(caplog)
    assert (line["status"], line["outcome"], line["bytes_out"]) == (499, "client-gone", 0)


def test_health_checks_have_no_lines(caplog: pytest.LogCaptureFixture) -> None:
    with guarded(create_app(FakePipeline())) as address:
        for path in ("/livez", "/readyz", "/-/healthz"):
            requests.get(address + path, timeout=9)
    assert not lines(caplog)


def test_a_method_that_nobody_knows_and_a_malformed_id_are_not_written(caplog: pytest.LogCaptureFixture) -> None:
    client().request("SECRET", "/v1/stylize", headers={"X-Request-ID": "a b", "traceparent": "00-secret"})
    (line,) = lines(caplog)
    assert (line["method"], line["outcome"]) == ("other", "method-not-allowed")
    assert not {"id", "trace_id"} & set(line)


def test_a_painting_that_is_used_again_has_no_timings_of_another_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(tmp_path)
    try:
        shop.pipeline.paint_ms = 400
        for _ in range(2):
            assert shop.http.post("/v1/stylize", content=PHOTO).status_code == 200
            while shop.desk.paintings._keeping:
                pass
    finally:
        shop.close()
    first, second = lines(caplog)
    assert (first["reused"], first["timings_ms"]["paint"]) == (False, 400)
    assert (second["reused"], set(second["timings_ms"])) == (True, {"queue", "total"})


class TestGuard:
    def test_what_it_hands_on_has_the_line_of_the_ingress_alone(self, caplog: pytest.LogCaptureFixture) -> None:
        with guarded(create_app(FakePipeline())) as address:
            assert requests.post(f"{address}/v1/stylize", data=PHOTO, timeout=60).status_code == 200
            assert requests.get(f"{address}/v1/styles", timeout=60).status_code == 200
        first, second = lines(caplog)
        assert (first["route"], first["outcome"], "guard" in first["timings_ms"]) == ("/v1/stylize", "ok", True)
        assert len(first["id"]) == 36
        assert (second["route"], "guard" in second["timings_ms"]) == ("/v1/styles", False)

    @pytest.mark.parametrize(
        ("path", "route"),
        [
            ("/v1/stylize", "/v1/stylize"),
            ("/prefix/v1/jobs/", "/v1/jobs"),
            ("/v1/jobs/secret", "/v1/jobs/{job_id}"),
            ("/v1/jobs/secret/image", "/v1/jobs/{job_id}/image"),
            ("/secret", None),
        ],
    )
    def test_what_it_refuses_has_a_line_of_its_own(
        self, path: str, route: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with guarded(Echo(), max_bytes=1000, max_form_bytes=1000) as address:
            answer = requests.post(address + path, data=bytes(2**21), timeout=60)
        (line,) = lines(caplog)
        assert (line.get("route"), line["status"], line["outcome"]) == (route, 413, "too-many-bytes")
        assert line["id"] == answer.headers["x-request-id"]
        assert "secret" not in json.dumps(line)

    def test_a_request_that_is_lost_with_its_ingress_has_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        async def lost(scope: Scope, receive: Receive, send: Send) -> None:
            return None

        with guarded(lost) as address:
            assert requests.get(f"{address}/v1/styles", timeout=60).status_code == 503
        (line,) = lines(caplog)
        assert (line["status"], line["outcome"]) == (503, "lost")


@pytest.mark.parametrize(
    ("detail", "forwarded_for", "expected"),
    [
        ("off", None, None),
        ("truncated", None, "198.51.100.0/24"),
        ("full", None, PEER),
        ("truncated", "2001:db8:1:2::3", "2001:db8:1::/48"),
        ("full", "2001:db8:1:2::3", "2001:db8:1:2::3"),
    ],
)
def test_addresses_of_clients_are_written_as_the_setting_says(
    detail: LogClients, forwarded_for: str | None, expected: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = fake_settings(log_clients=detail, trusted_proxies=[f"{PEER}/32"])
    headers = {} if forwarded_for is None else {"X-Forwarded-For": forwarded_for}
    client(FakePipeline(settings)).get("/v1/styles", headers=headers)
    loopback = Site(trusted_proxies=[ip_network("127.0.0.0/8")], log_clients=detail)
    with guarded(Echo(), loopback, max_bytes=1) as address:
        requests.post(address, data=bytes(2**21), headers={"X-Forwarded-For": forwarded_for or PEER}, timeout=9)
    assert [line.get("client") for line in lines(caplog)] == [expected, expected]


class Written:
    """Everything that a process writes: records of all loggers, as JSON, and both of its streams.

    Not at DEBUG, which no config switches on outside of Serve: Pillow writes metadata there.
    """

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = io.StringIO()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        handler = logging.StreamHandler(self._text)
        handler.setFormatter(JSONFormatter())
        root = logging.getLogger()
        before = root.level
        handler.addFilter(lambda record: not record.name.startswith("urllib3"))  # the client's own log
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before)

    def text(self) -> str:
        return self._text.getvalue() + "".join(self._capfd.readouterr())


def marked_photograph() -> bytes:
    """A JPEG with a place, a name and a comment in its metadata."""
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "marker-description", "marker-artist"
    buffer = io.BytesIO()
    options: dict[str, Any] = {"exif": exif, "comment": b"marker-comment"}
    Image.open(io.BytesIO(PHOTO)).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_nothing_that_only_the_client_should_know_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Metadata, names of files, keys, ids of jobs, addresses of clients and of callbacks, and queries."""
    key = "ag_marker-key"
    keys = KeyRing([Key("marker-name", hashlib.sha256(key.encode()).digest())])
    shop = Shop(tmp_path, FakePipeline(keys=keys), webhooks=WebhookSettings(secret="env:MARKER_SECRET"))
    written = Written(capfd)
    headers = {"X-API-Key": key, "X-Forwarded-For": PEER, "Cookie": "marker-cookie", "User-Agent": "marker-agent"}
    upload = {"image": ("marker-file.jpg", marked_photograph())}
    damaged = {"image": ("marker-file.jpg", marked_photograph()[:-300])}
    with written.recorded(), guarded(shop.http.app, Site(trusted_proxies=[ip_network("127.0.0.0/8")])) as address:

        def ask(method: str, path: str, **options: Any) -> requests.Response:
            return requests.request(method, address + path, headers=headers, timeout=60, **options)

        assert ask("POST", "/v1/stylize?max_side=40", files=upload).status_code == 200
        assert ask("POST", "/v1/stylize", files=damaged).status_code == 422
        assert ask("POST", "/v1/stylize?marker-query=1", files=upload).status_code == 400
        assert ask("POST", "/v1/stylize?style=marker-style", files=upload).status_code == 404
        callback = "https://marker-host.example/marker-path?token=marker-token"
        answer = ask("POST", "/v1/jobs", files=upload, data={"callback_url": callback})
        assert answer.status_code == 202, answer.text
        job = answer.json()["id"]
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/image", f"/v1/jobs/{job}/nothing", f"/v1/jobs?id={job}"):
            ask("GET", path)
        assert ask("DELETE", f"/v1/jobs/{job}").status_code == 200
        shop.pipeline.fault = ValueError("a fault of ours")
        assert ask("POST", "/v1/stylize?max_side=48", files=upload).status_code == 500
        wrong = requests.post(f"{address}/v1/stylize", headers={"Authorization": "Bearer marker-wrong"}, timeout=60)
        assert wrong.status_code == 401
        refused = requests.post(f"{address}/marker-path", data=bytes(2**21), headers=headers, timeout=60)
        assert refused.status_code == 413
    shop.close()
    text = written.text()
    assert len(found(text, '"outcome": "ok"')) >= 4  # there was something to look through
    assert found(text, "a fault of ours")
    for secret in ("marker", job, PEER):
        assert found(text, secret) == []


def found(text: str, words: str) -> list[str]:
    """Where some words stand in a text, with what is around them."""
    return re.findall(f".{{0,80}}{re.escape(words)}.{{0,80}}", text)


def test_the_test_above_would_notice(capfd: pytest.CaptureFixture[str]) -> None:
    written = Written(capfd)
    with written.recorded():
        logging.getLogger("anybody").info("one", extra={"marker": 1})
        print("two")
        print("three", file=sys.stderr)
    text = written.text()
    assert all(word in text for word in ("one", "marker", "two", "three"))
