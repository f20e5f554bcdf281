"""Styles over HTTP: what clients are told of them, and their thumbnails."""

import shutil
from pathlib import Path

import pytest
from fakes import FakePipeline
from httpx2 import Response
from starlette.testclient import TestClient

from serve_app.styles.catalogue import installed_styles, shipped_dir
from serve_app.web.keys import KeyRing
from serve_app.web.routes import create_app

WEBP = b"RIFF\x10\0\0\0WEBPVP8 a picture"
ADDRESS = "/v1/styles/toon/thumbnail"


def pipeline(thumbnail: bytes = WEBP) -> FakePipeline:
    """A pipeline whose style toon has a thumbnail and a summary; papaya has neither."""
    made = FakePipeline(keys=KeyRing())
    made.styles["toon"] = made.styles["toon"].model_copy(update={"thumbnail": thumbnail, "summary": "For all."})
    return made


def client() -> TestClient:
    return TestClient(create_app(pipeline()))


def thumbnails_of(http: TestClient) -> dict[str, str | None]:
    return {style["name"]: style["thumbnail"] for style in http.get("/v1/styles").json()["styles"]}


def assert_refused(answer: Response, code: str, detail: str) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (answer.status_code, document["code"], document["detail"]) == (404, code, detail)


def test_list_says_what_each_style_is_good_for() -> None:
    listed = client().get("/v1/styles").json()["styles"]
    assert {style["name"]: style["summary"] for style in listed} == {"toon": "For all.", "papaya": None, "mango": None}


def test_list_has_the_addresses_of_thumbnails_that_there_are() -> None:
    assert thumbnails_of(client()) == {"toon": ADDRESS, "papaya": None, "mango": None}


def test_thumbnail_is_at_its_address() -> None:
    http = client()
    answer = http.get(str(thumbnails_of(http)["toon"]))
    assert (answer.status_code, answer.content) == (200, WEBP)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("root_path", ["/anime", "/"])
def test_address_begins_with_the_prefix_of_the_service(root_path: str) -> None:
    prefix = root_path.rstrip("/")
    http = TestClient(create_app(pipeline()), root_path=root_path)
    listed = http.get(f"{prefix}/v1/styles").json()["styles"]
    (address,) = [style["thumbnail"] for style in listed if style["thumbnail"]]
    assert address == f"{prefix}{ADDRESS}"
    assert http.get(address).content == WEBP


def test_client_that_has_the_thumbnail_is_told_so() -> None:
    http = client()
    tag = http.get(ADDRESS).headers["etag"]
    for condition in (tag, f'W/{tag}, "other"', "*"):
        answer = http.get(ADDRESS, headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content) == (304, b"")
        assert (answer.headers["etag"], answer.headers["cache-control"]) == (tag, "public, max-age=3600")
    assert http.get(ADDRESS, headers={"If-None-Match": '"other"'}).content == WEBP


def test_tag_changes_with_the_picture() -> None:
    tags = [TestClient(create_app(pipeline(data))).get(ADDRESS).headers["etag"] for data in (WEBP, WEBP, WEBP + b"!")]
    assert tags[0] == tags[1] != tags[2]


def test_head_of_a_thumbnail_is_its_get_without_a_body() -> None:
    got, head = client().get(ADDRESS), client().head(ADDRESS)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == got.headers


@pytest.mark.parametrize("headers", [{}, {"If-None-Match": "*"}])
def test_style_without_a_thumbnail_has_none_at_its_address(headers: dict[str, str]) -> None:
    answer = client().get("/v1/styles/papaya/thumbnail", headers=headers)
    detail = "The style papaya has no thumbnail here; installing it again paints one."
    assert_refused(answer, "no-thumbnail", detail)


@pytest.mark.parametrize(
    "name", ["shinkai", "TOON", "toon.webp", "mango", "%2e%2e", "..%5ctoon", "%00", "%ff", "x" * 200]
)
def test_style_that_is_not_installed_has_no_thumbnail(name: str) -> None:
    answer = client().get(f"/v1/styles/{name}/thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-style")
    assert "installed are: papaya, toon." in answer.json()["detail"]


@pytest.mark.parametrize(
    ("data", "is_served"), [(WEBP, True), (b"<html>", False), (WEBP.ljust(64_000, b"\0"), False), (None, False)]
)
def test_only_a_small_webp_beside_the_style_is_served(styles_dir: Path, data: bytes | None, is_served: bool) -> None:
    shutil.copy(shipped_dir() / "toon.safetensors", styles_dir)
    if data is not None:
        (styles_dir / "toon.webp").write_bytes(data)
    made = pipeline()
    made.styles = dict(installed_styles())
    http = TestClient(create_app(made))
    assert thumbnails_of(http)["toon"] == (ADDRESS if is_served else None)
    assert http.get(ADDRESS).status_code == (200 if is_served else 404)
