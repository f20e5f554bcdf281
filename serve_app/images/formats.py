"""Opens a file in its format: Pillow's plugins, and what they do not do right."""

import io
import re
import struct

import pi_heif
from PIL import Image

from serve_app.errors import UnsupportedFormat
from serve_app.images import jpeg
from serve_app.images.colour import still_points
from serve_app.images.png import open_png
from serve_app.images.tiff import open_tiff

pi_heif.register_heif_opener()

HEIF_ITEM = re.compile(rb"infe(?:\x02\0\0.{3}|\x03\0\0.{5})\0\0(.{4})", re.DOTALL)  # its type, if not protected
HEIF_ENTRY = re.compile(rb"infe(?:\x02\0\0.{5}|\x03\0\0.{7})", re.DOTALL)  # up to the type of an item
NOT_ASCII = bytes(range(128)) + b"?" * 128
UNREAD_CODECS = {
    b"av01": "AV1",
    b"avc1": "AVC",
    b"jpeg": "JPEG",
    b"j2k1": "JPEG 2000",
    b"vvc1": "VVC",
    b"unci": "bare pixels",
}
BMP_HEADERS = {40, 52, 56, 64, 108, 124}
BMP_BITS = {1, 2, 4, 8, 16, 24, 32, 64}
BMP_COMPRESSIONS = {*range(7), 11, 12, 13}
BMP_CONTAINERS = {4, 5}  # compressions: a JPEG or a PNG inside, which states the depth itself


def open_as(data: bytes, format: str) -> Image.Image:
    """Opens a file in the format that its first bytes tell; its pixels are decoded later.

    Raises:
        UnsupportedFormat: if it is sound, but of a kind that is not read here.
        Exception: from a decoder, if it is damaged.
    """
    if format == "PNG":
        return open_png(data)
    if format == "TIFF":
        return open_tiff(data)
    if format == "AVIF":
        return open_avif(data)
    if format == "JPEG":
        if (kind := jpeg.unread_kind(data)) is not None:
            raise UnsupportedFormat(f"This is {kind}, which is not read here; save it as an ordinary JPEG, or as PNG.")
        return jpeg.open_jpeg(io.BytesIO(data))
    if format == "HEIF" and (codec := unread_codec(data)) is not None:
        raise UnsupportedFormat(
            f"This HEIF is coded as {codec}, which is not read here inside a HEIF; save it as JPEG, or as HEIC (HEVC)."
        )
    if format == "HEIF":
        data = with_ascii_items(data)
    try:
        return Image.open(io.BytesIO(data), formats=[format])
    except OSError as error:
        if format == "BMP" and is_sound_bmp(data) and "Unsupported" in str(error):
            raise UnsupportedFormat(
                "This is a rare kind of BMP, which is not read here; save it with 24 bits, or as PNG."
            ) from error
        raise


def open_avif(data: bytes) -> Image.Image:
    """Opens an AVIF. Pillow does not tell its code points (nclx), so libheif is asked."""
    image = Image.open(io.BytesIO(data), formats=["AVIF"])
    if "icc_profile" in image.info:
        return image
    try:
        nclx = pi_heif.open_heif(with_ascii_items(data)).info.get("nclx_profile")
    except Exception:  # libheif is stricter than libavif: then the colours are not told, which means sRGB
        return image
    if nclx:
        image.info["code_points"] = still_points(nclx["color_primaries"], nclx["transfer_characteristics"])
    return image


def with_ascii_items(data: bytes) -> bytes:
    """Returns a HEIF or AVIF with ASCII alone in the types and names of its items; pi-heif crashes on invalid UTF-8."""
    mended, done, checked = bytearray(), 0, 0
    for found in HEIF_ENTRY.finditer(data):
        begin = max(found.end(), checked)
        end = found.start() - 4 + int.from_bytes(data[max(found.start() - 4, 0) : found.start()], "big")
        text = data[begin:end]
        checked = max(checked, end)
        if not text.isascii():
            mended += data[done:begin] + text.translate(NOT_ASCII)
            done = len(mended)
    return bytes(mended + data[done:]) if done else data


def unread_codec(data: bytes) -> str | None:
    """Returns the codec of a HEIF if that is not HEVC, which is all that pi-heif decodes; else None."""
    types = set(HEIF_ITEM.findall(data))
    return None if b"hvc1" in types else next((name for code, name in UNREAD_CODECS.items() if code in types), None)


def is_sound_bmp(data: bytes) -> bool:
    """Returns whether the header of a BMP states depths and a compression that there are."""
    try:
        size, planes, bits, compression = struct.unpack_from("<L8xHHL", data, 14)
    except struct.error:
        return False
    is_depth = bits in BMP_BITS or (bits == 0 and compression in BMP_CONTAINERS)
    return size in BMP_HEADERS and planes == 1 and is_depth and compression in BMP_COMPRESSIONS
