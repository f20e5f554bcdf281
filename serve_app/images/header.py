"""Reads the format and the size of an image file from its first bytes, without an image library.

However a file is made, a bounded number of steps is taken. A header that lies beyond them is not an error: the size is
then unknown, and the process that decodes the file finds it.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serve_app.errors import BrokenImage, TooManyPixels, UnsupportedFormat
from serve_app.frames import Size
from serve_app.images.others import name_kind
from serve_app.images.raw import refuse_raw

READABLE = "JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP and TIFF"
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}

MAX_STEPS = 1024  # segments, boxes, tags or blocks; 32 MiB are 512 of the largest segments of a JPEG
MAX_SEARCHED = 65_536  # bytes between the segments of a JPEG: filling, or junk

JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
JPEG_FRAMES = {*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC}  # SOF: these segments hold the size
JPEG_SCAN = 0xDA
JPEG_BARE = {*range(0xD0, 0xDA), 0xC8, *range(0xF0, 0xFE)}  # markers without a length

TIFF_WIDTH, TIFF_HEIGHT = 256, 257
TIFF_INTEGERS = {3: "H", 4: "I", 16: "Q"}


class BeyondReach(Exception):
    """The size lies further inside the file than is read here."""


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
        format: Pillow's name of it.
        stored: the size of its pixels as stored, before any rotation; None where that is not known without decoding.
    """

    format: str
    stored: Size | None


def read_header(data: bytes) -> ImageHeader:
    """Recognises the format and reads the size that the file states.

    Raises:
        UnsupportedFormat: if it is not one of the formats read here.
        BrokenImage: if the file ends inside its header.
    """
    format = sniff(data)
    try:
        stored = SIZES[format](data)
    except BeyondReach:
        stored = None
    except (struct.error, IndexError):
        raise BrokenImage("The picture ends before it is complete; send the whole file.") from None
    return ImageHeader(format, stored if stored and min(stored) > 0 else None)


def refuse_large(stated: Size, max_pixels: int) -> None:
    """Checks the size that the header states.

    Raises:
        TooManyPixels: if it has more than `max_pixels`.
    """
    if stated.pixels > max_pixels:
        raise TooManyPixels(
            f"The picture is {stated}, {stated.pixels} pixels; at most {max_pixels} are decoded here. Send it smaller.",
            max_pixels,
            stated.pixels,
            "pixels",
        )


def sniff(data: bytes) -> str:
    """Recognises a format by the first bytes of the file, and returns Pillow's name of it.

    Raises:
        UnsupportedFormat: if it is not one of the formats read here, or a camera's raw file.
    """
    refuse_raw(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        brands = {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}  # major, minor version, compatible ...
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEIF_BRANDS:
            return "HEIF"
    for signature, name in SIGNATURES.items():
        if data.startswith(signature):
            return name
    raise unsupported(data)


def unsupported(data: bytes) -> UnsupportedFormat:
    """Returns the refusal of a file of another format; it names the kind where that can be told."""
    kind = name_kind(data) or "no picture that is known here"
    return UnsupportedFormat(f"The upload is {kind}. Send it as one of these: {READABLE}.")


def jpeg_size(data: bytes) -> Size | None:
    """Reads the first frame segment; Pillow's rules say what is skipped before it."""
    position, unsearched = 2, MAX_SEARCHED
    for _ in range(MAX_STEPS):
        found = JPEG_MARKER.search(data, position, position + unsearched)
        if found is None:
            if position + unsearched < len(data):
                raise BeyondReach
            raise struct.error
        unsearched -= found.start() - position
        position, code = found.end(), data[found.start() + 1]
        if code in JPEG_FRAMES:
            return Size(*struct.unpack_from(">HH", data, position + 3))
        if code == JPEG_SCAN or code < 0xC0:
            return None
        if code not in JPEG_BARE:
            position += max(struct.unpack_from(">H", data, position)[0], 2)
    raise BeyondReach


def png_size(data: bytes) -> Size | None:
    """Reads the chunk IHDR, which a PNG begins with."""
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    return Size(height, width) if kind == b"IHDR" else None


def webp_size(data: bytes) -> Size | None:
    """Reads the first chunk, which is of one of three kinds."""
    kind = data[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        return Size(low_height + (high_height << 16) + 1, low_width + (high_width << 16) + 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Size((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Size(height & 0x3FFF, width & 0x3FFF)
    return None


def gif_size(data: bytes) -> Size | None:
    """Reads the canvas, which the first frame enlarges if it reaches beyond."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_STEPS):
        byte = data[position]
        if in_extension:
            position, in_extension = position + 1 + byte, byte != 0
        elif byte == ord("!"):
            position, in_extension = position + 2, True
        elif byte == ord(","):
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
            return Size(max(height, top + frame_height), max(width, left + frame_width))
        else:
            position += 1
    raise BeyondReach


def bmp_size(data: bytes) -> Size | None:
    """Reads the bitmap header; a negative height says that rows run from the top."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<Ii", data, 18)
    return Size(abs(height), width)


def tiff_size(data: bytes) -> Size | None:
    """Reads width and height among the tags of the first directory."""
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    first, each, value_at = (start + 8, 20, 12) if big else (start + 2, 12, 8)
    found: dict[int, int] = {}
    for position in range(first, first + each * min(count, MAX_STEPS), each):
        tag, kind = struct.unpack_from(order + "HH", data, position)
        if tag in (TIFF_WIDTH, TIFF_HEIGHT) and kind in TIFF_INTEGERS:
            (found[tag],) = struct.unpack_from(order + TIFF_INTEGERS[kind], data, position + value_at)
    if len(found) == 2:
        return Size(found[TIFF_HEIGHT], found[TIFF_WIDTH])
    return None


def heif_size(data: bytes) -> Size | None:
    """Returns the largest size among all images in the file: a grid's, not that of its tiles or its thumbnail."""
    start, end = 0, len(data)
    for wanted, skipped in ((b"meta", 4), (b"iprp", 0), (b"ipco", 0)):  # each in the one before
        start, end = next(
            ((a + skipped, min(b, end)) for kind, a, b in boxes(data, start, end) if kind == wanted), (end, end)
        )
    sizes = [struct.unpack_from(">II", data, a + 4) for kind, a, _ in boxes(data, start, end) if kind == b"ispe"]
    return max((Size(height, width) for width, height in sizes), key=lambda size: size.pixels, default=None)


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the kind of each box in a range of the file, and where its content starts and ends, as the box says."""
    for _ in range(MAX_STEPS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:  # the size follows, in 64 bits
            if content + 8 > end:
                return
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        stop = start + size if size else end
        if stop < content:
            return
        yield kind, content, stop
        start = stop
    raise BeyondReach


SIZES: dict[str, Callable[[bytes], Size | None]] = {
    "JPEG": jpeg_size,
    "PNG": png_size,
    "WEBP": webp_size,
    "GIF": gif_size,
    "BMP": bmp_size,
    "TIFF": tiff_size,
    "AVIF": heif_size,
    "HEIF": heif_size,
}
