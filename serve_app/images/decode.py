"""Decodes the bytes of a photograph to an upright sRGB frame at the size it is painted at.

The format is recognised by content, never by name. Limits are checked on the header, before anything is decoded.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, JpegImagePlugin

from serve_app.errors import BrokenImage, OutOfMemory, RequestError, TooManyPixels
from serve_app.frames import DecodedImage, Frame, Plane, Size, StylizeRequest
from serve_app.images.header import ImageHeader, read_header
from serve_app.images.resize import painted_size, resize

pi_heif.register_heif_opener()
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of odd metadata at each upload; only pixels matter
Image.MAX_IMAGE_PIXELS = None  # the setting max_pixels is checked instead, in refuse_large

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
SCANS_BYTES = 8  # a JPEG in several scans keeps coefficients of the whole image: 2 bytes for each of 3 or 4 channels
DEEP_BYTES = 18  # 16-bit, 32-bit and float grey, on the way to 8 bits
DRAFT_SCALES = (8, 4, 2)  # factors by which libjpeg can shrink while it decodes
DECODE_OVERHEAD_BYTES = 10 * 2**20  # decoders' tables, colour transforms, Python's own


def decode(data: bytes, request: StylizeRequest, max_pixels: int) -> DecodedImage:
    """Decodes one photograph in this process, without limits on time and memory.

    Args:
        data: the file as it was uploaded.
        request: gives the size that it may be painted at.
        max_pixels: width x height as the header states them, at most.

    Returns:
        The image, upright, sRGB, on white, at its painted size.

    Raises:
        UnsupportedFormat, TooManyPixels, TooSmall, BrokenImage: what the photograph's owner can mend.
        OutOfMemory: this process cannot hold the decoded image.
    """
    with refusals():
        image = open_image(data, read_header(data), max_pixels)
        return decode_opened(image, request.max_side, request.multiple)


@contextmanager
def refusals() -> Iterator[None]:
    """Turns whatever a decoder raises in the block into the refusal of the file.

    Raises:
        OutOfMemory, BrokenImage: for everything that is not a refusal already.
    """
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes: the file is at fault
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise OutOfMemory(
                "There is not enough memory to decode this picture now; try again, or send it smaller."
            ) from None
        raise broken(error) from error


def decode_opened(image: ImageFile.ImageFile, max_side: int, multiple: int) -> DecodedImage:
    """Decodes an opened file, as `prepare` does, and checks that it holds no more than its header says.

    Raises:
        TooSmall, BrokenImage: what the photograph's owner can mend.
    """
    stated = image.width * image.height
    decoded = prepare(image, max_side, multiple)
    if decoded.original.pixels > stated:
        raise broken(ValueError("the frame is larger than the header says"))
    return decoded


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


def predict_decode_bytes(image: Image.Image, max_side: int) -> int:
    """Returns an upper bound, from the header alone, on the bytes that decoding adds to the process at its peak."""
    width, height = image.size
    scale = min(1.0, max_side / max(width, height))
    narrow, low = max(width * scale, 1), max(height * scale, 1)
    pixels, kept = width * height, 0
    if image.format == "JPEG":
        shrunk = next((s for s in DRAFT_SCALES if min(width // narrow, height // low) >= s), 1)
        kept = SCANS_BYTES * pixels if has_several_scans(image) else 0
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


def has_several_scans(image: Image.Image) -> bool:
    """Returns whether an opened JPEG is progressive, or baseline with one scan for each channel."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.fp is None or image.info.get("progressive"):
        return True
    end = image.fp.tell()  # of the header of the first scan
    scan_of_all = b"\xff\xda" + struct.pack(">HB", 6 + 2 * image.layers, image.layers)
    image.fp.seek(max(end - 2 - (6 + 2 * image.layers), 0))
    is_whole = image.fp.read(end - image.fp.tell()).startswith(scan_of_all)
    image.fp.seek(end)
    return not is_whole


def open_image(data: bytes, header: ImageHeader, max_pixels: int) -> ImageFile.ImageFile:
    """Opens a file in the format of its header; decoding waits until limits have been checked.

    Raises:
        TooManyPixels: if it states more than `max_pixels`.
        BrokenImage: if it cannot be opened.
    """
    if header.stored and header.format == "WEBP":  # opening it allocates its canvas
        refuse_large(header.stored, max_pixels)
    file = io.BytesIO(data)
    try:
        if header.format == "JPEG":  # Image.open makes an MPO of some, which knows no shrink-on-load
            image: ImageFile.ImageFile = JpegImagePlugin.JpegImageFile(file)
        else:
            image = Image.open(file, formats=[header.format])
    except MemoryError:
        raise
    except Exception as error:
        raise broken(error) from error
    refuse_large(Size(image.height, image.width), max_pixels)
    return image


def broken(error: Exception) -> BrokenImage:
    """Returns the refusal of a file that a decoder failed on: incomplete, or otherwise damaged."""
    truncated = "truncated" in str(error).lower()
    return BrokenImage(
        "The picture ends before it is complete; send the whole file."
        if truncated
        else "The picture is damaged or malformed and cannot be decoded; save it again and send the new file."
    )


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
