"""API keys over HTTP: who gets in where, and what others are told."""

import asyncio
import hashlib
import logging
from typing import Any

import pytest
from fakes import FakePipeline
from fastapi.routing import APIRoute
from httpx2 import Response
from pictures import photo_bytes
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.frames import Client
from serve_app.web.keys import Key, KeyRing
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)
KEY = "ag_the-key-of-alice"
ALICE = Key("alice", hashlib.sha256(KEY.encode()).digest(), 0.5)
JOB = "/v1/jobs/{job_id}"  # its id is the right to see it and to erase it
STYLES = ["/v1/styles", "/v1/styles/{name}/thumbnail", "/v1/models", "/v1/models/{model}"]
SEEN = [*STYLES, "/v1/jobs", JOB, f"{JOB}/image", f"{JOB}/photo"]
OPEN = {  # of what is under /v1
    *((method, path) for method in ("GET", "HEAD") for path in SEEN),
    ("GET", "/v1/jobs/events"),
    ("DELETE", JOB),
}


def with_keys(anonymous_share: float = 0) -> tuple[FakePipeline, TestClient]:
    pipeline = FakePipeline(keys=KeyRing([ALICE], anonymous_share))
    return pipeline, TestClient(create_app(pipeline), raise_server_exceptions=False, client=("192.0.2.1", 50000))


def assert_unauthorized(answer: Response, detail: str) -> None:
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="animegan-serve"')
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:animegan-serve:unauthorized",
        "title": "An API key is needed",
        "status": 401,
        "code": "unauthorized",
        "detail": detail,
    }


def test_photograph_without_a_key_is_refused_with_how_to_send_one() -> None:
    pipeline, http = with_keys()
    assert_unauthorized(
        http.post("/v1/stylize", content=PHOTO),
        "This service asks for an API key: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`.",
    )
    assert not pipeline.requests


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer ag_wrong"}, {"X-API-Key": "ag_wrong"}])
def test_photograph_with_a_wrong_key_is_refused(headers: dict[str, str]) -> None:
    for anonymous_share in (0, 0.5):
        _, http = with_keys(anonymous_share)
        assert_unauthorized(http.post("/v1/stylize", content=PHOTO, headers=headers), "The API key is not known here.")


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
@pytest.mark.parametrize("path", ["/v1/stylize", "/v1/stylize/"])
def test_photograph_with_a_key_is_painted_for_the_name_of_the_key(headers: dict[str, str], path: str) -> None:
    pipeline, http = with_keys()
    assert http.post(path, content=PHOTO, headers=headers).status_code == 200
    assert pipeline.clients == [Client("key:alice", 0.5)]


def test_several_lines_of_one_header_all_count() -> None:
    _, http = with_keys()
    lines = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer ag_other")]
    detail = "The request has several API keys; send one."
    assert_unauthorized(http.post("/v1/stylize", content=PHOTO, headers=lines), detail)


def test_password_of_another_scheme_is_refused_with_the_scheme_that_is_wanted() -> None:
    _, http = with_keys()
    detail = "The header Authorization must read `Bearer KEY`; other schemes are not taken here."
    assert_unauthorized(http.post("/v1/stylize", content=PHOTO, auth=("alice", KEY)), detail)


def test_client_without_a_key_is_its_address_in_the_anonymous_share() -> None:
    pipeline, http = with_keys(anonymous_share=0.1)
    assert http.post("/v1/stylize", content=PHOTO).status_code == 200
    assert pipeline.clients == [Client("192.0.2.1", 0.1, "anonymous")]


def test_key_is_asked_for_before_the_options_are_read() -> None:
    _, http = with_keys()
    assert http.post("/v1/stylize?max_side=wide", content=PHOTO).status_code == 401


@pytest.mark.parametrize("content_type", ["image/jpeg", "multipart/form-data; boundary=x"])
def test_key_is_asked_for_before_the_body_is_read(content_type: str) -> None:
    pipeline, _ = with_keys()
    sent: list[Message] = []

    async def receive() -> Message:
        pytest.fail("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/stylize",
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode()), (b"authorization", b"Bearer ag_wrong")],
    }
    asyncio.run(create_app(pipeline)(scope, receive, send))
    assert sent[0]["status"] == 401


def test_every_route_but_the_open_ones_asks_for_a_key() -> None:
    pipeline, http = with_keys()
    app: Any = http.app
    guarded = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute) and route.path.startswith("/v1")
        for method in route.methods or ()
    } - OPEN
    assert {("POST", "/v1/stylize"), ("POST", "/v1/jobs")} <= guarded
    assert {http.request(method, path.replace("{", "").replace("}", "")).status_code for method, path in guarded} == {
        401
    }
    assert not pipeline.requests


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/docs", "/openapi.json", "/page/any/js/main.js", "/v1/styles"]
)
def test_page_health_and_descriptions_are_open(path: str) -> None:
    assert with_keys()[1].get(path).status_code == 200


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"Authorization": "Basic eDp5"}, {}])
def test_service_with_its_keys_off_takes_any(headers: dict[str, str]) -> None:
    http = TestClient(create_app(FakePipeline()))
    assert http.post("/v1/stylize", content=PHOTO, headers=headers).status_code == 200


def test_openapi_document_says_how_a_key_is_sent() -> None:
    document = with_keys()[1].get("/openapi.json").json()
    operation = document["paths"]["/v1/stylize"]["post"]
    assert operation["security"] == [{"bearer": []}, {"header": []}, {}]
    assert "401" in operation["responses"]
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["header"]["type"], schemes["header"]["in"], schemes["header"]["name"]) == (
        "apiKey",
        "header",
        "X-API-Key",
    )
    for path in ("/v1/styles", "/v1/styles/{name}/thumbnail"):
        assert "security" not in document["paths"][path]["get"]


def test_no_key_gets_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pipeline, http = with_keys()
    for key, status in ((KEY, 200), ("ag_wrong", 401)):
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": key}):
            answer = http.post("/v1/stylize", content=PHOTO, headers=headers)
            assert answer.status_code == (401 if headers.get("Authorization") == key else status)
            assert key.encode() not in answer.content
    pipeline.fault = ValueError("ours")
    assert http.post("/v1/stylize", content=PHOTO, headers={"X-API-Key": KEY}).status_code == 500
    assert "unexpected error" in caplog.text
    assert KEY not in caplog.text
    assert "ag_wrong" not in caplog.text
