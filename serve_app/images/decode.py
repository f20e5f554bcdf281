"""Any photograph's bytes to an upright sRGB frame of the painted size.

Formats are told by content, never by name; limits are checked on the header, before anything is decoded.
"""

import io
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile

from serve_app.errors import BrokenImage, OutOfMemory, RequestError, TooManyPixels, UnsupportedFormat
from serve_app.frames import Frame, Order, Photo, Plane, Receipt, Size
from serve_app.images.budget import ByteBudget
from serve_app.images.resize import painted_size, resize
from serve_app.settings import MIB

pi_heif.register_heif_opener()
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, at each upload: the pixels decide
Image.MAX_IMAGE_PIXELS = None  # the limit is the setting max_pixels, read from the header in refuse_large

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


# Bytes a pixel at a decoder's worst moment, what is made of its planes included; measured on 27 megapixels.
DECODER_BYTES = {"WEBP": 17, "AVIF": 10, "HEIF": 15}
RASTER_BYTES = {"1": 1, "L": 1, "P": 1}  # Pillow's own; every other mode takes 4
PROGRESSIVE_BYTES = 8  # coefficients that a progressive JPEG keeps of the whole picture: 2 for each of 3 or 4 channels
DEEP_BYTES = 18  # 16-bit, 32-bit and float grey, on the way to 8 bits
DRAFT_SCALES = (8, 4, 2)  # by which libjpeg decodes smaller
DECODE_OVERHEAD_BYTES = 10 * MIB  # decoders' tables, colour transforms, Python's own


def decode(data: bytes, order: Order, max_pixels: int, budget: ByteBudget | None = None) -> Photo:
    """Decodes one photograph.

    Args:
        data: the file as it was uploaded.
        order: the style, and the size that it may be painted at.
        max_pixels: width x height as the header states them, at most.
        budget: the bytes that all decodes of this process share; waits for as many as this one will take.

    Returns:
        A Photo whose frame is upright, sRGB, on white, at the painted size; its alpha at that size too, or None.

    Raises:
        UnsupportedFormat, TooManyPixels, TooSmall, BrokenImage: what the photograph's owner can mend.
        OutOfMemory: this process cannot hold the decoded picture.
    """
    began = time.perf_counter()
    try:
        image = open_image(data)
        refuse_large(image, max_pixels)
        with reserve(image, order.max_side, budget):
            frame, alpha, original = decode_opened(image, order)
    except RequestError:
        raise
    except MemoryError:
        raise OutOfMemory(
            "There is not enough memory to decode this picture now; try again, or send it smaller."
        ) from None
    except Exception as error:  # a decoder may raise anything at all on hostile bytes: they are the picture's fault
        raise broken(error) from error
    receipt = Receipt(order.style, original, Size(*frame.shape[:2])).timed(decode=1000 * (time.perf_counter() - began))
    return Photo(frame, alpha, receipt)


def painted_pixels(data: bytes, order: Order) -> int:
    """Of the size that the photograph will be painted at, told from its header.

    Raises:
        UnsupportedFormat, TooSmall, BrokenImage: as `decode`; nothing is decoded.
    """
    image = open_image(data)
    return painted_size(Size(image.height, image.width), order.max_side, order.multiple).pixels


def decode_opened(image: ImageFile.ImageFile, order: Order) -> tuple[Frame, Plane | None, Size]:
    """The frame, the alpha or None, and the upright size of the original."""
    load_early(image)
    turn = orientation(image)
    original = upright_size(image, turn)
    painted = painted_size(original, order.max_side, order.multiple)
    stored = painted.transposed if turn in SIDEWAYS else painted
    shrink_on_load(image, stored)
    profile = image.info.get("icc_profile")
    colours = to_colours(image)
    small = upright(resize(colours, stored), turn)
    rgb = to_srgb(small, profile)
    return *split_on_white(rgb, small), original


def reserve(image: Image.Image, max_side: int, budget: ByteBudget | None) -> AbstractContextManager[None]:
    """Waits for the bytes that decoding will take.

    Raises:
        TooManyPixels: if there are not as many at all.
    """
    if budget is None:
        return nullcontext()
    needed = predict_decode_bytes(image, max_side)
    if needed > budget.total_bytes:
        raise TooManyPixels(
            f"Decoding this {image.width} x {image.height} {image.format} takes {needed / 1e6:,.0f} MB, and "
            f"{budget.total_bytes / 1e6:,.0f} MB are set aside for it here. Send it smaller, or as a baseline JPEG.",
            budget.total_bytes,
            needed,
        )
    return budget.reserve(needed)


def predict_decode_bytes(image: Image.Image, max_side: int) -> int:
    """What decoding adds to the process at its peak, told from the header; never less than will be measured."""
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
    resized = 4 * (narrow * height + 8 * narrow * low)  # LANCZOS goes across before it goes down; then the painted size
    return int(each * pixels + kept + resized) + DECODE_OVERHEAD_BYTES


def sniff(data: bytes) -> str:
    """Pillow's name of the format that the content is in.

    Raises:
        UnsupportedFormat: if it is none of those read here.
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


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Reads the header only; decoding waits until limits have been checked."""
    name = sniff(data)
    try:
        return Image.open(io.BytesIO(data), formats=[name])
    except MemoryError:
        raise
    except Exception as error:
        raise broken(error) from error


def broken(error: Exception) -> BrokenImage:
    truncated = "truncated" in str(error).lower()
    return BrokenImage(
        "The picture ends before it is complete; send the whole file."
        if truncated
        else "The picture is damaged or malformed and cannot be decoded; save it again and send the new file."
    )


def refuse_large(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise TooManyPixels(
            f"The picture is {image.width} x {image.height}, {pixels} pixels; at most {max_pixels} are decoded here. "
            "Send it smaller.",
            max_pixels,
            pixels,
        )


def load_early(image: ImageFile.ImageFile) -> None:
    """Decodes all but JPEG at once: a PNG's EXIF may lie behind its pixels, and Pillow would decode to look for it."""
    if image.format != "JPEG":
        image.load()


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; anything odd counts as upright."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # malformed EXIF must not cost the picture
        return 1
    return turn if turn in TRANSPOSITIONS else 1


def upright_size(image: Image.Image, turn: int) -> Size:
    size = Size(image.height, image.width)
    return size.transposed if turn in SIDEWAYS else size


def shrink_on_load(image: ImageFile.ImageFile, size: Size) -> None:
    """Lets the JPEG decoder skip frequencies: half, quarter or eighth size, never below the size wanted."""
    height, width = size
    image.draft(None, (width, height))


def to_colours(image: Image.Image) -> Image.Image:
    """Decodes the first frame into one of L, RGB, CMYK, LAB, LA or RGBA, 8 bits a channel."""
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
    """16-bit, 32-bit and float grey to 8 bits: from the full 16-bit range, from [0, 1], or as it is where it fits."""
    grey: NDArray[np.floating] = np.nan_to_num(np.asarray(image, dtype=np.float32))
    top = float(grey.max(initial=0))
    if image.mode.startswith("I;16") or top > 255:
        grey = grey / 257
    elif image.mode == "F" and top <= 1:
        grey = grey * 255
    return Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8))


def upright(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(TRANSPOSITIONS[turn]) if turn in TRANSPOSITIONS else image


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours in sRGB, alpha dropped; a profile that is malformed or for another colour space is ignored."""
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
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
    return opened if opened.profile.xcolor_space.strip() == space else None


def split_on_white(rgb: Image.Image, image: Image.Image) -> tuple[Frame, Plane | None]:
    """The frame composited on white, so that hidden colour cannot shift the generator's norms, and the alpha."""
    if image.mode not in ("LA", "RGBA"):
        return np.asarray(rgb), None
    alpha = image.getchannel("A")
    white = Image.new("RGB", rgb.size, "white")
    return np.asarray(Image.composite(rgb, white, alpha)), np.asarray(alpha)
