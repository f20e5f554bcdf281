"""JPEG: files without an end marker, what turns a picture, and kinds that are not read."""

from typing import Any

import imagecodecs
import numpy as np
import pytest
from decoding import decoded, ramp, refusal, save
from PIL import Image

from serve_app.images.jpeg import has_all_scans

NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8).repeat(2, 0).repeat(2, 1))
SMOOTH = Image.fromarray(ramp(75, 101))
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "fine": {"quality": 98, "subsampling": 0},
    "coarse": {"quality": 20},
    "restarts": {"restart_marker_blocks": 2},
    "rows": {"restart_marker_rows": 1},
}
END = b"\xff\xd9"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("picture", [NOISY, SMOOTH], ids=["noisy", "smooth"])
def test_file_that_lacks_only_its_end_marker_is_painted(picture: Image.Image, kind: str, mode: str) -> None:
    whole = save(picture.convert(mode), "JPEG", **KINDS[kind])
    frame = decoded(whole).frame
    assert whole.endswith(END)
    assert np.array_equal(decoded(whole[:-2]).frame, frame)
    assert np.array_equal(decoded(whole[:-2] + bytes(300)).frame, frame)  # filled up, as file systems do


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("picture", [NOISY, SMOOTH], ids=["noisy", "smooth"])
def test_file_that_lacks_more_ends_too_early(picture: Image.Image, kind: str, mode: str) -> None:
    whole = save(picture.convert(mode), "JPEG", **KINDS[kind])
    room = len(whole) - 700  # of headers
    for cut in [1, *range(3, 12), 20, 50, 100, 200, 400, 800, 1600, 3200]:
        if cut < room:
            assert "ends before it is complete" in str(refusal(whole[:-cut])), cut


def test_file_cut_between_two_restarts_ends_too_early() -> None:
    whole = save(NOISY, "JPEG", restart_marker_blocks=2)
    for marker in range(0xD0, 0xD8):
        at = whole.rindex(bytes([0xFF, marker]))
        assert "ends before it is complete" in str(refusal(whole[:at])), marker


def test_file_cut_between_two_scans_ends_too_early() -> None:
    whole = save(NOISY, "JPEG", progressive=True)
    cut = whole[: whole.rindex(b"\xff\xda")]
    cut = cut[: cut.rindex(b"\xff\xc4")]  # the tables of the last scan belong to it
    assert not has_all_scans(cut)
    assert "ends before it is complete" in str(refusal(cut))


def test_end_is_told_at_the_size_that_is_painted_too() -> None:
    large = save(Image.fromarray(ramp(800, 1200)), "JPEG", quality=90)
    assert np.array_equal(decoded(large[:-2], max_side=150).frame, decoded(large, max_side=150).frame)
    assert "ends before it is complete" in str(refusal(large[: len(large) // 2]))


def test_thumbnail_in_the_metadata_does_not_end_the_picture() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x"
    whole = save(SMOOTH, "JPEG", exif=exif.tobytes() + b"\xff\xd8\xff\xda\0\2" + END)
    assert np.array_equal(decoded(whole[:-2]).frame, decoded(whole).frame)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_xmp_turns_nothing(format: str) -> None:
    image = Image.fromarray(ramp())
    data = save(image, format, **({"tiffinfo": {700: XMP}} if format == "TIFF" else {"xmp": XMP}))
    if format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        data = save(image, format, pnginfo=info)
    assert b'tiff:Orientation="6"' in data
    assert decoded(data).size == (48, 64)


def test_exif_turns_even_if_xmp_says_otherwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = save(SMOOTH, "JPEG", xmp=XMP, exif=exif, quality=95)
    plain = decoded(save(SMOOTH, "JPEG", quality=95)).frame
    assert np.array_equal(decoded(data).frame, plain[::-1, ::-1])


def test_exif_without_a_turn_leaves_the_picture_though_xmp_would_turn_it() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    assert decoded(save(SMOOTH, "JPEG", xmp=XMP, exif=exif)).size == (75, 101)


def frame_changed(marker: int, bits: int, channels: int | None = None) -> bytes:
    data = bytearray(save(SMOOTH, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    if channels is not None:
        data[at + 9] = channels
    return bytes(data)


def jpeg_ls(samples: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegls_encode(samples))


UNREAD = {
    "JPEG-LS": jpeg_ls(ramp()),
    "grey JPEG-LS": jpeg_ls(ramp()[..., 0]),
    "JPEG-LS in 16 bits": jpeg_ls(ramp()[..., 0].astype(np.uint16) * 257),
    "JPEG-LS with extensions": jpeg_ls(ramp()).replace(b"\xff\xf7", b"\xff\xf9", 1),
    "JPEG-LS with a comment": b"\xff\xd8\xff\xfe\0\5abc" + jpeg_ls(ramp())[2:],
    "12 bits": frame_changed(0xC1, 12),
    "lossless": frame_changed(0xC3, 8),
    "lossless in 16 bits": frame_changed(0xC3, 16),
    "hierarchical": frame_changed(0xC5, 8),
    "two channels": frame_changed(0xC0, 8, 2),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_sound_kind_that_is_not_read_is_refused_in_words(kind: str) -> None:
    refused = refusal(UNREAD[kind])
    assert refused.code == "unsupported-format"
    assert "save it as an ordinary JPEG" in str(refused)
    assert ("This is a JPEG-LS," in str(refused)) is ("JPEG-LS" in kind)


def test_nonsense_in_the_frame_header_is_damage() -> None:
    assert refusal(frame_changed(0xC0, 3)).code == "broken-image"
    assert refusal(frame_changed(0xC3, 77)).code == "broken-image"
    assert refusal(frame_changed(0xF7, 77)).code == "broken-image"
