"""Decodes the bytes of a photograph to an upright sRGB frame at the size it is painted at.

The format is recognised by content, never by name. Limits are checked on the header, before anything is decoded.
"""

import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile

from serve_app.errors import BrokenImage, DecodeMemory, OutOfMemory, RequestError, TooManyPixels, UnsupportedFormat
from serve_app.frames import DecodedImage, Frame, Plane, Size, StylizeRequest
from serve_app.images.budget import ByteBudget
from serve_app.images.resize import painted_size, resize
from serve_app.settings import MIB

pi_heif.register_heif_opener()
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of odd metadata at each upload; only pixels matter
Image.MAX_IMAGE_PIXELS = None  # the setting max_pixels is checked instead, in refuse_large

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

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap height and width

SRGB = ImageCms.createProfile("sRGB")
ICC_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}

# Bytes per pixel at a decoder's worst moment, including what is made of its planes; measured on 27 megapixels.
DECODER_BYTES = {"WEBP": 17, "AVIF": 10, "HEIF": 15}
RASTER_BYTES = {"1": 1, "L": 1, "P": 1}  # Pillow's own; every other mode takes 4
PROGRESSIVE_BYTES = 8  # a progressive JPEG keeps coefficients of the whole image: 2 bytes for each of 3 or 4 channels
DEEP_BYTES = 18  # 16-bit, 32-bit and float grey, on the way to 8 bits
DRAFT_SCALES = (8, 4, 2)  # factors by which libjpeg can shrink while it decodes
DECODE_OVERHEAD_BYTES = 10 * MIB  # decoders' tables, colour transforms, Python's own


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
        format: Pillow's name of it.
        stored: the size of its pixels as stored, before any rotation.
    """

    format: str
    stored: Size


def read_header(data: bytes) -> ImageHeader:
    """Recognises the format and reads the size; nothing is decoded.

    Raises:
        UnsupportedFormat, BrokenImage: what the photograph's owner can mend.
    """
    image = open_image(data)
    return ImageHeader(str(image.format), Size(image.height, image.width))


def decode(
    data: bytes,
    request: StylizeRequest,
    max_pixels: int,
    budget: ByteBudget | None = None,
    header: ImageHeader | None = None,
) -> DecodedImage:
    """Decodes one photograph.

    Args:
        data: the file as it was uploaded.
        request: gives the size that it may be painted at.
        max_pixels: width x height as the header states them, at most.
        budget: bytes that all decodes of this process share; waits until what this decode will take is free.
        header: from `read_header`, if the caller has read it.

    Returns:
        The image, upright, sRGB, on white, at its painted size.

    Raises:
        UnsupportedFormat, TooManyPixels, DecodeMemory, TooSmall, BrokenImage: what the photograph's owner can mend.
        OutOfMemory: this process cannot hold the decoded image.
    """
    try:
        image = open_image(data, header)
        refuse_large(image, max_pixels)
        with reserve(image, request.max_side, budget):
            return prepare(image, request.max_side, request.multiple)
    except RequestError:
        raise
    except MemoryError:
        raise OutOfMemory(
            "There is not enough memory to decode this picture now; try again, or send it smaller."
        ) from None
    except Exception as error:  # a decoder may raise anything on hostile bytes: the file is at fault
        raise broken(error) from error


def prepare(image: Image.Image, max_side: int, multiple: int) -> DecodedImage:
    """Decodes an opened image, turns it upright, and resizes it to the size it is painted at.

    Raises:
        TooSmall: if a painted side would be under the generator's minimum.
    """
    load_early(image)
    turn = orientation(image)
    original = upright_size(image, turn)
    painted = painted_size(original, max_side, multiple)
    stored = painted.transposed if turn in SIDEWAYS else painted
    shrink_on_load(image, stored)
    profile = image.info.get("icc_profile")
    colours = to_colours(image)
    small = upright(resize(colours, stored), turn)
    return DecodedImage(*split_on_white(to_srgb(small, profile), small), original)


def reserve(image: Image.Image, max_side: int, budget: ByteBudget | None) -> AbstractContextManager[None]:
    """Waits until the bytes that decoding will take are free, and holds them.

    Raises:
        DecodeMemory: if that is more than the whole budget.
    """
    if budget is None:
        return nullcontext()
    needed = predict_decode_bytes(image, max_side)
    if needed > budget.total_bytes:
        raise DecodeMemory(
            f"Decoding this {image.width} x {image.height} {image.format} takes {needed / 1e6:,.0f} MB, and "
            f"{budget.total_bytes / 1e6:,.0f} MB are set aside for it here. Send it smaller, or as a baseline JPEG.",
            budget.total_bytes,
            needed,
            "bytes",
        )
    return budget.reserve(needed)


def predict_decode_bytes(image: Image.Image, max_side: int) -> int:
    """Returns an upper bound, from the header alone, on the bytes that decoding adds to the process at its peak."""
    width, height = image.size
    scale = min(1.0, max_side / max(width, height))
    narrow, low = max(width * scale, 1), max(height * scale, 1)
    pixels, kept = width * height, 0
    if image.format == "JPEG":
        shrunk = next((s for s in DRAFT_SCALES if min(width // narrow, height // low) >= s), 1)
        kept = PROGRESSIVE_BYTES * pixels if image.info.get("progressive") else 0
        pixels = -(-width // shrunk) * -(-height // shrunk)
    raster = RASTER_BYTES.get(image.mode, 4)
    if image.format in DECODER_BYTES:
        each = DECODER_BYTES[image.format] + 4 * (image.mode == "RGBA")
    elif image.mode.startswith(("I", "F")):
        each = DEEP_BYTES
    elif "transparency" in image.info or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        each = raster + 4 + 4 * (raster < 4)  # RGBA, then premultiplied for the resize
    else:
        each = raster + {"P": 4, "1": 1}.get(image.mode, 0)
    resized = 4 * (narrow * height + 8 * narrow * low)  # LANCZOS resizes rows first, then columns
    return int(each * pixels + kept + resized) + DECODE_OVERHEAD_BYTES


def sniff(data: bytes) -> str:
    """Recognises a format by the first bytes of the file, and returns Pillow's name of it.

    Raises:
        UnsupportedFormat: if it is not one of the formats read here.
    """
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
    raise UnsupportedFormat(
        f"By its first bytes the upload is not a picture in a format that is read here: {READABLE}."
    )


def open_image(data: bytes, header: ImageHeader | None = None) -> ImageFile.ImageFile:
    """Opens a file, in the format of its header if that is known; decoding waits until limits have been checked."""
    format = header.format if header else sniff(data)
    try:
        return Image.open(io.BytesIO(data), formats=[format])
    except MemoryError:
        raise
    except Exception as error:
        raise broken(error) from error


def broken(error: Exception) -> BrokenImage:
    """Returns the refusal of a file that a decoder failed on: incomplete, or otherwise damaged."""
    truncated = "truncated" in str(error).lower()
    return BrokenImage(
        "The picture ends before it is complete; send the whole file."
        if truncated
        else "The picture is damaged or malformed and cannot be decoded; save it again and send the new file."
    )


def refuse_large(image: Image.Image, max_pixels: int) -> None:
    """Checks the number of pixels that the header states.

    Raises:
        TooManyPixels: if it is above `max_pixels`.
    """
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise TooManyPixels(
            f"The picture is {image.width} x {image.height}, {pixels} pixels; at most {max_pixels} are decoded here. "
            "Send it smaller.",
            max_pixels,
            pixels,
            "pixels",
        )


def load_early(image: Image.Image) -> None:
    """Decodes every format but JPEG: the EXIF of a PNG may follow its pixels, so Pillow decodes to find it anyway."""
    if image.format != "JPEG":
        image.load()


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; a missing or invalid one counts as upright."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # malformed EXIF must not fail the whole image
        return 1
    return turn if turn in TRANSPOSITIONS else 1


def upright_size(image: Image.Image, turn: int) -> Size:
    """Returns the size after the EXIF orientation `turn` has been applied."""
    size = Size(image.height, image.width)
    return size.transposed if turn in SIDEWAYS else size


def shrink_on_load(image: Image.Image, size: Size) -> None:
    """Lets the JPEG decoder produce a half, quarter or eighth of the size, never less than the size wanted."""
    height, width = size
    image.draft(None, (width, height))


def to_colours(image: Image.Image) -> Image.Image:
    """Decodes the first frame to mode L, RGB, CMYK, LAB, LA or RGBA, 8 bits per channel."""
    image.load()
    if image.mode.startswith(("I", "F")):
        return eight_bits(image)
    if image.mode in ("CMYK", "LAB"):
        return image
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode == "La":
        return image.convert("LA")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit, 32-bit or float grey to 8 bits: from 16 bits, from [0, 1], or not at all if the values fit."""
    grey: NDArray[np.floating] = np.nan_to_num(np.asarray(image, dtype=np.float32))
    top = float(grey.max(initial=0))
    if image.mode.startswith("I;16") or top > 255:
        grey = grey / 257
    elif image.mode == "F" and top <= 1:
        grey = grey * 255
    return Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8))


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Applies the EXIF orientation `turn`."""
    return image.transpose(TRANSPOSITIONS[turn]) if turn in TRANSPOSITIONS else image


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts colours to sRGB and drops alpha; a profile that is malformed or of another colour space is ignored."""
    colours = image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image
    source: Any = None  # lcms takes two kinds of profile objects
    if colours.mode == "LAB":
        source = ImageCms.createProfile("LAB")
    elif profile:
        source = matching_profile(profile, ICC_SPACES[colours.mode])
    if source is not None:
        try:
            converted = ImageCms.profileToProfile(colours, source, SRGB, outputMode="RGB")
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return colours.convert("RGB")


def matching_profile(profile: bytes, space: str) -> ImageCms.ImageCmsProfile | None:
    """Returns the profile if it can be read and describes this colour space, else None."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
    return opened if opened.profile.xcolor_space.strip() == space else None


def split_on_white(rgb: Image.Image, image: Image.Image) -> tuple[Frame, Plane | None]:
    """Returns the frame composited on white, and the alpha.

    Transparent pixels may hold any colour, which would shift the generator's norms over the whole image.
    """
    if image.mode not in ("LA", "RGBA"):
        return np.asarray(rgb), None
    alpha = image.getchannel("A")
    white = Image.new("RGB", rgb.size, "white")
    return np.asarray(Image.composite(rgb, white, alpha)), np.asarray(alpha)
