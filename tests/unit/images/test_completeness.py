"""WebP, AVIF and HEIC that were cut off are said to be incomplete, and only those."""

import struct
import time

import numpy as np
import pytest
from decoding import decoded, ramp, refusal, save
from PIL import Image
from shared import ROOT

from serve_app.images.completeness import MAX_EXTENTS, extents, is_cut_off

IMAGE = Image.fromarray(ramp())
HEIC = (ROOT / "tests" / "data" / "heic_nclx_p3.heic").read_bytes()
FILES: dict[str, bytes] = {
    "lossy WebP": save(IMAGE, "WEBP"),
    "lossless WebP": save(IMAGE, "WEBP", lossless=True),
    "WebP with metadata": save(IMAGE, "WEBP", xmp=b"<x/>"),
    "animated WebP": save(IMAGE, "WEBP", save_all=True, append_images=[IMAGE.rotate(180)]),
    "AVIF": save(IMAGE, "AVIF"),
    "HEIC": HEIC,
}
FORMATS = {"AVIF": "AVIF", "HEIC": "HEIF"}


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def locations(version: int, *ends: int, method: int = 0, base: int = 0) -> bytes:
    """A file whose `iloc` states pieces that end somewhere."""
    content = bytes([version, 0, 0, 0, 0x44, 0x44 if version else 0x40])
    content += struct.pack(">I" if version == 2 else ">H", len(ends))
    for end in ends:
        content += struct.pack(">I" if version == 2 else ">H", 1)
        content += struct.pack(">H", method) if version else b""
        content += struct.pack(">HIH", 0, base, 1) + (bytes(4) if version else b"")
        content += struct.pack(">II", end - 10 - base, 10)
    return box(b"ftyp", b"heic") + box(b"meta", bytes(4) + box(b"hdlr", b"") + box(b"iloc", content))


def last_box_open(data: bytes) -> bytes:
    """The file with an `mdat` that goes on to its end, whatever that is."""
    at = data.rindex(b"mdat") - 4
    return data[:at] + bytes(4) + data[at + 4 :]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_file_that_is_cut_off_is_said_to_be_incomplete(kind: str, share: float) -> None:
    data = FILES[kind]
    decoded(data)
    for extra in range(4):
        cut = data[: max(int(share * len(data)), 40) + extra]
        assert "ends before it is complete" in str(refusal(cut)), len(cut)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kept", [-1, -40])
def test_file_whose_last_box_states_no_size_is_incomplete_by_its_extents(kind: str, kept: int) -> None:
    data = last_box_open(FILES[kind])
    decoded(data)
    assert "ends before it is complete" in str(refusal(data[:kept]))


@pytest.mark.parametrize("kind", FORMATS)
def test_file_cut_off_between_two_boxes_is_incomplete(kind: str) -> None:
    data = FILES[kind]
    at = data.rindex(b"mdat") - 4
    first = int.from_bytes(data[:4], "big")
    for cut in (at, at + 3, first, first + 3):
        assert "ends before it is complete" in str(refusal(data[:cut])), cut


@pytest.mark.parametrize("kind", FILES)
def test_whole_file_that_is_damaged_is_not_said_to_be_incomplete(kind: str) -> None:
    data = FILES[kind].replace(b"ispe", b"????") if kind in FORMATS else FILES[kind][:12] + b"XXXX" + FILES[kind][16:]
    assert "is damaged or malformed" in str(refusal(data))


def test_length_that_a_decoder_does_not_mind_changes_nothing() -> None:
    whole = decoded(HEIC).frame
    assert np.array_equal(decoded(HEIC + struct.pack(">I4s", 4000, b"free")).frame, whole)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_pieces_are_found_in_each_version_of_iloc(version: int) -> None:
    size = len(locations(version, 0x20, 0x20))
    assert not is_cut_off(locations(version, size, 20), "HEIF")
    assert is_cut_off(locations(version, 20, size + 1), "HEIF")
    assert is_cut_off(locations(version, 20, size + 1, base=7), "HEIF")
    if version:
        assert not is_cut_off(locations(version, 20, size + 1, method=1), "HEIF")


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
@pytest.mark.parametrize("version", [0, 1, 2, 255])
def test_hostile_iloc_takes_a_bounded_number_of_steps(version: int, filler: bytes) -> None:
    content = bytes([version, 0, 0, 0]) + filler * 2_000_000
    steps = 0
    try:
        for _ in extents(content, 0):
            steps += 1
    except struct.error:
        pass
    assert steps <= MAX_EXTENTS


@pytest.mark.parametrize("kind", FILES)
def test_noise_raises_nothing(kind: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        data = np.frombuffer(FILES[kind], np.uint8).copy()
        data[random.integers(12, len(data), 20)] = random.integers(0, 256, 20)
        assert is_cut_off(data.tobytes(), FORMATS.get(kind, "WEBP")) in (True, False)


def test_only_the_first_of_many_meta_boxes_is_read() -> None:
    iloc = box(b"iloc", bytes(4) + b"\0\0" + b"\xff" * 2000)
    data = box(b"ftyp", b"heic") + box(b"meta", bytes(4) + iloc) * 1000
    began = time.thread_time()
    assert not is_cut_off(data, "HEIF")
    assert time.thread_time() - began < 1
