"""Thumbnails as they lie beside the files of styles: those that are served, and those that must do no harm."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.styles.catalogue import installed_styles, shipped_dir
from serve_app.styles.thumbnails import read_thumbnail, thumbnail_path

WEBP = b"RIFF\x10\0\0\0WEBPVP8 a picture"


@pytest.fixture
def style_file(styles_dir: Path) -> Path:
    """A style in the local folder; it has the name of the shipped one, and so goes before it."""
    path = styles_dir / "toon.safetensors"
    shutil.copy(shipped_dir() / "toon.safetensors", path)
    return path


def test_shipped_style_has_a_thumbnail() -> None:
    assert installed_styles()["toon"].thumbnail == (shipped_dir() / "toon.webp").read_bytes() != b""


def test_thumbnail_lies_beside_the_file_of_its_style() -> None:
    assert thumbnail_path(Path("folder/a.b.safetensors")) == Path("folder/a.b.webp")


def test_style_without_a_thumbnail_is_served_and_not_shown_by_that_of_another(
    style_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    style = installed_styles()["toon"]
    assert (style.path, style.thumbnail) == (style_file, b"")
    assert caplog.messages == []


@pytest.mark.parametrize("size", [len(WEBP), 63_999])
def test_small_webp_is_served_as_it_is(style_file: Path, size: int) -> None:
    data = WEBP.ljust(size, b"\0")
    thumbnail_path(style_file).write_bytes(data)
    style = installed_styles()["toon"]
    assert style.thumbnail == data
    assert "picture" not in repr(style)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_large(path: Path) -> None:
    path.write_bytes(WEBP.ljust(64_000, b"\0"))


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(WEBP)
        file.truncate(2**40)  # a hole, which takes no space


def holding(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (holding(b""), "it is no WebP file"),
        (holding(b"RIFF"), "it is no WebP file"),
        (holding(b"RIFF\x10\0\0\0WAVEfmt a sound"), "it is no WebP file"),
        (holding(b"<script>alert(1)</script>"), "it is no WebP file"),
        (holding(b"\xff\xd8\xff a photograph"), "it is no WebP file"),
        (holding(b"    " + WEBP), "it is no WebP file"),
        (make_large, "it must have less than 64000 bytes"),
        (make_huge, "it must have less than 64000 bytes"),
        (Path.mkdir, "it is no regular file"),
        (os.mkfifo, "it is no regular file"),
        (make_loop, "it cannot be read: Too many levels of symbolic links"),
    ],
    ids=["empty", "short", "wave", "html", "jpeg", "shifted", "large", "huge", "folder", "pipe", "loop"],
)
def test_what_is_no_thumbnail_is_said_and_the_style_is_served(
    style_file: Path, make: Callable[[Path], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = thumbnail_path(style_file)
    make(path)
    styles = installed_styles()
    assert (styles["toon"].thumbnail, styles.left_out) == (b"", [])
    assert caplog.messages == [f"the thumbnail {path} is not served: {said}"]


def test_thumbnail_that_may_not_be_read_is_said_and_the_style_is_served(
    style_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = thumbnail_path(style_file)
    path.write_bytes(WEBP)
    opened = Path.open

    def refuse(file: Path, mode: str) -> object:  # root, who may run the tests, may read everything
        if file == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(file, mode)

    monkeypatch.setattr(Path, "open", refuse)
    assert installed_styles()["toon"].thumbnail == b""
    assert caplog.messages == [f"the thumbnail {path} is not served: it cannot be read: Permission denied"]


def test_name_of_a_thumbnail_need_not_be_utf_8(styles_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(os.fsdecode(os.fsencode(styles_dir) + b"/caf\xe9.safetensors"))
    thumbnail_path(path).write_bytes(b"no picture")
    assert read_thumbnail(path) == b""
    assert caplog.messages == [f"the thumbnail {styles_dir}/caf\\xe9.webp is not served: it is no WebP file"]


def test_replaced_thumbnail_is_read_at_the_next_start(style_file: Path) -> None:
    thumbnail_path(style_file).write_bytes(WEBP)
    styles = installed_styles()
    thumbnail_path(style_file).write_bytes(WEBP + b" of another style")
    assert styles["toon"].thumbnail == WEBP
    assert installed_styles()["toon"].thumbnail == WEBP + b" of another style"
