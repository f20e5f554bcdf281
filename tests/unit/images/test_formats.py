"""What Pillow's plugins do not do right: small frames of GIF, and sound files of kinds that are not read."""

import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from decoding import decoded, ramp, refusal, save
from PIL import Image
from shared import ROOT, SHARED, needs_shared

from serve_app.images.formats import with_ascii_items

DATA = ROOT / "tests" / "data"


def gif_with_frame_at(
    left: int, top: int, screen: tuple[int, int], transparent: bool = False, **options: object
) -> bytes:
    """A GIF of 24 x 16 pixels at some place of a screen."""
    image = Image.fromarray(ramp(16, 24)).quantize(64)
    if transparent:
        image.paste(200, (0, 0, 8, 16))  # no other pixel has this index
        options["transparency"] = 200
    data = bytearray(save(image, "GIF", optimize=False, **options))
    struct.pack_into("<HH", data, 6, *screen)
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 13
    while data[at] != ord(","):
        at += 2  # an extension: its label, then blocks
        while data[at]:
            at += 1 + data[at]
        at += 1
    struct.pack_into("<HH", data, at + 1, left, top)
    return bytes(data)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (8, 10), (16, 24)])
def test_margin_around_a_small_first_frame_is_transparent(place: tuple[int, int], transparent: bool) -> None:
    left, top = place
    result = decoded(gif_with_frame_at(left, top, (40, 40), transparent))
    assert result.size == (40, 40)
    assert result.alpha is not None
    opacity = np.zeros((40, 40), bool)
    opacity[top : top + 16, left + 8 * transparent : left + 24] = True
    assert np.array_equal(result.alpha, 255 * opacity)
    assert (result.frame[~opacity] == 255).all()
    quantized = np.asarray(Image.fromarray(ramp(16, 24)).quantize(64).convert("RGB"))
    assert np.array_equal(result.frame[top : top + 16, left + 8 : left + 24], quantized[:, 8:])


def test_frame_that_fills_the_screen_or_reaches_beyond_it_is_opaque() -> None:
    assert decoded(gif_with_frame_at(0, 0, (24, 16))).alpha is None
    wider = decoded(gif_with_frame_at(4, 0, (24, 16)))
    assert wider.size == (16, 28)
    assert wider.alpha is not None
    assert (wider.alpha[:, :4] == 0).all()


def test_interlaced_frame_and_grey_ones_have_their_margin_too() -> None:
    grey = Image.fromarray(ramp(16, 24)[..., 0])
    data = bytearray(save(grey, "GIF", interlace=1))
    struct.pack_into("<HH", data, 6, 40, 16)
    result = decoded(bytes(data))
    assert result.alpha is not None
    assert (result.alpha[:, 24:] == 0).all()
    assert np.array_equal(result.frame[:, :24, 0], np.asarray(grey))


@pytest.mark.parametrize("codec", ["av01", "avc1", "jpeg", "j2k1", "vvc1", "unci"])
def test_heif_of_another_codec_is_sound_but_not_read(codec: str) -> None:
    data = (DATA / "heic_nclx_p3.heic").read_bytes().replace(b"hvc1", codec.encode())
    refused = refusal(data)
    assert refused.code == "unsupported-format"
    assert "This HEIF is coded as" in str(refused)


def test_heif_that_is_cut_off_is_damaged() -> None:
    assert refusal((DATA / "heic_nclx_p3.heic").read_bytes()[:400]).code == "broken-image"


MASKS = {
    "BGRA": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    "RGBA": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    "ABGR": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
}


def bmp_with_alpha(
    alpha: int | np.ndarray, order: str = "BGRA", header_bytes: int = 124, top_down: bool = False
) -> bytes:
    """A BMP of ramp() in 32 bits with a mask for alpha."""
    colours = dict(zip("RGB", np.moveaxis(ramp(), -1, 0), strict=True))
    height, width = ramp().shape[:2]
    pixels = np.stack([colours.get(channel, np.broadcast_to(alpha, (height, width))) for channel in order], -1)
    rows = pixels.astype(np.uint8)[:: 1 if top_down else -1].tobytes()
    header = struct.pack(
        "<IiiHHIIiiII", header_bytes, width, -height if top_down else height, 1, 32, 3, len(rows), *[0] * 4
    )
    header = (header + struct.pack("<4I", *MASKS[order])).ljust(header_bytes, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header_bytes", [56, 108, 124])
@pytest.mark.parametrize("order", MASKS)
def test_alpha_of_a_bmp_that_is_0_everywhere_does_not_count(order: str, header_bytes: int, top_down: bool) -> None:
    result = decoded(bmp_with_alpha(0, order, header_bytes, top_down))
    assert result.alpha is None
    assert np.array_equal(result.frame, ramp())


@pytest.mark.parametrize("order", MASKS)
def test_alpha_of_a_bmp_that_is_not_0_everywhere_counts(order: str) -> None:
    alpha = np.zeros(ramp().shape[:2], np.uint8)
    alpha[20, 30] = 1
    result = decoded(bmp_with_alpha(alpha, order))
    assert result.alpha is not None
    assert np.array_equal(result.alpha, alpha)


@pytest.mark.parametrize(("bits", "compression"), [(64, 0), (16, 3), (24, 4), (24, 5), (2, 0)])
def test_rare_kind_of_bmp_is_sound_but_not_read(bits: int, compression: int) -> None:
    data = bytearray(save(Image.fromarray(ramp()), "BMP"))
    struct.pack_into("<HI", data, 28, bits, compression)
    assert "rare kind of BMP" in str(refusal(bytes(data)))


@pytest.mark.parametrize("header_bytes", [40, 108, 124])
@pytest.mark.parametrize(("compression", "inside"), [(4, "JPEG"), (5, "PNG")])
def test_bmp_that_holds_another_file_is_sound_but_not_read(compression: int, inside: str, header_bytes: int) -> None:
    body = save(Image.fromarray(ramp()), inside)
    header = struct.pack("<IiiHHIIiiII", header_bytes, 64, 48, 1, 0, compression, len(body), 0, 0, 0, 0)
    start = struct.pack("<IHHI", 14 + header_bytes + len(body), 0, 0, 14 + header_bytes)
    refused = refusal(b"BM" + start + header.ljust(header_bytes, b"\0") + body)
    assert refused.code == "unsupported-format"
    assert "rare kind of BMP" in str(refused)


@pytest.mark.parametrize(("bits", "compression"), [(0, 0), (0, 3), (30_000, 0), (24, 77)])
def test_bmp_of_impossible_depth_or_compression_is_damaged(bits: int, compression: int) -> None:
    data = bytearray(save(Image.fromarray(ramp()), "BMP"))
    struct.pack_into("<HI", data, 28, bits, compression)
    assert refusal(bytes(data)).code == "broken-image"


def test_avif_whose_container_libheif_does_not_take_keeps_its_pixels() -> None:
    """The code points are then not told; the picture must not suffer."""
    data = (DATA / "avif_nclx_bt709.avif").read_bytes()
    plain = decoded(data).frame
    assert np.array_equal(decoded(data.replace(b"nclx", b"????")).frame, plain)


def infe(item: int, kind: bytes, name: bytes = b"") -> bytes:
    content = b"\x02\0\0\0" + struct.pack(">HH", item, 0) + kind + name + b"\0"
    return struct.pack(">I4s", 8 + len(content), b"infe") + content


def test_items_of_a_heif_are_made_ascii_and_nothing_else_is() -> None:
    before, pixels = infe(0xFFFE, b"hvc1", b"name"), b"\xff\xd8\xe2infe\xff"
    broken = infe(0xFFFD, b"mime", b"\0application/\xe2df+xml") + infe(3, b"\xe2xif")
    whole = infe(0xFFFD, b"mime", b"\0application/?df+xml") + infe(3, b"?xif")
    assert with_ascii_items(pixels + before + broken + before + pixels) == pixels + before + whole + before + pixels
    assert with_ascii_items(pixels + before) == pixels + before
    endless = struct.pack(">I4s", 2**32 - 1, b"infe") + b"\x02" + bytes(7) + b"\xe2" * 9
    assert len(with_ascii_items(endless * 1000)) == 1000 * len(endless)


def test_hostile_items_are_not_read_again_and_again() -> None:
    data = (b"\xff\xff\xff\xffinfe\x02" + b"a" * 7) * 100_000
    began = time.thread_time()
    with_ascii_items(data)
    assert time.thread_time() - began < 2


def size_in_another_process(data: bytes, format: str, tmp_path: Path) -> str:
    """Opens a file in a process of its own, since pi-heif used to crash on it."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    opened = f"open_as(open({str(path)!r}, 'rb').read(), {format!r})"
    script = f"from serve_app.images.formats import open_as; print({opened}.size)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.returncode
    return run.stdout.strip()


def test_avif_whose_metadata_is_of_an_invalid_type_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    data = save(Image.fromarray(ramp()), "AVIF", exif=exif)
    at = data.index(b"Exif", data.index(b"infe"))
    assert size_in_another_process(data[:at] + b"\xe2" + data[at + 1 :], "AVIF", tmp_path) == "(64, 48)"


@needs_shared
@pytest.mark.parametrize("place", [b"Exif", b"application/rdf+xml"])
def test_heic_whose_metadata_is_of_an_invalid_type_is_read(place: bytes, tmp_path: Path) -> None:
    data = (SHARED / "photos" / "heic" / "empty_icc_1025x900.heic").read_bytes()
    at = data.index(place, data.index(b"infe"))
    assert size_in_another_process(data[:at] + b"\xe2" + data[at + 1 :], "HEIF", tmp_path) == "(1025, 900)"
