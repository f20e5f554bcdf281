"""Tells whether a WebP, AVIF or HEIC was cut off, which its decoder does not say. It is asked once decoding has failed.

However a file is made, a bounded number of steps is taken; what lies beyond them counts as complete.
"""

import struct
from collections.abc import Iterator

from serve_app.images.header import boxes

MAX_EXTENTS = 65_536  # of all items; a picture of 64 megapixels in tiles of 256 x 256 has a thousand


def is_cut_off(data: bytes, format: str) -> bool:
    """Returns whether a file says that it is longer than it is.

    Args:
        data: the file, which its decoder has failed on.
        format: Pillow's name of it.
    """
    try:
        if format == "WEBP":
            return len(data) < 8 + int.from_bytes(data[4:8], "little")
        return format in ("AVIF", "HEIF") and lacks_boxes(data)
    except struct.error:  # a box that is too short for what it must hold: damaged
        return False


def lacks_boxes(data: bytes) -> bool:
    """Returns whether a box of the file or a piece of one of its images reaches beyond the end, or all of them lack."""
    kinds = set()
    for kind, start, end in boxes(data, 0, len(data)):
        if end > len(data):
            return True
        if kind == b"meta" and kind not in kinds and locations_end(data, start + 4, end) > len(data):
            return True
        kinds.add(kind)
    return kinds <= {b"ftyp"}


def locations_end(data: bytes, start: int, end: int) -> int:
    """Returns where in the file the last piece of the images ends, by the box `iloc` in the content of a `meta`."""
    place = next((start for kind, start, stop in boxes(data, start, end) if kind == b"iloc" and stop <= end), None)
    return 0 if place is None else max(extents(data, place), default=0)


def extents(data: bytes, at: int) -> Iterator[int]:
    """Yields where in the file each piece of an image ends (ISO/IEC 14496-12, 8.11.3).

    Args:
        data: the file.
        at: where the content of its `iloc` starts.
    """
    version, sizes = struct.unpack_from(">B3xH", data, at)
    offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    if version not in (1, 2):
        index_bytes = 0
    wide, with_method = (4 if version == 2 else 2), version in (1, 2)
    items, at = int.from_bytes(data[at + 6 : at + 6 + wide], "big"), at + 6 + wide
    left = MAX_EXTENTS
    for _ in range(min(items, MAX_EXTENTS)):
        at += wide
        method = struct.unpack_from(">H", data, at)[0] & 15 if with_method else 0
        at += 2 * with_method + 2
        base, at = int.from_bytes(data[at : at + base_bytes], "big"), at + base_bytes
        (count,) = struct.unpack_from(">H", data, at)
        at += 2
        for _ in range(min(count, left)):
            at += index_bytes
            offset, at = int.from_bytes(data[at : at + offset_bytes], "big"), at + offset_bytes
            length, at = int.from_bytes(data[at : at + length_bytes], "big"), at + length_bytes
            if method == 0:  # from the beginning of the file
                yield base + offset + length
        left -= min(count, left)
        if not left:
            return
