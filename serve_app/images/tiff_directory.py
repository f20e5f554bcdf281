"""The directories of a TIFF: which pictures it holds, and where.

They are read in a bounded number of steps, however the file is made.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from serve_app.images.parts import joined

NEW_SUBFILE_TYPE, OLD_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 266, 273, 274, 277, 278, 279
PLANAR, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 284, 317, 320, 322, 323, 324, 325
SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT, DEPTH, PROFILE = 330, 338, 339, 32997, 34675

REDUCED, MASK = 1, 4  # bits of NewSubfileType; the photometric of a mask is 4 as well
OLD_REDUCED = 2

RAW_TAGS = {33421, 33422, 50706, 50752}  # CFARepeatPatternDim, CFAPattern, DNGVersion, slices of CR2
RAW_PHOTOMETRICS = {32803, 34892}  # colour filter array, linear raw
RAW_COMPRESSIONS = {32767, 32769, 32770, 34713, 34892, 65000, 65535}  # Sony, Epson, Samsung, Nikon, DNG, Kodak, Pentax

INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
MAX_DIRECTORIES = 64
MAX_ENTRIES = 4096


class Place(NamedTuple):
    """Where the values of a tag lie in the file.

    Attributes:
        begin: of the first one.
        length: how many values there are.
        kind: numpy's name of their type.
    """

    begin: int
    length: int
    kind: str


@dataclass(frozen=True)
class Directory:
    """An image file directory: the tags of one picture of a TIFF.

    Attributes:
        data: the file.
        tags: all that it has; where their values lie, or None where they are not integers.
        following: where the next directory lies, 0 after the last.
        order: of bytes, as in struct and numpy.
    """

    data: bytes = field(repr=False)
    tags: dict[int, Place | None]
    following: int
    order: str

    def numbers(self, tag: int, most: int) -> list[int]:
        """Returns the values of a tag, at most so many; none if they are no integers or lie beyond the file."""
        place = self.tags.get(tag)
        if place is None:
            return []
        kind = np.dtype(self.order + place.kind)
        count = min(place.length, most)
        if place.begin + count * kind.itemsize > len(self.data):
            return []
        found: list[int] = np.frombuffer(self.data, kind, count, place.begin).tolist()
        return found

    def first(self, tag: int, default: int) -> int:
        """Returns the first value of a tag."""
        return next(iter(self.numbers(tag, 1)), default)

    def content(self, tag: int) -> bytes:
        """Returns what a tag of single bytes holds."""
        place = self.tags.get(tag)
        return self.data[place.begin : place.begin + place.length] if place and place.kind == "u1" else b""

    @property
    def is_aside(self) -> bool:
        """Whether it is a smaller version of another picture in the file, or a mask."""
        return (
            bool(self.first(NEW_SUBFILE_TYPE, 0) & (REDUCED | MASK))
            or self.first(OLD_SUBFILE_TYPE, 0) == OLD_REDUCED
            or self.first(PHOTOMETRIC, 0) == MASK
        )

    @property
    def is_raw(self) -> bool:
        """Whether it holds what a camera's sensor saw, or belongs to such a file."""
        return (
            bool(RAW_TAGS & self.tags.keys())
            or self.first(PHOTOMETRIC, -1) in RAW_PHOTOMETRICS
            or self.first(COMPRESSION, 1) in RAW_COMPRESSIONS
        )


def read_directories(data: bytes) -> tuple[list[Directory], list[Directory]]:
    """Reads the chain of directories, and those inside them (SubIFDs), as far as they are readable."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = 43 in data[2:4]  # BigTIFF has offsets of 8 bytes
    (first,) = struct.unpack_from(order + ("8xQ" if is_big else "4xL"), data)
    chain = list(read_chain(data, order, is_big, first))
    inner: list[Directory] = []
    for offset in (offset for directory in chain for offset in directory.numbers(SUB_IFDS, MAX_DIRECTORIES)):
        if len(inner) < MAX_DIRECTORIES:
            inner += read_chain(data, order, is_big, offset)
    return chain, inner


def starting_at(data: bytes, offset: int) -> BinaryIO:
    """Returns a file that is the same TIFF but for its first directory, which is the one at `offset`."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = 43 in data[2:4]
    header = data[:8] + struct.pack(order + "Q", offset) if is_big else data[:4] + struct.pack(order + "L", offset)
    return joined(header, memoryview(data)[len(header) :])


def read_chain(data: bytes, order: str, is_big: bool, offset: int) -> Iterator[Directory]:
    """Yields the directory at an offset and those that follow it."""
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(offset)
        try:
            directory = read_directory(data, order, is_big, offset)
        except struct.error:
            return
        yield directory
        offset = directory.following


def read_directory(data: bytes, order: str, is_big: bool, offset: int) -> Directory:
    """Reads the directory at an offset.

    Raises:
        struct.error: if the file ends before its entries do.
    """
    count_code, entry_code, offset_code = ("Q", "HHQ", "Q") if is_big else ("H", "HHL", "L")
    (entries,) = struct.unpack_from(order + count_code, data, offset)
    offset += struct.calcsize(order + count_code)
    tags: dict[int, Place | None] = {}
    field_size = struct.calcsize(order + offset_code)  # the field holds the values, or where they are
    step = struct.calcsize(order + entry_code) + field_size
    for at in range(offset, offset + min(entries, MAX_ENTRIES) * step, step):
        tag, kind, count = struct.unpack_from(order + entry_code, data, at)
        begin = at + step - field_size
        name = INTEGER_TYPES.get(kind)
        if name and count * int(name[1]) > field_size:
            (begin,) = struct.unpack_from(order + offset_code, data, begin)
        tags.setdefault(tag, Place(begin, count, name) if name else None)
    end = offset + entries * step
    known = entries <= MAX_ENTRIES and end + field_size <= len(data)
    following = struct.unpack_from(order + offset_code, data, end)[0] if known else 0
    return Directory(data, tags, following, order)
