"""The samples of a TIFF of any depth and layout, as numbers.

libtiff, by way of Pillow, undoes the compression: it is told that the picture is grey in 8 bits and as wide as its rows
have bytes, so it hands out these bytes as they are. What they mean is numpy's to say. tifffile would do both, but with
the decoders of imagecodecs. Of these, LZW crashes the process on malformed data (2026.3.6), as uploads may be.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.frames import Size
from serve_app.images import tiff_directory as tags
from serve_app.images.parts import joined
from serve_app.images.samples import STRIP_SAMPLES
from serve_app.images.tiff_directory import Directory

SHORT, LONG = 3, 4
HORIZONTAL, FLOATING = 2, 3  # predictors
PREDICTING = {5, 8, 32946, 34925, 50000}  # LZW, Deflate, LZMA, Zstandard: with others, as in libtiff, it means nothing
WHOLE_BITS = (8, 16, 32, 64)
MAX_TILE = 1024  # the longer side of a tile that is larger than its picture: its bytes are not foretold

Bytes = NDArray[np.uint8]


class Grid(NamedTuple):
    """How a plane is cut into strips or tiles.

    Attributes:
        width: of each piece in pixels.
        height: likewise.
        is_tiled: whether pieces are tiles, which may reach over the picture's edges.
        columns: pieces beside each other.
        rows: pieces above each other.
    """

    width: int
    height: int
    is_tiled: bool
    columns: int
    rows: int


def read_samples(directory: Directory, size: Size, channels: int, bits: int, is_float: bool) -> NDArray[Any]:
    """Returns the samples of a picture, (H, W, C).

    Args:
        directory: of the picture.
        size: of the picture in pixels.
        channels: per pixel.
        bits: of each sample.
        is_float: whether samples are floats.

    Raises:
        OSError: if they are not there in full, or cannot be decompressed.
    """
    grid = grid_of(directory, size)
    pieces = grid.columns * grid.rows
    if directory.first(tags.PLANAR, 1) != 2 or channels == 1:
        return read_plane(directory, grid, size, channels, bits, is_float, slice(0, pieces))
    planes = range(channels)
    first = read_plane(directory, grid, size, 1, bits, is_float, slice(0, pieces))
    samples = np.empty((*size, channels), first.dtype)
    for plane in planes:
        chosen = slice(plane * pieces, (plane + 1) * pieces)
        read = read_plane(directory, grid, size, 1, bits, is_float, chosen) if plane else first
        samples[..., plane] = read[..., 0]
    return samples


def grid_of(directory: Directory, size: Size) -> Grid:
    """Returns how each plane of a picture is cut.

    Raises:
        OSError: if tiles have no size, or are much larger than the picture.
    """
    if tags.TILE_OFFSETS not in directory.tags:
        height = min(directory.first(tags.ROWS_PER_STRIP, size.height) or size.height, size.height)
        return Grid(size.width, height, False, 1, -(-size.height // height))
    width, height = directory.first(tags.TILE_WIDTH, 0), directory.first(tags.TILE_LENGTH, 0)
    if not (0 < width <= max(size.width + 15, MAX_TILE) and 0 < height <= max(size.height + 15, MAX_TILE)):
        raise OSError("tiles of a size that cannot be")
    return Grid(width, height, True, -(-size.width // width), -(-size.height // height))


def read_plane(
    directory: Directory, grid: Grid, size: Size, channels: int, bits: int, is_float: bool, pieces: slice
) -> NDArray[Any]:
    """Returns the samples of some strips or tiles that make up a whole picture, (H, W, C)."""
    rows = decompress(directory, grid, size, channels * bits, pieces)
    predicts = directory.first(tags.COMPRESSION, 1) in PREDICTING
    predictor = directory.first(tags.PREDICTOR, 1) if predicts else 1
    if bits not in WHOLE_BITS:
        if predictor != 1:
            raise OSError("differences of samples that share bytes")
        samples = unpack_bits(rows, bits, grid.columns * grid.width * channels)
    elif predictor == FLOATING:
        samples = undo_floating(rows, grid, channels, bits // 8)
    else:
        samples = rows.view(f"{directory.order}u{bits // 8}")
    samples = samples.reshape(size.height, -1, channels)
    if predictor == HORIZONTAL:
        samples = undo_horizontal(samples, grid)
    if is_float:
        samples = samples.view(samples.dtype.str.replace("u", "f"))
    return samples[:, : size.width]


def decompress(directory: Directory, grid: Grid, size: Size, pixel_bits: int, pieces: slice) -> Bytes:
    """Returns the bytes of each row, (H, bytes), with those of tiles that reach beyond the picture's right edge.

    Raises:
        OSError: if they are not there in full, or cannot be decompressed.
    """
    offset_tag, count_tag = (
        (tags.TILE_OFFSETS, tags.TILE_COUNTS) if grid.is_tiled else (tags.STRIP_OFFSETS, tags.STRIP_COUNTS)
    )
    offsets = directory.numbers(offset_tag, pieces.stop)[pieces]
    counts = directory.numbers(count_tag, pieces.stop)[pieces]
    piece_bytes = -(-grid.width * pixel_bits // 8)
    compression = directory.first(tags.COMPRESSION, 1)
    if compression == 1:  # what is stated besides may be wrong
        heights = (min(grid.height, size.height - grid.height * row) for row in range(grid.rows))
        lengths = [piece_bytes * (grid.height if grid.is_tiled else height) for height in heights]
        counts = [length for length in lengths for _ in range(grid.columns)]
    whole = len(offsets) == len(counts) == grid.columns * grid.rows
    ends = (offset + count for offset, count in zip(offsets, counts, strict=False))
    if not whole or not all(offsets) or max(ends) > len(directory.data):
        raise OSError("the TIFF is truncated")
    values: dict[int, tuple[int, list[int]]] = {
        tags.WIDTH: (LONG, [grid.columns * piece_bytes]),
        tags.HEIGHT: (LONG, [size.height]),
        tags.BITS: (SHORT, [8]),
        tags.COMPRESSION: (SHORT, [compression]),
        tags.PHOTOMETRIC: (SHORT, [1]),
        tags.FILL_ORDER: (SHORT, [directory.first(tags.FILL_ORDER, 1)]),
        offset_tag: (LONG, offsets),
        tags.SAMPLES: (SHORT, [1]),
        count_tag: (LONG, counts),
    }
    if grid.is_tiled:
        values |= {tags.TILE_WIDTH: (LONG, [piece_bytes]), tags.TILE_LENGTH: (LONG, [grid.height])}
    else:
        values |= {tags.ROWS_PER_STRIP: (LONG, [grid.height])}
    header = struct.pack("<2sHL", b"II", 42, len(directory.data))
    file = joined(header, memoryview(directory.data)[8:], directory_bytes(values, len(directory.data)))
    with Image.open(file, formats=["TIFF"]) as image:
        return bytes_of(image)


def bytes_of(image: Image.Image) -> Bytes:
    """Returns the pixels of a grey image, strip by strip: at once, Pillow would hold three copies of them."""
    image.load()
    result = np.empty((image.height, image.width), np.uint8)
    step = max(1, STRIP_SAMPLES // image.width)
    for top in range(0, image.height, step):
        result[top : top + step] = np.asarray(image.crop((0, top, image.width, min(top + step, image.height))))
    return result


def directory_bytes(values: dict[int, tuple[int, list[int]]], at: int) -> bytes:
    """Returns a directory of these tags, for the position `at`."""
    entries = struct.pack("<H", len(values))
    behind = b""
    end = at + 2 + 12 * len(values) + 4
    for tag, (kind, numbers) in sorted(values.items()):
        packed = np.array(numbers, "<u2" if kind == SHORT else "<u4").tobytes()
        if len(packed) > 4:
            packed, behind = struct.pack("<L", end + len(behind)), behind + packed
        entries += struct.pack("<HHL", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return entries + bytes(4) + behind


def unpack_bits(rows: Bytes, bits: int, count: int) -> NDArray[Any]:
    """Returns numbers that are packed without gaps, (H, count), highest bits first."""
    result = np.zeros((len(rows), count), np.uint8 if bits <= 8 else np.uint16)
    step = max(1, STRIP_SAMPLES // max(1, count * bits))
    for row in range(0, len(rows), step):
        digits = np.unpackbits(rows[row : row + step], axis=1, count=count * bits).reshape(-1, count, bits)
        for bit in range(bits):
            result[row : row + step] <<= 1
            result[row : row + step] |= digits[..., bit]
    return result


def undo_horizontal(samples: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Adds up samples that are stored as differences from their left neighbours; each strip or tile begins anew."""
    result = np.empty(samples.shape, samples.dtype.newbyteorder("="))
    for begin in range(0, samples.shape[1], grid.width):
        place = np.s_[:, begin : begin + grid.width]
        np.cumsum(samples[place], axis=1, dtype=result.dtype, out=result[place])
    return result


def undo_floating(rows: Bytes, grid: Grid, channels: int, size: int) -> NDArray[Any]:
    """Puts numbers together whose first bytes, second bytes and so on are stored apart, as differences."""
    result = np.empty(rows.shape, np.uint8)
    width = rows.shape[1] // grid.columns
    step = max(1, STRIP_SAMPLES // width)
    for row in range(0, len(rows), step):
        for begin in range(0, rows.shape[1], width):
            place = np.s_[row : row + step, begin : begin + width]
            differences = rows[place]
            added = np.cumsum(differences.reshape(len(differences), -1, channels), axis=1, dtype=np.uint8)
            apart = added.reshape(len(differences), size, -1)
            result[place] = apart.transpose(0, 2, 1).reshape(differences.shape)
    return result.view(f">u{size}")
