"""The HTTP contract over a fake pipeline: no Ray, no torch."""

import asyncio
from typing import Any

import pytest
from fakes import FakePipeline, fake_settings
from httpx2 import Response
from pictures import opened, photo_bytes
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.errors import OutOfMemory, TooBusy
from serve_app.frames import Client
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)


def client(**options: Any) -> TestClient:
    return TestClient(create_app(FakePipeline(**options)), raise_server_exceptions=False)


def assert_problem(response: Response, status: int, code: str, detail: str) -> None:
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (response.status_code, document["status"], document["code"], document["detail"]) == (
        status,
        status,
        code,
        detail,
    )


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", None],
)
def test_raw_body_is_painted_whatever_its_content_type_claims(content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = client().post("/v1/stylize", content=PHOTO, headers=headers)
    assert answer.status_code == 200
    assert opened(answer.content).size == (80, 60)


def test_form_field_image_is_painted() -> None:
    answer = client().post("/v1/stylize", files={"image": ("wrong-name.txt", PHOTO)})
    assert answer.status_code == 200


def test_receipt_headers_state_what_was_done() -> None:
    answer = client().post("/v1/stylize?max_side=40&style=papaya", content=PHOTO)
    names = ("X-Style", "X-Original-Size", "X-Painted-Size", "X-Resized", "Vary")
    assert [answer.headers[name] for name in names] == ["papaya", "80x60", "40x28", "true", "Accept"]
    timings = [entry.split(";")[0] for entry in answer.headers["Server-Timing"].split(", ")]
    assert timings == ["decode", "queue", "paint", "encode"]


def test_a_photo_painted_at_its_own_size_says_so() -> None:
    answer = client().post("/v1/stylize", content=PHOTO)
    assert answer.headers["X-Resized"] == "false"


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("", None, "image/jpeg"),
        ("", "*/*", "image/jpeg"),
        ("", "image/webp", "image/webp"),
        ("?format=png", "image/webp", "image/png"),
        ("?format=avif&quality=30", None, "image/avif"),
    ],
)
def test_format_is_negotiated(query: str, accept: str | None, expected: str) -> None:
    headers = {"accept": accept} if accept else {}
    answer = client().post(f"/v1/stylize{query}", content=PHOTO, headers=headers)
    assert answer.headers["content-type"] == expected
    assert Image.MIME[opened(answer.content).format or ""] == expected


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("max_side=2000", "max_side is 2000; at most 1024 pixels are painted here."),
        ("max_side=7", "max_side: Input should be greater than or equal to 8."),
        ("max_side=wide", "max_side: Input should be a valid integer, unable to parse string as an integer."),
        ("quality=0", "quality: Input should be greater than or equal to 1."),
        ("quality=101", "quality: Input should be less than or equal to 100."),
        ("format=bmp", "format: Input should be 'jpeg', 'webp', 'png' or 'avif'."),
        ("max_sid=64", "max_sid is not an option (known: style, max_side, format, quality, timeout_s)."),
    ],
)
def test_bad_option_is_refused_by_name(query: str, detail: str) -> None:
    assert_problem(client().post(f"/v1/stylize?{query}", content=PHOTO), 400, "bad-option", detail)


def test_max_side_above_the_setting_names_limit_and_actual() -> None:
    document = client().post("/v1/stylize?max_side=2000", content=PHOTO).json()
    assert (document["limit"], document["actual"], document["unit"]) == (1024, 2000, "pixels")


def test_unknown_style_names_those_installed() -> None:
    answer = client().post("/v1/stylize?style=shinkai", content=PHOTO)
    detail = "There is no style 'shinkai' here; installed are: papaya, toon."
    assert_problem(answer, 404, "unknown-style", detail)


NO_PICTURE = "The request has no picture: send it as the body, or as the field `image` of a form."


def test_empty_body_is_refused() -> None:
    assert_problem(client().post("/v1/stylize"), 400, "no-image", NO_PICTURE)


def test_empty_file_in_a_form_is_refused() -> None:
    assert_problem(client().post("/v1/stylize", files={"image": b""}), 400, "no-image", NO_PICTURE)


@pytest.mark.parametrize("form", [{"files": {"photo": PHOTO}}, {"data": {"style": "toon"}, "files": {"x": b"y"}}])
def test_form_without_a_file_named_image_is_refused(form: dict[str, Any]) -> None:
    answer = client().post("/v1/stylize", **form)
    assert_problem(answer, 400, "no-image", "The form has no photograph in its field `image`.")


def test_options_in_fields_of_a_form_work_as_in_the_query() -> None:
    pipeline = FakePipeline()
    http = TestClient(create_app(pipeline))
    fields = {"style": "papaya", "max_side": "64", "format": "PNG", "quality": "50", "timeout_s": ""}
    answer = http.post("/v1/stylize", files={"image": PHOTO}, data=fields)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    (request,) = pipeline.requests
    assert (request.style, request.max_side, request.quality, request.timeout_s) == ("papaya", 64, 50, 55)


@pytest.mark.parametrize(
    ("query", "fields", "detail"),
    [
        ("", {"max_sid": "64"}, "max_sid is not an option (known: style, max_side, format, quality, timeout_s)."),
        ("", {"quality": "101"}, "quality: Input should be less than or equal to 100."),
        ("?style=toon", {"style": "papaya"}, "style: given in the query and in the form."),
        ("", {"style": ["toon", "papaya"]}, "style is given twice in the form."),
        ("?style=toon&style=toon", {}, "style is given twice in the query."),
        ("", {"max_side": "2000"}, "max_side is 2000; at most 1024 pixels are painted here."),
    ],
)
def test_bad_field_of_a_form_is_refused_by_name(query: str, fields: dict[str, Any], detail: str) -> None:
    answer = client().post(f"/v1/stylize{query}", files={"image": PHOTO}, data=fields)
    assert_problem(answer, 400, "bad-option", detail)


def test_part_without_a_file_name_is_a_photograph() -> None:
    photo = photo_bytes(1200, 1200, "BMP")  # over a megabyte, where text fields end
    body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + photo + b"\r\n--x--\r\n"
    answer = client().post("/v1/stylize", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200


@pytest.mark.parametrize("name", ["jpg", "JPG", "Jpeg"])
def test_other_names_of_jpeg_are_jpeg(name: str) -> None:
    answer = client().post(f"/v1/stylize?format={name}", content=PHOTO, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/jpeg"


def test_all_accept_lines_count() -> None:
    headers = [("accept", "text/html"), ("accept", "image/webp")]
    assert client().post("/v1/stylize", content=PHOTO, headers=headers).headers["content-type"] == "image/webp"


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/v1/styles"])
def test_head_answers_as_get_without_a_body(path: str) -> None:
    answer = client().head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client().get(path).headers["content-type"]


def test_trailing_slash_changes_nothing() -> None:
    assert client().post("/v1/stylize/", content=PHOTO, follow_redirects=False).status_code == 200
    assert client().get("/v1/styles/").json() == client().get("/v1/styles").json()
    assert client().get("/absent/").json()["code"] == "not-found"


def test_malformed_form_is_refused() -> None:
    answer = client().post(
        "/v1/stylize", content=b"--x\r\nno header", headers={"content-type": "multipart/form-data; boundary=y"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "no-image")


@pytest.mark.parametrize("as_form", [False, True])
def test_too_many_bytes_are_refused(as_form: bool) -> None:
    settings = fake_settings(max_bytes=1000)
    upload: dict[str, Any] = {"files": {"image": PHOTO}} if as_form else {"content": PHOTO}
    answer = client(settings=settings).post("/v1/stylize", **upload)
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (413, "too-many-bytes", 1000)


def test_an_upload_without_a_length_is_cut_off_at_the_limit() -> None:
    pipeline = FakePipeline(settings=fake_settings(max_bytes=5000))
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1000
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    answers: list[Message] = []

    async def send(message: Message) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/stylize", "query_string": b"", "headers": []}
    asyncio.run(create_app(pipeline)(scope | {"root_path": "", "scheme": "http"}, receive, send))
    assert answers[0]["status"] == 413
    assert received <= 7000


def test_broken_image_is_refused_and_the_service_goes_on() -> None:
    http = client()
    answer = http.post("/v1/stylize", content=PHOTO[:200])
    assert_problem(answer, 422, "broken-image", "The picture ends before it is complete; send the whole file.")
    assert http.post("/v1/stylize", content=PHOTO).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"),
    [(TooBusy("Later.", retry_after_s=7), 429), (OutOfMemory("No room.", retry_after_s=7), 503)],
)
def test_refusal_for_lack_of_capacity_says_when_to_try_again(fault: Exception, status: int) -> None:
    answer = client(fault=fault).post("/v1/stylize", content=PHOTO)
    assert (answer.status_code, answer.headers["Retry-After"]) == (status, "7")
    assert answer.json()["retry_after_s"] == 7


def test_refusal_by_a_full_queue_states_the_limit_and_the_position() -> None:
    fault = TooBusy("Later.", 1_000_000, 1_250_000, "pixels", 7, 12)
    document = client(fault=fault).post("/v1/stylize", content=PHOTO).json()
    assert (document["limit"], document["actual"], document["unit"]) == (1_000_000, 1_250_000, "pixels")
    assert document["position"] == 12


def test_time_that_an_image_may_take_is_the_requests_up_to_the_setting() -> None:
    pipeline = FakePipeline(fake_settings(timeout_s=20))
    http = TestClient(create_app(pipeline))
    for query in ("", "?timeout_s=2.5"):
        assert http.post(f"/v1/stylize{query}", content=PHOTO).status_code == 200
    assert [request.timeout_s for request in pipeline.requests] == [20, 2.5]
    answer = http.post("/v1/stylize?timeout_s=21", content=PHOTO)
    assert_problem(answer, 400, "bad-option", "timeout_s is 21; a picture may take 20 seconds here at most.")
    assert http.post("/v1/stylize?timeout_s=0", content=PHOTO).json()["code"] == "bad-option"


def test_client_is_known_through_trusted_proxies_alone() -> None:
    for trusted, known in (([], "192.0.2.1"), (["192.0.2.0/24"], "198.51.100.7")):
        pipeline = FakePipeline(fake_settings(trusted_proxies=trusted))
        http = TestClient(create_app(pipeline), client=("192.0.2.1", 50000))
        http.post("/v1/stylize", content=PHOTO, headers={"X-Forwarded-For": "203.0.113.9, 198.51.100.7"})
        assert pipeline.clients == [Client(known)]


def test_a_fault_of_ours_shows_no_trace_of_itself() -> None:
    answer = client(fault=ValueError("secret path /etc")).post("/v1/stylize", content=PHOTO)
    assert_problem(answer, 500, "internal-error", "Something went wrong here; the fault has been logged.")


def test_unknown_path_and_method_are_problems_too() -> None:
    assert_problem(
        client().get("/v1/nothing"), 404, "not-found", "There is nothing at /v1/nothing; the API is described at /docs."
    )
    assert_problem(
        client().get("/v1/stylize"), 405, "method-not-allowed", "/v1/stylize does not take GET; it takes POST."
    )


def test_readiness_follows_the_pipeline_and_liveness_does_not() -> None:
    assert client().get("/readyz").status_code == 200
    starting = client(ready=False)
    assert starting.get("/livez").status_code == 200
    answer = starting.get("/readyz")
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "not-ready", "2")


def test_styles_are_listed_with_licences_default_first() -> None:
    listed = client().get("/v1/styles").json()
    rows = [(style["name"], style["licence"], style["installed"], style["default"]) for style in listed["styles"]]
    assert rows == [
        ("toon", "MIT", True, True),
        ("papaya", "non-commercial", True, False),
        ("mango", "MIT", False, False),
    ]
    assert (listed["max_side"], listed["max_bytes"], listed["jobs"]) == (1024, 32 * 2**20, None)


def test_docs_load_nothing_from_elsewhere() -> None:
    page = client().get("/docs").text
    assert "https://" not in page
    assert "swagger-ui-bundle.js" in page


@pytest.mark.parametrize("content_type", ["image/jpeg", "multipart/form-data; boundary=x"])
def test_upload_that_is_broken_off_is_no_fault(content_type: str, caplog: pytest.LogCaptureFixture) -> None:
    arriving: list[Message] = [
        {"type": "http.request", "body": b"--x\r\n", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/stylize",
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode())],
    }
    asyncio.run(create_app(FakePipeline())(scope, receive, send))
    assert sent[0]["status"] == 499
    assert not caplog.records
