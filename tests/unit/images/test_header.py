"""Headers: the size that each format states, and a bounded price whatever the file."""

import io
import struct
import time
from pathlib import Path

import hostile
import pytest
from PIL import Image
from shared import files_of, name_of, needs_shared

from serve_app.errors import BrokenImage, RequestError, UnsupportedFormat
from serve_app.frames import Size
from serve_app.images.decode import decode, open_image
from serve_app.images.header import MAX_STEPS, ImageHeader, read_header
from serve_app.images.resize import painted_size

FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"]
REQUEST = hostile.request(max_side=100, multiple=4)


def saved(format: str = "JPEG", **options: object) -> bytes:
    return hostile.saved(Image.new("RGB", (203, 301), "teal"), format, **options)


@pytest.mark.parametrize("format", FORMATS)
def test_header_states_the_format_and_the_stored_size(format: str) -> None:
    assert read_header(saved(format=format)) == ImageHeader(format, Size(301, 203))


@pytest.mark.parametrize("options", [{"lossless": True}, {"xmp": b"<x/>"}, {}])
def test_each_kind_of_webp_states_its_size(options: dict[str, object]) -> None:
    data = saved(format="WEBP", **options)
    assert data[12:16] == {"lossless": b"VP8L", "xmp": b"VP8X"}.get(next(iter(options), ""), b"VP8 ")
    assert read_header(data).stored == (301, 203)


@pytest.mark.parametrize("options", [{"big_tiff": True}, {"compression": "tiff_lzw"}])
def test_each_kind_of_tiff_states_its_size(options: dict[str, object]) -> None:
    assert read_header(saved(format="TIFF", **options)).stored == (301, 203)


def test_tiff_of_the_other_byte_order_states_its_size() -> None:
    tags = struct.pack(">HHHIHHHHIHH", 2, 256, 3, 1, 203, 0, 257, 3, 1, 301, 0)
    assert read_header(b"MM\0*" + struct.pack(">I", 8) + tags).stored == (301, 203)


def test_rows_of_a_bitmap_may_run_from_the_top() -> None:
    data = bytearray(saved(format="BMP"))
    struct.pack_into("<i", data, 22, -301)
    assert read_header(bytes(data)).stored == (301, 203)


def test_first_frame_of_a_gif_enlarges_the_canvas() -> None:
    data = bytearray(saved(format="GIF"))
    struct.pack_into("<HH", data, 6, 50, 400)
    assert read_header(bytes(data)).stored == (400, 203)


def test_size_of_a_jpeg_is_found_behind_filling_junk_and_other_segments() -> None:
    data = saved()
    data = data[:2] + b"\xff\xff\xff\xfe\0\4ab" + b"junk\xff\0" + data[2:]
    assert read_header(data).stored == (301, 203)


@pytest.mark.parametrize("turn", [1, 6])
def test_pixels_that_will_be_painted_are_known_from_the_header(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(exif=exif)
    header = read_header(data[:2000])
    assert header.stored is not None
    assert painted_size(header.stored, 100, 4).pixels == decode(data, REQUEST, 64_000_000).size.pixels


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(UnsupportedFormat):
        read_header(b"no picture")


@pytest.mark.parametrize("format", FORMATS)
def test_file_that_ends_inside_its_header_is_refused_or_unknown(format: str) -> None:
    data = saved(format=format)
    if format == "AVIF":
        assert read_header(data[:60]).stored is None
        return
    with pytest.raises(BrokenImage, match="ends before it is complete"):
        read_header(data[:16])


@pytest.mark.slow
@pytest.mark.parametrize("kind", hostile.LONG_HEADERS)
def test_header_is_read_in_a_bounded_number_of_steps(kind: str) -> None:
    """A tenth of a second of CPU is fifty times what the worst takes, and a tenth of what Pillow would take."""
    make, count = hostile.LONG_HEADERS[kind]
    data = make(count)
    began = time.thread_time()
    header = read_header(data)
    assert time.thread_time() - began < 0.1
    assert header.format == kind.split()[0].upper()
    assert header.stored in (None, (64, 64))


@pytest.mark.parametrize(
    "make",
    [hostile.jpeg_of_segments, hostile.gif_of_extensions, hostile.gif_of_junk, hostile.avif_of_boxes],
)
def test_size_beyond_the_steps_is_unknown_and_within_them_is_known(make: hostile.Maker) -> None:
    assert read_header(make(100)).stored == (64, 64)
    assert read_header(make(2 * MAX_STEPS)).stored is None


@needs_shared
@pytest.mark.parametrize("path", files_of("photos"), ids=name_of)
def test_header_of_every_photo_states_the_size_that_the_decoder_finds(path: Path) -> None:
    data = path.read_bytes()
    header = read_header(data)
    image = open_image(data, header, 64_000_000)
    assert header.format == image.format
    if header.format == "HEIF":  # the largest of its images
        assert header.stored is not None
        assert header.stored.pixels >= image.width * image.height
    else:
        assert header.stored == (image.height, image.width)


@needs_shared
@pytest.mark.parametrize("path", files_of("bad"), ids=name_of)
def test_header_of_every_hostile_file_is_read_or_refused(path: Path) -> None:
    data = path.read_bytes()
    for end in (*range(0, 200, 7), len(data)):
        try:
            header = read_header(data[:end])
        except RequestError:
            continue
        assert header.stored is None or min(header.stored) > 0


def test_mpo_is_a_jpeg() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (203, 301))
    image.save(buffer, "MPO", save_all=True, append_images=[image])
    assert read_header(buffer.getvalue()) == ImageHeader("JPEG", Size(301, 203))
