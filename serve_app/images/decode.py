"""Decodes the bytes of a photograph to an upright sRGB frame at the size it is painted at.

The format is recognised by content, never by name. Limits are checked on the header, before anything is decoded.
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageChops, JpegImagePlugin

from serve_app.errors import BrokenImage, OutOfMemory, RequestError
from serve_app.frames import DecodedImage, Frame, Plane, Size, StylizeRequest
from serve_app.images import jpeg
from serve_app.images.colour import to_srgb
from serve_app.images.completeness import is_cut_off
from serve_app.images.formats import open_as
from serve_app.images.header import ImageHeader, read_header, refuse_large
from serve_app.images.resize import painted_size, resize
from serve_app.images.samples import ForeignImage, to_bytes, white_of

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

# Bytes per pixel at a decoder's worst moment, including what is made of its planes; measured on 27 megapixels.
DECODER_BYTES = {"WEBP": 17, "AVIF": 10, "HEIF": 15}
RASTER_BYTES = {"1": 1, "L": 1, "P": 1}  # Pillow's own; every other mode takes 4
SCANS_BYTES = 8  # a JPEG in several scans keeps coefficients of the whole image: 2 bytes for each of 3 or 4 channels
DEEP_BYTES = {"I;16": 7}  # 16-bit grey, on the way to 8 bits; 32-bit and float grey take 11
DRAFT_SCALES = (8, 4, 2)  # factors by which libjpeg can shrink while it decodes
STACK_BYTES = {"HEIF": 2 * 8 * 2**20}  # libheif starts a thread for the tiles of a grid, libde265 one to decode them
PROFILE_BYTES = 4  # per byte of a colour profile, for what LittleCMS makes of it
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
        return decode_opened(image, data, request.max_side, request.multiple, request.box)


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


def decode_opened(
    image: Image.Image, data: bytes, max_side: int, multiple: int, box: Size | None = None
) -> DecodedImage:
    """Decodes an opened file, as `prepare` does, and checks that it holds no more than its header says.

    A JPEG that lacks nothing but its end marker is decoded too.

    Raises:
        TooSmall, BrokenImage: what the photograph's owner can mend.
    """
    stated = Size(image.height, image.width)
    try:
        with cut_off_told(data, str(image.format)):
            decoded = prepare(image, max_side, multiple, box)
    except OSError as error:
        if image.format != "JPEG" or not is_truncation(error):
            raise
        image.close()  # its pixels are not needed any more
        whole = jpeg.with_end(data, painted_size(stated, max_side, multiple))
        if whole is None:
            raise
        decoded = prepare(whole, max_side, multiple, box)
    if decoded.original.pixels > stated.pixels:
        raise broken(ValueError("the frame is larger than the header says"))
    return decoded


def prepare(image: Image.Image, max_side: int, multiple: int, box: Size | None = None) -> DecodedImage:
    """Decodes an opened image, turns it upright, and resizes it to the size it is painted at.

    Raises:
        TooSmall: if a painted side would be under the generator's minimum.
    """
    load_early(image)
    turn = orientation(image)
    original = upright_size(image, turn)
    painted = painted_size(original, max_side, multiple, box)
    stored = painted.transposed if turn in SIDEWAYS else painted
    shrink_on_load(image, stored)
    colours = to_colours(image)
    small = upright(resize(colours, stored), turn)
    return DecodedImage(*split_on_white(to_srgb(small, image.info), small), original)


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
    if isinstance(image, ForeignImage):
        each = image.bytes_per_pixel
    elif image.format in DECODER_BYTES:
        each = DECODER_BYTES[image.format] + 4 * (image.mode == "RGBA")
    elif image.mode.startswith(("I", "F")):
        each = DEEP_BYTES.get(image.mode[:4], 11)
    elif "transparency" in image.info or has_margin(image) or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        each = raster + 4 + 4 * (raster < 4)  # RGBA, then premultiplied for the resize
    else:
        each = raster + {"P": 4, "1": 1}.get(image.mode, 0)
    resized = 4 * (narrow * height + 8 * narrow * low)  # LANCZOS resizes rows first, then columns
    profile = PROFILE_BYTES * len(image.info.get("icc_profile") or b"")
    fixed = STACK_BYTES.get(str(image.format), 0) + DECODE_OVERHEAD_BYTES
    return int(each * pixels + kept + resized) + profile + fixed


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


def open_image(data: bytes, header: ImageHeader, max_pixels: int) -> Image.Image:
    """Opens a file in the format of its header; decoding waits until limits have been checked.

    Raises:
        TooManyPixels: if it states more than `max_pixels`.
        UnsupportedFormat: if it is sound, but of a kind that is not read here.
        BrokenImage: if it cannot be opened.
    """
    if header.stored and header.format == "WEBP":  # opening it allocates its canvas
        refuse_large(header.stored, max_pixels)
    try:
        with cut_off_told(data, header.format):
            image = open_as(data, header.format)
    except (MemoryError, RequestError):
        raise
    except Exception as error:
        raise broken(error) from error
    refuse_large(Size(image.height, image.width), max_pixels)
    return image


@contextmanager
def cut_off_told(data: bytes, format: str) -> Iterator[None]:
    """Turns what a decoder raises in the block into a refusal if the file is cut off and the decoder may not say so.

    Raises:
        BrokenImage: then.
    """
    try:
        yield
    except (MemoryError, RequestError):
        raise
    except Exception as error:
        if is_cut_off(data, format):
            raise broken(EOFError("truncated")) from error
        raise


def broken(error: Exception) -> BrokenImage:
    """Returns the refusal of a file that a decoder failed on: incomplete, or otherwise damaged."""
    return BrokenImage(
        "The picture ends before it is complete; send the whole file."
        if is_truncation(error)
        else "The picture is damaged or malformed and cannot be decoded; save it again and send the new file."
    )


def is_truncation(error: Exception) -> bool:
    """Returns whether a decoder failed because the file is incomplete; Pillow tells by its message alone."""
    return "truncated" in str(error).lower()


def load_early(image: Image.Image) -> None:
    """Decodes every format but JPEG: the EXIF of a PNG may follow its pixels, so Pillow decodes to find it anyway."""
    image.info.pop("xmp", None)  # by it, Pillow would turn a TIFF that its own tag does not turn
    if image.format != "JPEG":
        image.load()


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; a missing or invalid one counts as upright.

    Only EXIF turns a picture, as in browsers; Pillow's `getexif` would ask XMP too. A TIFF has been turned by now.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        turn = exif.get(ExifTags.Base.Orientation, 1)
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
        samples = np.asarray(image)
        return Image.fromarray(to_bytes(samples, 65535 if image.mode.startswith("I;16") else white_of(samples)))
    if has_margin(image):
        return with_margin(image)
    if image.mode in ("CMYK", "LAB"):
        return image
    if image.format == "BMP" and image.mode == "RGBA" and image.getbbox(alpha_only=True) is None:
        return image.convert("RGB")  # programs that do not know alpha leave it 0: then browsers show the colours
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode == "La":
        return image.convert("LA")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def has_margin(image: Image.Image) -> bool:
    """Returns whether an image is a GIF whose first frame leaves some of the screen free."""
    return image.format == "GIF" and getattr(image, "dispose_extent", None) not in (None, (0, 0, *image.size))


def with_margin(image: Image.Image) -> Image.Image:
    """Makes what the first frame of a GIF leaves free transparent, as browsers do; Pillow fills it with colour 0."""
    frame = Image.new("L", image.size)
    frame.paste(255, getattr(image, "dispose_extent"))  # noqa: B009  # only GIFs have it
    framed = image.convert("RGBA")
    framed.putalpha(ImageChops.multiply(framed.getchannel("A"), frame))
    return framed


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Applies the EXIF orientation `turn`."""
    return image.transpose(TRANSPOSITIONS[turn]) if turn in TRANSPOSITIONS else image


def split_on_white(rgb: Image.Image, image: Image.Image) -> tuple[Frame, Plane | None]:
    """Returns the frame composited on white, and the alpha.

    Transparent pixels may hold any colour, which would shift the generator's norms over the whole image.
    """
    if image.mode not in ("LA", "RGBA"):
        return np.asarray(rgb), None
    alpha = image.getchannel("A")
    white = Image.new("RGB", rgb.size, "white")
    return np.asarray(Image.composite(rgb, white, alpha)), np.asarray(alpha)
