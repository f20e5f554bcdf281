"""The files of the page over HTTP: which there are, and the headers under which a browser runs them."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePipeline
from httpx2 import Response
from shared import SHIPPED_STYLES
from shop import Shop
from starlette.testclient import TestClient

from serve_app.errors import RequestError
from serve_app.styles.catalogue import installed_styles
from serve_app.web.page_routes import FOLDER, page_files
from serve_app.web.routes import create_app

MODULES = {path.name: path.read_text() for path in (FOLDER / "js").glob("*.js")}
IMPORT = re.compile(r'^(?:import|export) [^;]*?"\./([\w-]+\.js)";', re.MULTILINE)
ENGLISH, CHINESE = (json.loads((FOLDER / "i18n" / f"{name}.json").read_text()) for name in ("en", "zh"))


@pytest.fixture(scope="module")
def http() -> TestClient:
    return TestClient(create_app(FakePipeline()))


def fetch(http: TestClient, address: str, **headers: str) -> Response:
    return http.get(address, headers={"Accept-Encoding": "identity"} | headers)


def test_every_address_in_the_page_and_its_styles_leads_to_a_file_of_its_type(http: TestClient) -> None:
    index = fetch(http, "/").text
    addresses = set(re.findall(r"page/[0-9a-f]+/[\w./-]+", index))
    assert len(addresses) > 20
    types = {
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
        "png": "image/png",
        "webp": "image/webp",
        "webmanifest": "application/manifest+json",
    }
    base = f"page/{page_files().version}/"
    addresses |= {base + name for name in re.findall(r'url\("([^"]+)"\)', (FOLDER / "style.css").read_text())}
    manifest = json.loads((FOLDER / "app.webmanifest").read_text())
    addresses |= {base + icon["src"] for icon in manifest["icons"]}
    for address in addresses:
        answer = fetch(http, f"/{address}")
        expected = (200, types[address.rsplit(".", 1)[1]], "public, max-age=31536000, immutable")
        assert (answer.status_code, answer.headers["Content-Type"], answer.headers["Cache-Control"]) == expected


def test_policy_allows_this_origin_and_the_pages_own_inline_script_alone(http: TestClient) -> None:
    answer = fetch(http, "/")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'self' 'sha256-[\w+/=]+'", policy["script-src"])
    sources = " ".join(value for name, value in policy.items() if name != "trusted-types").split()
    others = {source for source in sources if not source.startswith("'sha256-")}
    assert others == {"'none'", "'self'", "'script'", "blob:"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert " style=" not in answer.text
    assert not re.search(r"\son\w+=", answer.text)


@pytest.mark.parametrize(
    "source", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http:", "https:"]
)
def test_no_module_builds_a_document_of_text_or_asks_another_host(source: str) -> None:
    assert [name for name, text in MODULES.items() if source in text] == []


def test_files_of_another_version_are_served_but_not_kept(http: TestClient) -> None:
    answer = fetch(http, "/page/older/js/main.js")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache")
    assert fetch(http, "/").headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "../page_routes.py", "%2e%2e/page_routes.py", "js", "", "js/../index.html"]
)
def test_nothing_else_is_served(http: TestClient, name: str) -> None:
    answer = fetch(http, f"/page/any/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize("path", ["/", "/page/any/style.css", "/page/any/samples/photo-480.webp"])
def test_browser_that_has_a_file_gets_it_no_second_time(http: TestClient, path: str) -> None:
    first = fetch(http, path)
    again = http.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert http.get(path, headers={"If-None-Match": '"another"'}).status_code == 200
    head = http.head(path, headers={"Accept-Encoding": "identity"})
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(first.content)), b"")


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, br", False),
        ("identity", False),
        ("xgzip", False),
        ("", False),
    ],
)
def test_text_is_packed_for_those_who_unpack_it(http: TestClient, accepted: str, is_packed: bool) -> None:
    with http.stream("GET", "/page/any/style.css", headers={"Accept-Encoding": accepted}) as answer:
        data = b"".join(answer.iter_raw())
        assert (answer.headers.get("Content-Encoding") == "gzip") == is_packed
        assert answer.headers["Vary"] == "Accept-Encoding"
    text = gzip.decompress(data) if is_packed else data
    assert text == (FOLDER / "style.css").read_bytes()


def needed_at_first() -> set[str]:
    """The modules that are loaded before anybody does anything."""
    found, wanted = set(), ["main.js"]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += IMPORT.findall(MODULES[name])
    return found


def test_page_names_in_advance_exactly_the_modules_that_it_needs_at_first() -> None:
    index = (FOLDER / "index.html").read_text()
    assert set(re.findall(r'modulepreload" href="page/v/js/([\w-]+\.js)"', index)) == needed_at_first()


def test_first_load_is_below_100_kb_even_unpacked() -> None:
    files = page_files().files
    names = ["index.html", "style.css", "i18n/zh.json", "icons/icon.svg", *(f"js/{each}" for each in needed_at_first())]
    assert sum(len(files[name].packed or files[name].data) for name in names) < 50_000
    assert sum(len(files[name].data) for name in names) < 120_000


def test_dictionaries_have_the_same_keys_and_the_same_places_to_fill() -> None:
    assert CHINESE.keys() == ENGLISH.keys()
    for key, text in ENGLISH.items():
        forms = [text, CHINESE[key]]
        assert len({isinstance(form, dict) for form in forms}) == 1, key
        places = [{frozenset(re.findall(r"\{\w+\}", each)) for each in forms_of(form)} for form in forms]
        assert places[0] == places[1], key
        assert all(each for form in forms for each in forms_of(form)), key


def forms_of(text: Any) -> list[str]:
    """The forms of a text: of a plural all, else the one."""
    if isinstance(text, dict):
        assert "other" in text
        return list(text.values())
    return [text]


def test_dictionary_has_a_sentence_for_every_refusal_of_the_service() -> None:
    codes = {each.code for each in RequestError.__subclasses__()} | {RequestError.code}
    assert {f"error.{code}" for code in codes} <= ENGLISH.keys()


def test_dictionary_has_all_that_is_asked_of_it_and_nothing_else() -> None:
    everything = "\n".join(MODULES.values()) + (FOLDER / "index.html").read_text()
    asked = set(re.findall(r'"([\w.-]+)"', everything))
    told = {"saidDoneMany", "saidFailedMany", "cancelName", "retryName"}  # their names are put together
    unused = {key for key in ENGLISH if key not in asked | told and not key.startswith(("error.", "style."))}
    assert unused == set()
    html = set(re.findall(r'data-t(?:-label|-alt)?="(\w+)"', everything))
    scripts = set(re.findall(r'\bt\("([\w.-]+)"', everything))
    assert html | scripts <= ENGLISH.keys()


def test_dictionary_has_the_words_of_all_shipped_styles() -> None:
    shipped = {name: style for name, style in installed_styles().items() if name in SHIPPED_STYLES}
    words = {f"style.{name}": style.title for name, style in shipped.items()}
    words |= {f"style.{name}.summary": style.summary or "" for name, style in shipped.items()}
    assert {key: text for key, text in ENGLISH.items() if key.startswith("style.")} == words
    assert {style.credit for style in shipped.values()} == {re.findall('OURS = "(.+)"', MODULES["service.js"])[0]}


def test_english_in_the_page_is_that_of_the_dictionary() -> None:
    index = (FOLDER / "index.html").read_text()
    shown = re.findall(r'data-t="(\w+)">([^<]+)<', index)
    assert {key for key, _ in shown} >= {"title", "lede"}
    assert [key for key, text in shown if ENGLISH[key] != text] == []
    pictures = re.findall(r'data-t-alt="(\w+)" alt="([^"]+)"', index)
    assert [key for key, text in pictures if ENGLISH[key] != text] == []


def test_styles_say_how_long_jobs_keep_what(tmp_path: Path) -> None:
    shop = Shop(tmp_path, keep_for_s=600, keep_photos_for_s=3600)
    assert shop.http.get("/v1/styles").json()["jobs"] == {"keep_for_s": 600, "keep_photos_for_s": 600}
    shop.close()
