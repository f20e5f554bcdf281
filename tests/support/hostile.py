"""Files that are made to cost far more than a photograph, each as long as a test asks for."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from serve_app.frames import StylizeRequest

Maker = Callable[[int], bytes]


def request(**changes: Any) -> StylizeRequest:
    values: dict[str, Any] = {"style": "toon", "max_side": 1024, "multiple": 1, "format": "jpeg"}
    return StylizeRequest(**values | changes)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(side: int) -> Image.Image:
    return Image.effect_noise((side, side), 60).convert("RGB")


def jpeg_of_scans(count: int, side: int = 1024) -> bytes:
    """A progressive JPEG whose last scan is repeated: each goes over all coefficients, and has 80 bytes."""
    data = saved(Image.new("RGB", (side, side), "teal"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def jpeg_of_segments(count: int) -> bytes:
    data = saved(noise(64), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * count + data[2:]


def jpeg_of_exif(count: int) -> bytes:
    """Pillow joins the EXIF of all segments, one by one."""
    data = saved(noise(64), "JPEG")
    body = b"Exif\0\0" + bytes(60_000)
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body) * (count // 60_000) + data[2:]


def jpeg_of_filling(count: int) -> bytes:
    data = saved(noise(64), "JPEG")
    return data[:2] + b"\xff" * count + data[2:]


def jpeg_of_junk(count: int) -> bytes:
    data = saved(noise(64), "JPEG")
    return data[:20] + b"\0" * count + data[20:]


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_chunks(count: int, kind: bytes = b"tEXt") -> bytes:
    data = saved(noise(64), "PNG")
    return data[:33] + png_chunk(kind) * count + data[33:]


def png_of_empty_pixel_chunks(count: int) -> bytes:
    return png_of_chunks(count, b"IDAT")


def png_of_text(count: int) -> bytes:
    """Text that unpacks to a thousand times its size, a million bytes in each chunk."""
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9))
    data = saved(noise(64), "PNG")
    return data[:33] + text * (count // len(text)) + data[33:]


def png_of_late_header(count: int) -> bytes:
    data = saved(noise(64), "PNG")
    return data[:8] + png_chunk(b"tEXt") * count + data[8:]


def gif_of_extensions(count: int) -> bytes:
    data = saved(noise(64), "GIF")
    start = 13 + 3 * 256
    return data[:start] + b"!\xfe\1a\0" * count + data[start:]


def gif_of_junk(count: int) -> bytes:
    data = saved(noise(64), "GIF")
    start = 13 + 3 * 256
    return data[:start] + b"\0" * count + data[start:]


def webp_of_chunks(count: int) -> bytes:
    data = saved(noise(64), "WEBP", exif=b"Exif\0\0")
    body = data[12:30] + b"abcd\0\0\0\0" * count + data[30:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff_of_tags(count: int) -> bytes:
    """A directory of 60,000 tags, each of which says that it holds all of the file."""
    entries = b"".join(struct.pack("<HHII", 1000 + i, 1, count, 8) for i in range(60_000))
    return b"II*\0" + struct.pack("<I", count + 8) + bytes(count) + struct.pack("<H", 60_000) + entries + bytes(4)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def avif_of_boxes(count: int) -> bytes:
    data = saved(noise(64), "AVIF")
    (length,) = struct.unpack_from(">I", data)
    return data[:length] + box(b"free", b"") * count + data[length:]


def avif_of_properties(count: int) -> bytes:
    properties = box(b"ispe", struct.pack(">III", 0, 64, 64)) * count
    meta = box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", properties)))
    return box(b"ftyp", b"avif\0\0\0\0avifmif1") + meta


def avif_of_items(count: int) -> bytes:
    items = b"".join(box(b"infe", b"\2\0\0\0" + struct.pack(">HH", i % 65535, 0) + b"av01\0") for i in range(count))
    meta = box(b"meta", bytes(4) + box(b"iinf", b"\1\0\0\0" + struct.pack(">I", count) + items))
    return box(b"ftyp", b"avif\0\0\0\0avifmif1") + meta


def heif_of_boxes(count: int) -> bytes:
    return box(b"ftyp", b"heic\0\0\0\0heicmif1") + box(b"free", b"") * count


def heif_of_items(count: int) -> bytes:
    return avif_of_items(count).replace(b"avif\0\0\0\0avif", b"heic\0\0\0\0heic")


def avif_larger_than_it_says(side: int) -> bytes:
    data = saved(Image.new("RGB", (side, side), "teal"), "AVIF", speed=10)
    return data.replace(struct.pack(">II", side, side), struct.pack(">II", 64, 64), 1)


# Each makes a file of so many pieces or bytes.
LONG_HEADERS: dict[str, tuple[Maker, int]] = {
    "jpeg of segments": (jpeg_of_segments, 8_000_000),
    "jpeg of exif": (jpeg_of_exif, 32_000_000),
    "jpeg of filling": (jpeg_of_filling, 32_000_000),
    "jpeg of junk": (jpeg_of_junk, 32_000_000),
    "png of chunks": (png_of_chunks, 2_500_000),
    "png of empty pixel chunks": (png_of_empty_pixel_chunks, 2_500_000),
    "png of text": (png_of_text, 32_000_000),
    "png of a late header": (png_of_late_header, 2_500_000),
    "gif of extensions": (gif_of_extensions, 6_000_000),
    "gif of junk": (gif_of_junk, 32_000_000),
    "webp of chunks": (webp_of_chunks, 4_000_000),
    "tiff of tags": (tiff_of_tags, 30_000_000),
    "avif of boxes": (avif_of_boxes, 4_000_000),
    "avif of properties": (avif_of_properties, 1_500_000),
    "avif of items": (avif_of_items, 1_500_000),
    "heif of boxes": (heif_of_boxes, 4_000_000),
    "heif of items": (heif_of_items, 1_500_000),
}
