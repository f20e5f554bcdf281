import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import make_style
from safetensors import safe_open
from torch import Tensor

from serve_app.engine.fidelity import measure_psnr
from serve_app.engine.thumbnails import thumbnail_of
from serve_app.errors import StyleError
from serve_app.styles.catalogue import CatalogueEntry, installed_styles
from serve_app.styles.downloads import MIRROR_VARIABLE, address_of, download, git_blob_id

FILE = "small.pt"
CONTENT = b"a checkpoint, if one trusts its name"


@dataclass
class Mirror:
    """An HTTP server of this machine; what it answers and what it was asked."""

    address: str = ""
    status: int = 200
    content: bytes = CONTENT
    announced_bytes: int | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    answers = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            announced = len(answers.content) if answers.announced_bytes is None else answers.announced_bytes
            self.send_response(answers.status)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(answers.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        answers.address = f"http://127.0.0.1:{server.server_port}/weights"
        monkeypatch.setenv(MIRROR_VARIABLE, answers.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield answers
        server.shutdown()


def entry_of(content: bytes = CONTENT, **changes: Any) -> CatalogueEntry:
    digests = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "git_blob": git_blob_id(content),
    }
    style = make_style("small", source="http://upstream.invalid/small.pt").model_dump()
    return CatalogueEntry(**style | {"file": FILE} | digests | changes)


def refusal(entry: CatalogueEntry) -> str:
    with pytest.raises(StyleError) as caught:
        download(entry, show_progress=False)
    return str(caught.value)


def test_download_comes_from_the_mirror_in_the_environment(mirror: Mirror) -> None:
    assert download(entry_of(), show_progress=False) == CONTENT
    assert mirror.asked == ["/weights/small.pt"]


def test_address_is_the_source_without_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    assert address_of(entry_of()) == "http://upstream.invalid/small.pt"


def test_slash_at_the_mirrors_end_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "https://mirror.example/weights/")
    assert address_of(entry_of()) == "https://mirror.example/weights/small.pt"


@pytest.mark.parametrize("known", ["sha256", "git_blob"])
def test_one_known_digest_is_enough(mirror: Mirror, known: str) -> None:
    unknown: dict[str, Any] = {"sha256": None, "git_blob": None}
    del unknown[known]
    assert download(entry_of(bytes=None, **unknown), show_progress=False) == CONTENT


def test_wrong_sha256_is_refused(mirror: Mirror) -> None:
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    assert refusal(entry_of(sha256=wrong)) == (
        f"small.pt has sha256 {right}, not {wrong} as in the catalogue; nothing was kept."
    )


def test_wrong_git_blob_id_is_refused_though_the_sha256_is_right(mirror: Mirror) -> None:
    wrong = "0" * 40
    assert refusal(entry_of(git_blob=wrong)) == (
        f"small.pt has git blob id {git_blob_id(CONTENT)}, not {wrong} as in the catalogue; nothing was kept."
    )


def test_file_that_is_too_short_is_refused(mirror: Mirror) -> None:
    mirror.content = CONTENT[:-1]
    assert refusal(entry_of()) == (
        f"small.pt came with {len(CONTENT) - 1} bytes instead of {len(CONTENT)}; nothing was kept."
    )


def test_page_that_came_in_place_of_the_file_is_called_that(mirror: Mirror) -> None:
    mirror.content = b"<!DOCTYPE html><title>Sign in</title>"
    assert refusal(entry_of(bytes=None)) == (
        "small.pt came as a web page; download the file itself, by its raw address; nothing was kept."
    )


def test_file_that_is_too_long_is_cut_off(mirror: Mirror) -> None:
    mirror.content = CONTENT + b"!"
    assert refusal(entry_of()) == (
        f"{mirror.address}/small.pt sends more than the {len(CONTENT)} bytes expected; nothing was kept."
    )


def test_file_of_unknown_size_is_cut_off_at_the_general_limit(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.styles.downloads.MAX_BYTES", 10)
    assert refusal(entry_of(bytes=None)) == (
        f"{mirror.address}/small.pt sends more than the 10 bytes expected; nothing was kept."
    )


def test_answer_that_breaks_off_is_refused(mirror: Mirror) -> None:
    mirror.announced_bytes = len(CONTENT)
    mirror.content = CONTENT[:-1]
    assert refusal(entry_of()) == (
        f"{mirror.address}/small.pt cannot be reached or broke off; set ANIMEGAN_WEIGHTS_MIRROR to a mirror."
    )


@pytest.mark.parametrize("status", [404, 403, 500])
def test_answer_other_than_the_file_is_named_by_its_status(mirror: Mirror, status: int) -> None:
    mirror.status = status
    assert refusal(entry_of()) == (
        f"{mirror.address}/small.pt answered {status}; set ANIMEGAN_WEIGHTS_MIRROR to a mirror."
    )


def test_refused_connection_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        free = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv(MIRROR_VARIABLE, free)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert refusal(entry_of()) == (
        f"{free}/small.pt cannot be reached or broke off; set ANIMEGAN_WEIGHTS_MIRROR to a mirror."
    )


def test_silent_server_is_named(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def wait_in_vain(*_: object, **__: object) -> None:
        raise requests.ReadTimeout

    monkeypatch.setattr("serve_app.styles.downloads.requests.get", wait_in_vain)
    assert refusal(entry_of()) == (
        f"{mirror.address}/small.pt did not answer in time; set ANIMEGAN_WEIGHTS_MIRROR to a mirror."
    )


def test_file_without_a_known_digest_is_not_even_fetched(mirror: Mirror) -> None:
    assert refusal(entry_of(sha256=None, git_blob=None)) == (
        "The catalogue knows no digest of small.pt, so it is not pulled."
    )
    assert mirror.asked == []


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello world\n", "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"),
    ],
)
def test_git_blob_id_is_what_git_says(content: bytes, name: str) -> None:
    assert git_blob_id(content) == name


def offer(monkeypatch: pytest.MonkeyPatch, entry: CatalogueEntry) -> None:
    monkeypatch.setattr("serve_app.cli.main.read_catalogue", lambda: {entry.name: entry})


@pytest.mark.usefixtures("small_photograph")
def test_pulled_style_is_measured_installed_and_listed(
    mirror: Mirror,
    weights: Mapping[str, Tensor],
    checkpoint: bytes,
    styles_dir: Path,
    animegan: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirror.content = checkpoint
    offer(monkeypatch, entry_of(checkpoint, summary="For tests."))
    animegan("styles", "list")
    assert "small  can be pulled  align  Seeded; licence: MIT" in capsys.readouterr().out

    assert animegan("styles", "pull", "small") == 0
    assert capsys.readouterr().out == "small is installed (licence: MIT); restart the service to paint with it\n"
    with safe_open(styles_dir / "small.safetensors", framework="numpy") as file:
        assert "http://upstream.invalid/small.pt" in file.metadata()["animegan_style"]
    style = installed_styles()["small"]
    assert style.psnr_bf16 == measure_psnr(weights, style)
    assert style.summary == "For tests."
    assert style.thumbnail == (styles_dir / "small.webp").read_bytes() == thumbnail_of(weights, style)

    animegan("styles", "list")
    assert "small  installed      align  Seeded; licence: MIT" in capsys.readouterr().out


def test_pull_of_a_file_that_is_not_the_catalogues_leaves_nothing(
    mirror: Mirror,
    checkpoint: bytes,
    styles_dir: Path,
    animegan: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirror.content = checkpoint
    offer(monkeypatch, entry_of(checkpoint, sha256="0" * 64))
    assert animegan("styles", "pull", "small") == 1
    assert list(styles_dir.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("animegan: small.pt has sha256 ")
    assert line.endswith(f", not {'0' * 64} as in the catalogue; nothing was kept.")


def test_pull_of_a_file_that_is_vouched_for_but_no_generator_leaves_nothing(
    mirror: Mirror,
    styles_dir: Path,
    animegan: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, entry_of())
    assert animegan("styles", "pull", "small") == 1
    assert list(styles_dir.iterdir()) == []


def test_pull_of_a_style_that_is_not_in_the_catalogue_fetches_nothing(
    mirror: Mirror,
    animegan: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer(monkeypatch, entry_of())
    assert animegan("styles", "pull", "small", "ghibli") == 1
    assert capsys.readouterr().err == "animegan: the catalogue has no ghibli (known: small)\n"
    assert mirror.asked == []
