"""PNG as browsers read it: a chunk that does not matter cannot spoil the picture.

Pillow refuses a whole file for a wrong checksum or length in any chunk before the pixels, and for text or a colour
profile that unpack to more than 1 MiB. Such chunks are common (workflows of image generators, profiles of printers),
and libpng, which browsers use, passes over them. So this module walks over the chunks once and hands Pillow only those
that say how the picture looks. A fault in a critical chunk (`IHDR`, `PLTE`, `IDAT`) stays one. What follows the pixels
of the default image, such as later frames of an APNG, may be cut off or damaged.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.errors import BrokenImage, UnsupportedFormat
from serve_app.frames import Size
from serve_app.images.colour import UNSPECIFIED, CodePoints, still_points
from serve_app.images.parts import joined
from serve_app.images.samples import ForeignImage, to_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
MAX_CHUNKS = 100_000  # pixels come in pieces of 8 KiB or more, so real files hold far fewer
MAX_PROFILE = 8 * 2**20  # packed or not; the largest that printers come with are half of that
MAX_EXIF = 2**20  # as it is, or unpacked, in hexadecimal digits; there is no more than 64 KiB in any other format

LENGTH_AND_NAME = struct.Struct(">I4s")
TEXTS = {b"tEXt", b"zTXt"}
FOR_COLOUR = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP"}  # these must come before the pixels
WANTED = FOR_COLOUR | TEXTS | {b"eXIf"}
FOR_PILLOW = {b"tRNS", b"gAMA", b"cHRM", b"sRGB"}  # the others are read here
LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}
MAX_LENGTHS = {b"eXIf": MAX_EXIF, b"tEXt": MAX_EXIF, b"zTXt": MAX_EXIF, b"iCCP": MAX_PROFILE}
RAW_EXIF = b"Raw profile type exif\0"  # ImageMagick's way to keep EXIF, older than the chunk eXIf
GREY, RGB, PALETTE = 0, 2, 3  # colour types that tRNS may go with
TRANSPARENCY_LENGTHS = {GREY: {2}, RGB: {6}, PALETTE: set(range(1, 257))}
PALETTE_LENGTHS = range(3, 3 * 256 + 1, 3)

LIBPNG_BYTES = 3  # per pixel and channel: 16 bits, and as a byte


class Chunk(NamedTuple):
    """A chunk of a PNG.

    Attributes:
        name: four letters; the first is a small one where the chunk is ancillary: a picture can be shown without it.
        begin: where its length field begins.
        end: where the next chunk begins.
    """

    name: bytes
    begin: int
    end: int

    def content(self, data: memoryview) -> memoryview:
        """What the chunk holds, without name and checksum."""
        return data[self.begin + 8 : self.end - 4]


class Selection(NamedTuple):
    """The chunks of a PNG that say how it looks.

    Attributes:
        parts: those that Pillow shall read, in order.
        read: the contents of ancillary chunks by name.
    """

    parts: list[memoryview]
    read: dict[bytes, memoryview]


def open_png(data: bytes) -> Image.Image:
    """Opens a PNG; its pixels are decoded later.

    Raises:
        UnsupportedFormat: if it is Apple's variant, which only Apple's software reads.
        BrokenImage: if it holds more chunks than any real file.
        SyntaxError, OSError: some from Pillow, if a critical chunk is damaged or missing.
    """
    if data[12:16] == b"CgBI":
        raise UnsupportedFormat(
            "This PNG is in Apple's own variant for apps (CgBI), which is not read here; save it as an ordinary PNG."
        )
    parts, read = select_chunks(memoryview(data))
    image: Image.Image = Image.open(joined(*parts), formats=["PNG"])
    if b"tRNS" in read and data[25] != PALETTE and data[24] != 8:
        # Pillow compares the transparent colour with 8-bit pixels; at any other depth it does not match.
        image = transparent_colour_image(image, parts)
    image.info.update(colour_info(read))
    return image


def chunks(data: memoryview) -> Iterator[Chunk]:
    """Walks over the chunks, up to the last one that is whole.

    Raises:
        BrokenImage: if there are more than any real file has.
    """
    begin = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if begin + 12 > len(data):
            return
        length, name = LENGTH_AND_NAME.unpack_from(data, begin)
        end = begin + 12 + length
        if end > len(data) or not name.isalpha():
            return
        yield Chunk(name, begin, end)
        if name == b"IEND":
            return
        begin = end
    raise BrokenImage("The picture is malformed: it consists of too many pieces. Save it again and send the new file.")


def select_chunks(data: memoryview) -> Selection:
    """Chooses the chunks that say how the picture looks; of ancillary chunks, the first of each name that is sound.

    Raises:
        OSError: if the file is truncated before its pixels.
        SyntaxError: if it lacks the palette that its pixels refer to.
    """
    parts: list[memoryview] = []
    read: dict[bytes, memoryview] = {}
    begin, end, pixels_begun = 0, len(SIGNATURE), False
    palette_bytes = 0
    for chunk in chunks(data):
        end = chunk.end
        if chunk.name == b"PLTE" and not pixels_begun:
            palette_bytes = len(chunk.content(data))
        pixels_begun |= chunk.name == b"IDAT"
        if chunk.name == b"IDAT" or (chunk.name[:1].isupper() and not pixels_begun):
            continue
        if chunk.name in WANTED and chunk.name not in read and is_wanted(chunk, data, pixels_begun):
            read[chunk.name] = chunk.content(data)
            if chunk.name in FOR_PILLOW:
                continue
        if begin < chunk.begin:
            parts.append(data[begin : chunk.begin])
        begin = chunk.end
    if pixels_begun and data[25] == PALETTE and palette_bytes not in PALETTE_LENGTHS:
        raise SyntaxError("no palette")
    parts += remainder(data, begin, end, pixels_begun)
    return Selection(parts, read)


def remainder(data: memoryview, begin: int, end: int, pixels_begun: bool) -> list[memoryview]:
    """Returns what Pillow shall read of the rest of the file.

    Args:
        data: the file.
        begin: of what it shall read of the whole chunks.
        end: of the last whole chunk.
        pixels_begun: whether one of them is an IDAT.

    Raises:
        OSError: if the file is truncated before its pixels.
    """
    following = bytes(data[end + 4 : end + 8])
    if following == b"IDAT":  # it is cut off: Pillow shall say so, unless it lacks no pixels
        return [data[begin:]]
    if pixels_begun:
        return [data[begin:end], memoryview(END)]
    if bytes(data[end - 8 : end - 4]) != b"IEND" and (len(following) < 4 or following.isalpha()):
        raise OSError("truncated before its pixels")
    return [data[begin:]]


def is_wanted(chunk: Chunk, data: memoryview, pixels_begun: bool) -> bool:
    """Returns whether an ancillary chunk stands where it may, has a length of real ones, and the right checksum."""
    content = chunk.content(data)
    if chunk.name in TEXTS and content[: len(RAW_EXIF)] != RAW_EXIF:
        return False
    if chunk.name in FOR_COLOUR and pixels_begun:
        return False
    if chunk.name == b"tRNS" and len(content) not in TRANSPARENCY_LENGTHS.get(data[25], set()):
        return False
    if len(content) != LENGTHS.get(chunk.name, len(content)) or len(content) > MAX_LENGTHS.get(
        chunk.name, len(content)
    ):
        return False
    checksum = zlib.crc32(data[chunk.begin + 4 : chunk.end - 4])
    return checksum == int.from_bytes(data[chunk.end - 4 : chunk.end], "big")


def colour_info(read: dict[bytes, memoryview]) -> dict[str, Any]:
    """Returns what is read here and not by Pillow, as `info` of an image: its profile, code points and EXIF."""
    info: dict[str, Any] = {}
    if (profile := profile_of(read.get(b"iCCP"))) is not None:
        info["icc_profile"] = profile
    if (points := stated_points(read.get(b"cICP"))) is not None:
        info["code_points"] = points
    if (exif := b"Exif\0\0" + read[b"eXIf"] if b"eXIf" in read else raw_exif(read)) is not None:
        info["exif"] = exif
    return info


def stated_points(chunk: memoryview | None) -> CodePoints | None:
    """Returns the code points of a cICP chunk; None if it is not of RGB, or leaves both unspecified.

    Samples said to be in a narrow range (16 to 235) count as in the full range.
    """
    if chunk is None or chunk[2] != 0 or chunk[3] > 1 or chunk[0] == chunk[1] == UNSPECIFIED:
        return None
    return still_points(chunk[0], chunk[1])


def profile_of(chunk: memoryview | None) -> bytes | None:
    """Returns the colour profile that an iCCP chunk holds, or None if there is none that can be unpacked."""
    _, separator, packed = bytes(chunk or b"").partition(b"\0")
    return unpack(packed[1:], MAX_PROFILE) if separator and packed[:1] == b"\0" else None


def raw_exif(read: dict[bytes, memoryview]) -> bytes | None:
    """Returns the EXIF that ImageMagick has written as text: three lines of heading, then hexadecimal digits."""
    if b"zTXt" in read:
        text = unpack(bytes(read[b"zTXt"][len(RAW_EXIF) + 1 :]), MAX_EXIF) or b""
    else:
        text = bytes(read.get(b"tEXt", b"")[len(RAW_EXIF) :])
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:])) or None
    except ValueError:
        return None


def unpack(packed: bytes, most: int) -> bytes | None:
    """Inflates zlib data; None if it is damaged, or larger than `most` bytes."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, most)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else plain


def transparent_colour_image(image: Image.Image, parts: list[memoryview]) -> ForeignImage:
    """Returns a grey or RGB picture with one transparent colour, which libpng finds at the full depth of the file."""
    mode = "RGBA" if image.mode == "RGB" else "LA"
    info = {name: value for name, value in image.info.items() if name != "transparency"}

    def decode() -> NDArray[np.uint8]:
        import imagecodecs  # seldom needed

        pixels = imagecodecs.png_decode(b"".join(parts))
        return to_bytes(pixels, np.iinfo(pixels.dtype).max)

    return ForeignImage("PNG", mode, Size(image.height, image.width), decode, LIBPNG_BYTES * len(mode), info)
