"""TIFF files of any layout: by tifffile, or tag by tag."""

import io
import struct
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

Entry = tuple[int, int, int, Any]  # tag, type, count, value or bytes
SHORT, LONG, BYTE = 3, 4, 1


def tiff_of(samples: NDArray[Any], **options: Any) -> bytes:
    """A TIFF that tifffile writes of samples (H, W), (H, W, C), or (C, H, W) where channels are stored apart."""
    buffer = io.BytesIO()
    if options.get("planarconfig") == "separate":
        samples = np.ascontiguousarray(np.moveaxis(samples, -1, 0))
    tifffile.imwrite(buffer, samples, metadata=None, **options)
    return buffer.getvalue()


def depth(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Values from 0 to 1 as unsigned integers of so many bits."""
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return np.round(values * (2.0**bits - 1)).astype(kind)


def packed(samples: NDArray[Any], bits: int) -> bytes:
    """Rows of samples without gaps, each padded to whole bytes; the same in every byte order of TIFF."""
    rows = b""
    for row in samples.reshape(len(samples), -1):
        digits = "".join(f"{value:0{bits}b}" for value in row.tolist())
        digits += "0" * (-len(digits) % 8)
        rows += int(digits, 2).to_bytes(len(digits) // 8, "big")
    return rows


def directory_of(entries: list[Entry], order: str, following: int = 0) -> bytes:
    """A directory whose values all lie in their entries."""
    content = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
        code = {SHORT: "H", LONG: "L", BYTE: "B"}.get(kind, "L")
        field = value if isinstance(value, bytes) else struct.pack(order + code, value)
        content += struct.pack(order + "HHL", tag, kind, count) + field.ljust(4, b"\0")
    return content + struct.pack(order + "L", following)


def tiff_by_hand(pixels: bytes, entries: list[Entry], order: str = "<") -> bytes:
    """A TIFF of one strip, with the tags given; that of the strip's place is added."""
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 8)
    strip = [(273, LONG, 1, 0), (279, LONG, 1, len(pixels))]
    start = len(header) + len(directory_of(entries + strip, order))
    return header + directory_of([*entries, (273, LONG, 1, start), (279, LONG, 1, len(pixels))], order) + pixels


def basic_entries(width: int, height: int, bits: int, photometric: int, compression: int = 1) -> list[Entry]:
    """The tags of a picture of one channel."""
    values = {256: width, 257: height, 258: bits, 259: compression, 262: photometric, 277: 1, 278: height}
    return [(tag, SHORT, 1, value) for tag, value in values.items()]
