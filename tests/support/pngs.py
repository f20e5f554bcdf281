"""PNG files chunk by chunk, as no library would write them."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE = 0, 2, 3
HEADER_END = 33  # of the signature and IHDR


def chunk(name: bytes, content: bytes = b"", checksum: int | None = None) -> bytes:
    """A chunk; its checksum is right unless another is given."""
    right = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", right if checksum is None else checksum)


def damaged(name: bytes, content: bytes = b"") -> bytes:
    """A chunk with a wrong checksum."""
    return chunk(name, content, checksum=zlib.crc32(name + content) ^ 1)


def with_chunks(data: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG with more chunks, before and after its pixels."""
    return data[:HEADER_END] + before + data[HEADER_END:-12] + after + data[-12:]


def png_of(samples: NDArray[np.integer], bits: int, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG of samples (H, W) or (H, W, C) at a depth of 1 to 16 bits."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = b""
    for row in samples.reshape(height, -1):
        digits = "".join(f"{value:0{bits}b}" for value in row.tolist())
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    pieces = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def gamma_chunk(gamma: float) -> bytes:
    """A gAMA chunk."""
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chromaticities_chunk(*values: float) -> bytes:
    """A cHRM chunk: x and y of white, red, green, blue."""
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def profile_chunk(profile: bytes) -> bytes:
    """An iCCP chunk."""
    return chunk(b"iCCP", b"a profile\0\0" + zlib.compress(profile))


def code_points_chunk(primaries: int, transfer: int, matrix: int = 0, full_range: int = 1) -> bytes:
    """A cICP chunk."""
    return chunk(b"cICP", bytes([primaries, transfer, matrix, full_range]))
