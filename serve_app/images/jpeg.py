"""JPEG files that lack only their end marker, and kinds of JPEG that are sound but not read."""

import hashlib
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

from PIL.JpegImagePlugin import JpegImageFile

from serve_app.frames import Size
from serve_app.images.parts import joined

END = b"\xff\xd9"
NOISE = b"\xa6\x55\xd3\x2a" * 16
RESTARTS = [bytes((0xFF, marker)) + NOISE for marker in range(0xD0, 0xD8)]
# What may follow the data of a file that was cut off: nothing, ones, other bits, and more restart intervals. These come
# in two orders, since a decoder drops a restart marker or waits for it by how far it is from the one expected.
FILLERS = (b"", b"\xff\0" * 64, NOISE, b"".join(RESTARTS), b"".join(RESTARTS[4:] + RESTARTS[:4]))
STRIP_ROWS = 64  # compared at a time: Pillow copies what it hands out

SOF, SOF_DCT, SOF_PROGRESSIVE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}, {0xC2, 0xCA}
SOF_LS = {0xF7, 0xF9}  # JPEG-LS: ITU-T T.87, and its extensions, T.870
SOS = 0xDA
ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
COEFFICIENTS = 64


class Segment(NamedTuple):
    """A marker of a JPEG and what belongs to it.

    Attributes:
        marker: its second byte.
        content: without marker and length.
    """

    marker: int
    content: bytes


def segments(data: bytes) -> Iterator[Segment]:
    """Walks over the segments up to the end marker, or as far as the file goes."""
    at = 2
    while (found := NEXT_MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker in ALONE:
            if marker == END[1]:
                return
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            return
        yield Segment(marker, data[at + 2 : at + length])
        at += length


def unread_kind(data: bytes) -> str | None:
    """Returns what kind of JPEG the file is, in words, if it is sound but not read here; else None."""
    frame = next((segment for segment in segments(data) if segment.marker in SOF | SOF_LS), None)
    if frame is None or len(frame.content) < 6:
        return None
    bits, channels = frame.content[0], frame.content[5]
    if frame.marker in SOF_DCT:
        if bits == 12:
            return "a JPEG in 12 bits"
        return f"a JPEG of {channels} channels" if bits == 8 and channels in (2, *range(5, 11)) else None
    if frame.marker in SOF_LS:
        return "a JPEG-LS" if 2 <= bits <= 16 else None
    return "a lossless or hierarchical JPEG" if 2 <= bits <= 16 else None


def open_jpeg(file: IO[bytes]) -> JpegImageFile:
    """Opens a JPEG as one picture; Image.open makes an MPO of some, which knows no shrink-on-load."""
    return JpegImageFile(file)


def with_end(data: bytes, shrunk: Size) -> JpegImageFile | None:
    """Opens the file as if it had an end marker, if that is all that it lacks; else returns None.

    It is so if the scans that begin in it are all that a picture has, and the pixels are the same whatever follows the
    data: then none of it was needed. Half an end marker means that the file was cut off.

    Args:
        data: a file that ends before a decoder is done.
        shrunk: the size that it is decoded for.
    """
    if data.endswith(b"\xff") or not has_all_scans(data):
        return None
    first, *others = FILLERS
    pixels = pixels_with(data, first, shrunk)
    if pixels is not None and all(pixels_with(data, filler, shrunk) == pixels for filler in others):
        return open_jpeg(joined(data, END))
    return None


def pixels_with(data: bytes, filler: bytes, shrunk: Size) -> bytes | None:
    """Decodes the file with something after it, and returns a digest of the pixels; None if it cannot be decoded."""
    digest = hashlib.blake2b()
    with open_jpeg(joined(data, filler, END)) as image:
        image.draft(None, (shrunk.width, shrunk.height))
        try:
            image.load()
        except OSError:
            return None
        for top in range(0, image.height, STRIP_ROWS):
            digest.update(image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height))).tobytes())
    return digest.digest()


def has_all_scans(data: bytes) -> bool:
    """Returns whether every coefficient of every component is coded in full by the scans that begin in the file."""
    left: dict[int, set[int]] = {}
    progressive = False
    for marker, content in segments(data):
        if marker in SOF:
            left = {component: set(range(COEFFICIENTS)) for component in content[6::3]}
            progressive = marker in SOF_PROGRESSIVE
        elif marker == SOS and content:
            components = content[1 : 1 + 2 * content[0] : 2]
            first, last, precision = (*content[1 + 2 * content[0] :], 0, 0, 0)[:3]
            covered = range(first, last + 1) if progressive else range(COEFFICIENTS)
            if not progressive or precision & 0x0F == 0:
                for component in components:
                    left.get(component, set()).difference_update(covered)
    return bool(left) and not any(left.values())
