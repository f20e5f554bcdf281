"""TIFF in all its depths and layouts: read right, or refused in words.

Pillow reads 8 bits and fewer. At other depths it takes planes for pixels, ignores that white is zero, or does not open
the file; `tiff_samples.py` reads those. Raw files of cameras are recognised by their tags: nearly all are TIFFs whose
first picture is a thumbnail.
"""

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImagePalette, UnidentifiedImageError

from serve_app.errors import BrokenImage, UnsupportedFormat
from serve_app.frames import Size
from serve_app.images import tiff_directory as tags
from serve_app.images.raw import RAW_FILE
from serve_app.images.samples import ForeignImage, to_bytes, white_of
from serve_app.images.tiff_directory import Directory, read_directories, starting_at
from serve_app.images.tiff_samples import read_samples

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK, CIELAB, ICCLAB = 0, 1, 2, 5, 8, 9
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4, CIELAB: 3, ICCLAB: 3}
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
PHOTOMETRIC_NAMES = {3: "a palette", 4: "a mask", 6: "YCbCr", 10: "ITU-Lab", 32844: "LogL", 32845: "LogLuv"}
WEBP = 50001
COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, Deflate, PackBits, LZMA, Zstandard
COMPRESSION_NAMES = {
    2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "old JPEG", 7: "JPEG", 9: "JBIG", 10: "JBIG", 22610: "JPEG XR",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv",
    34712: "JPEG 2000", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR", WEBP: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
LOSSLESSLY = "with LZW, Deflate or no compression"
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
INTEGER_BITS = {*range(1, 17), 32}
FLOAT_BITS = {16, 32, 64}
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of alpha
MAX_SAMPLES = 1024
MAX_PALETTE = 3 * 256


class Layout(NamedTuple):
    """How the pixels of a picture are stored.

    Attributes:
        size: in pixels, as stored.
        photometric: what the samples mean.
        compression: TIFF's number of it.
        bits: of each sample of a pixel.
        sample_format: whether samples are integers or floats.
        planar: whether each channel is stored by itself.
        extras: what each sample beyond the colours is: alpha, or something else.
        is_flat: whether the picture has no third dimension.
    """

    size: Size
    photometric: int
    compression: int
    bits: tuple[int, ...]
    sample_format: int
    planar: bool
    extras: tuple[int, ...]
    is_flat: bool

    @property
    def alpha(self) -> int | None:
        """Which of the extra samples is the alpha channel."""
        return next((i for i, extra in enumerate(self.extras) if extra in (ASSOCIATED, UNASSOCIATED)), None)

    @property
    def mode(self) -> str:
        """Pillow's mode of it in 8 bits."""
        if self.photometric in (CIELAB, ICCLAB):
            return "LAB"
        mode = MODES[COLOURS[self.photometric]]
        if self.alpha is None:
            return mode
        return mode + ("a" if self.extras[self.alpha] == ASSOCIATED else "A")

    @property
    def decoding_bytes(self) -> int:
        """Bytes per pixel while it is decoded: as Pillow has them, and as numpy has them."""
        bits = max(self.bits)
        return 2 * len(self.bits) * next(size for size in (1, 2, 4, 8) if bits <= 8 * size)


def open_tiff(data: bytes) -> Image.Image:
    """Opens a TIFF; its pixels are decoded later. Of many pictures, the first that is no preview and no mask is taken.

    Raises:
        UnsupportedFormat: if it is a camera's raw file, or of a kind that is not read here.
        BrokenImage: if it lacks what every TIFF has.
    """
    chain, inner = read_directories(data)
    if not chain:
        raise BrokenImage("The picture is damaged: it has no readable directory. Save it again and send the new file.")
    if any(directory.is_raw for directory in chain + inner):
        raise UnsupportedFormat(RAW_FILE)
    page = next((i for i, directory in enumerate(chain) if not directory.is_aside), None)
    if page is None and not all(directory.is_aside for directory in inner):
        raise UnsupportedFormat(
            "The first picture of this TIFF is only a preview or a mask, and the others lie where they are not read "
            "here; save it with one picture."
        )
    directory = chain[page or 0]
    layout = layout_of(directory)
    if is_foreign(layout):
        return foreign_image(directory, layout)
    file = starting_at(data, chain[page - 1].following) if page else io.BytesIO(data)
    try:
        image = Image.open(file, formats=["TIFF"])
    except UnidentifiedImageError:
        return foreign_image(directory, layout)
    if image.mode in ("P", "PA") and (colours := shallow_palette(directory)) is not None:
        image.palette = ImagePalette.raw("RGB;L", colours)
    return image


def shallow_palette(directory: Directory) -> bytes | None:
    """Returns the colour map (all reds, greens, then blues) if it is of 8 bits, as old programs wrote it."""
    colours = directory.numbers(tags.COLOR_MAP, MAX_PALETTE)
    return bytes(colours) if colours and max(colours) <= 255 else None


def layout_of(directory: Directory) -> Layout:
    """Returns how the pixels are stored.

    Raises:
        BrokenImage: if the tags contradict each other, or lack the size.
    """
    photometric = directory.first(tags.PHOTOMETRIC, WHITE_IS_ZERO)
    samples = directory.first(tags.SAMPLES, 1)
    bits = tuple(directory.numbers(tags.BITS, MAX_SAMPLES)) or (1,)
    size = Size(directory.first(tags.HEIGHT, 0), directory.first(tags.WIDTH, 0))
    if not (0 < samples <= MAX_SAMPLES and min(size) > 0 and all(0 < bit <= 64 for bit in bits)):
        raise BrokenImage("The picture is damaged: its size makes no sense. Save it again and send the new file.")
    beyond = max(0, samples - COLOURS.get(photometric, 1))
    extras = tuple(directory.numbers(tags.EXTRA_SAMPLES, MAX_SAMPLES))
    if not extras and beyond == 1:
        extras = (UNASSOCIATED,)  # many programs write alpha without saying so
    return Layout(
        size=size,
        photometric=photometric,
        compression=directory.first(tags.COMPRESSION, 1),
        bits=bits[:samples] if len(bits) > 1 else bits * samples,
        sample_format=directory.first(tags.SAMPLE_FORMAT, UNSIGNED),
        planar=directory.first(tags.PLANAR, 1) == 2 and samples > 1,
        extras=(*extras, *[0] * beyond)[:beyond],
        is_flat=directory.first(tags.DEPTH, 1) == 1,
    )


def is_foreign(layout: Layout) -> bool:
    """Returns whether Pillow would open the picture, and err."""
    if max(layout.bits) > 8 or layout.sample_format != UNSIGNED or layout.compression == WEBP:
        return True
    if layout.planar and layout.photometric == CIELAB:
        return True
    more_than_colours = layout.extras or COLOURS.get(layout.photometric) == 1
    return layout.planar and bool(more_than_colours) and layout.compression in COMPRESSIONS


def foreign_image(directory: Directory, layout: Layout) -> ForeignImage:
    """Returns a picture that Pillow does not read right.

    Raises:
        UnsupportedFormat: if it is of a kind that is not read here either.
    """
    if (kind := unread_kind(layout)) is not None:
        raise UnsupportedFormat(f"This TIFF holds {kind}, which is not read here; save it {remedy(layout)}.")
    info: dict[Any, Any] = {}
    if profile := directory.content(tags.PROFILE):
        info["icc_profile"] = profile
    if (turn := directory.first(tags.ORIENTATION, 1)) != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = turn
        info["exif"] = exif.tobytes()
    return ForeignImage(
        "TIFF", layout.mode, layout.size, lambda: decode(directory, layout), layout.decoding_bytes, info
    )


def unread_kind(layout: Layout) -> str | None:
    """Returns what about a picture is not read here, in words; None if it is."""
    bits = max(layout.bits)
    if layout.compression not in COMPRESSIONS:
        name = COMPRESSION_NAMES.get(layout.compression, f"method {layout.compression}")
        return f"pixels in {bits} bits that are compressed by {name}"
    if layout.photometric not in COLOURS:
        return f"{PHOTOMETRIC_NAMES.get(layout.photometric, f'colours of kind {layout.photometric}')} in {bits} bits"
    if not layout.is_flat:
        return "a volume of many layers"
    if len(layout.bits) < COLOURS[layout.photometric] or len(set(layout.bits)) > 1:
        return f"samples of {', '.join(map(str, layout.bits))} bits"
    if layout.sample_format not in (UNSIGNED, FLOAT, UNDEFINED):
        return "signed numbers" if layout.sample_format == SIGNED else "complex numbers"
    if bits not in (FLOAT_BITS if layout.sample_format == FLOAT else INTEGER_BITS):
        return f"samples of {bits} bits"
    if COLOURS[layout.photometric] == 1 and len(layout.extras) > 1:
        return f"{len(layout.bits)} channels without colours"
    if layout.mode not in ("L", "LA", "La", "RGB", "RGBA", "RGBa", "CMYK", "LAB"):
        return "CMYK with transparency"
    if layout.mode == "LAB" and (layout.sample_format == FLOAT or bits not in (8, 16)):
        return f"Lab in {bits} bits"
    return None


def remedy(layout: Layout) -> str:
    """Returns how to save a picture of an unread kind so that it is read."""
    if layout.compression not in COMPRESSIONS:
        plain = layout._replace(compression=1)
        return LOSSLESSLY if unread_kind(plain) is None else f"{remedy(plain)}, {LOSSLESSLY}"
    if not layout.is_flat:
        return "as a flat picture"
    if layout.sample_format == SIGNED:
        return "with unsigned numbers, as RGB or grey in 8 or 16 bits"
    return "as RGB or grey in 8 or 16 bits"


def decode(directory: Directory, layout: Layout) -> NDArray[np.uint8]:
    """Decodes a picture to 8 bits.

    Raises:
        OSError: if it is not there in full, or damaged.
    """
    is_float = layout.sample_format == FLOAT
    samples = read_samples(directory, layout.size, len(layout.bits), max(layout.bits), is_float)
    if layout.mode == "LAB":
        return lab_bytes(samples, layout)
    colours = COLOURS[layout.photometric]
    white = white_in(samples[..., :colours], layout)
    result = to_bytes(samples[..., :colours], white, invert=layout.photometric == WHITE_IS_ZERO)
    if layout.alpha is None:
        return result
    opacity = samples[..., colours + layout.alpha, None]
    return np.concatenate([result, to_bytes(opacity, white_in(opacity, layout))], axis=-1)


def white_in(samples: NDArray[Any], layout: Layout) -> float:
    """Returns the sample that means white, or opaque."""
    bits = max(layout.bits)
    return white_of(samples) if layout.sample_format == FLOAT or bits == 32 else 2.0**bits - 1


def lab_bytes(samples: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
    """Returns CIE Lab in 8 bits, a and b as signed numbers; ICC's Lab has them shifted by 128."""
    top = 2.0 ** max(layout.bits) - 1
    if layout.photometric == CIELAB and top > 255:
        samples = samples.copy()
        samples[..., 1:] ^= 0x8000
    result = to_bytes(samples[..., :3], top)
    if layout.photometric == ICCLAB or top > 255:
        result[..., 1:] ^= 0x80
    return result
