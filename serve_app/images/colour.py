"""What colours a file means, and their conversion to sRGB.

LittleCMS does the conversions: Pillow brings it. It also builds profiles from primaries and a curve, which Pillow does
not offer. So that is called through imagecodecs, the one maintained binding that does. It takes 80 MB of disk, beside
the gigabytes of torch and Ray, and 1 MB of a process that meets such colours; no other process imports it.

The readers of formats leave what a file says of its colours in the `info` of the image, under Pillow's names where it
has one: `icc_profile`, `srgb`, `gamma`, `chromaticity`; and `code_points`.
"""

import functools
import io
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from serve_app.images.hdr import HLG, PQ, to_sdr

SRGB = ImageCms.createProfile("sRGB")
ICC_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}

Chromaticities = tuple[float, ...]  # x and y of white, red, green and blue, as in a PNG's cHRM
D65 = (0.3127, 0.3290)
ILLUMINANT_C = (0.310, 0.316)
BT709 = (*D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
SMPTE_170M = (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)
PRIMARIES: dict[int, Chromaticities] = {  # ITU-T H.273, table 2
    1: BT709,
    4: (*ILLUMINANT_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: SMPTE_170M,
    7: SMPTE_170M,
    8: (*ILLUMINANT_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    10: (1 / 3, 1 / 3, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),  # XYZ
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
UNSPECIFIED = 2
SRGB_TRANSFER = 13

Curve = float | str  # an exponent, or a name in CURVES
CURVES: dict[int, Curve] = {  # ITU-T H.273, table 3
    # BT.709 and its kin are curves of cameras, not of displays. Stills that bear them hold sRGB; Chromium agrees.
    1: "srgb",
    6: "srgb",
    11: "srgb",
    12: "srgb",
    13: "srgb",
    4: 2.2,
    5: 2.8,
    7: "smpte240m",
    8: 1.0,
    14: "bt2020",
    15: "bt2020",
    17: 2.6,
}
CURVE_STEPS = 4096
SRGB_GAMMA = 1 / 2.2
GAMMA_TOLERANCE = 0.05  # libpng's: a gamma this near to sRGB's means sRGB
CHROMATICITY_TOLERANCE = 0.001
GAMMAS = (0.1, 10.0)  # beyond these a gAMA chunk is nonsense


class CodePoints(NamedTuple):
    """Coding-independent code points (ITU-T H.273) of colours.

    Attributes:
        primaries: of table 2.
        transfer: characteristics, of table 3.
    """

    primaries: int
    transfer: int


def to_srgb(image: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Converts colours to sRGB and drops alpha.

    What says most is taken: code points, then a profile, then a PNG's gamma and chromaticities. What cannot be used (a
    malformed profile, one of another colour space) is passed over.

    Args:
        image: of mode L, LA, RGB, RGBA, CMYK or LAB.
        info: what the file says of its colours.
    """
    colours = image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image
    if colours.mode == "LAB":
        return converted(colours, ImageCms.createProfile("LAB")) or colours.convert("RGB")
    points = code_points(info)
    if points and points.transfer in (PQ, HLG) and colours.mode in ("L", "RGB"):
        colours = Image.fromarray(to_sdr(np.asarray(colours.convert("RGB")), points.transfer))
        sources: Iterable[bytes | None] = [profile_of_points(CodePoints(points.primaries, SRGB_TRANSFER))]
    elif points and is_known(points):
        sources = [profile_of_points(points)]
    else:
        sources = (info.get("icc_profile"), profile_of_png(info))
    for profile in filter(None, sources):
        opened = matching_profile(profile, colours.mode)
        if opened is not None:
            spread = colours.mode == "L" and opened.profile.xcolor_space.strip() == "RGB"
            result = converted(colours.convert("RGB") if spread else colours, opened)
            if result is not None:
                return result
    return colours.convert("RGB")


def converted(image: Image.Image, profile: Any) -> Image.Image | None:
    """Converts an image from a profile (LittleCMS takes two kinds of objects) to sRGB; None if it cannot be used."""
    try:
        return ImageCms.profileToProfile(image, profile, SRGB, outputMode="RGB")
    except ImageCms.PyCMSError:
        return None


def matching_profile(profile: bytes, mode: str) -> ImageCms.ImageCmsProfile | None:
    """Returns the profile if it can be read and describes images of this mode, else None; RGB describes grey too."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
    space = opened.profile.xcolor_space.strip()
    return opened if space == ICC_SPACES[mode] or (mode == "L" and space == "RGB") else None


def code_points(info: Mapping[Any, Any]) -> CodePoints | None:
    """Returns the code points that say what the colours are.

    They are those of a PNG's cICP, of an AVIF or HEIC (nclx), or of a profile in PQ or HLG, which LittleCMS would not
    tone-map.
    """
    if (points := info.get("code_points")) is not None:
        return CodePoints(*points)
    if (profile := info.get("icc_profile")) is not None:
        points = points_of_profile(profile)
        return points if points and points.transfer in (PQ, HLG) else None
    if (nclx := info.get("nclx_profile")) is not None:  # by pi-heif
        return still_points(nclx["color_primaries"], nclx["transfer_characteristics"])
    return None


def still_points(primaries: int, transfer: int) -> CodePoints:
    """Returns the code points of a still image; unspecified ones mean sRGB (MIAF, ISO/IEC 23000-22, 7.3.6.4)."""
    return CodePoints(
        1 if primaries == UNSPECIFIED else primaries, SRGB_TRANSFER if transfer == UNSPECIFIED else transfer
    )


def points_of_profile(profile: bytes) -> CodePoints | None:
    """Returns the code points that an ICC profile of version 4.4 may hold, in the tag `cicp`."""
    for entry in range(132, min(132 + 12 * int.from_bytes(profile[128:132], "big"), len(profile)), 12):
        if profile[entry : entry + 4] == b"cicp":
            offset = int.from_bytes(profile[entry + 4 : entry + 8], "big")
            content = profile[offset + 8 : offset + 10]
            return CodePoints(*content) if len(content) == 2 else None
    return None


def is_known(points: CodePoints) -> bool:
    """Returns whether a profile can describe the code points."""
    return points.primaries in PRIMARIES and points.transfer in CURVES


def profile_of_points(points: CodePoints) -> bytes | None:
    """Returns an ICC profile of code points; None for sRGB, and for those that no profile can describe."""
    if not is_known(points):
        return None
    chromaticities, curve = PRIMARIES[points.primaries], CURVES[points.transfer]
    return None if (chromaticities, curve) == (BT709, "srgb") else build_profile(chromaticities, curve)


def profile_of_png(info: Mapping[Any, Any]) -> bytes | None:
    """Returns an ICC profile of a PNG's gamma and chromaticities; None if it states sRGB, or nothing of use."""
    if "srgb" in info:
        return None
    gamma = info.get("gamma", SRGB_GAMMA)
    usable = GAMMAS[0] <= gamma <= GAMMAS[1]
    curve: Curve = 1 / gamma if usable and abs(gamma / SRGB_GAMMA - 1) > GAMMA_TOLERANCE else "srgb"
    stated = info.get("chromaticity", BT709)
    same = all(abs(one - other) <= CHROMATICITY_TOLERANCE for one, other in zip(stated, BT709, strict=True))
    return None if same and curve == "srgb" else build_profile(BT709 if same else stated, curve)


@functools.lru_cache(maxsize=16)
def build_profile(chromaticities: Chromaticities, curve: Curve) -> bytes | None:
    """Builds an RGB profile with LittleCMS; None if no colour space has such primaries."""
    import imagecodecs  # seldom needed

    white, primaries = chromaticities[:2], chromaticities[2:]
    shape = {"gamma": curve} if isinstance(curve, float) else {"transferfunction": linear_light(curve)}
    try:
        return imagecodecs.cms_profile(
            "rgb",
            whitepoint=[*white, 1.0],
            primaries=[value for i in (0, 2, 4) for value in (*primaries[i : i + 2], 1.0)],
            **shape,
        )
    except (imagecodecs.CmsError, ValueError):
        return None


def linear_light(curve: str) -> NDArray[np.float32]:
    """Returns a curve from 0 to 1 as a table: the light that equally spaced code values mean."""
    code = np.linspace(0, 1, CURVE_STEPS)
    slope, limit, scale, exponent = {
        "srgb": (12.92, 0.04045, 1.055, 2.4),
        "bt2020": (4.5, 4.5 * 0.018053968510807, 1.09929682680944, 1 / 0.45),
        "smpte240m": (4.0, 4.0 * 0.022821585529445, 1.111572195921731, 1 / 0.45),
    }[curve]
    return np.where(code < limit, code / slope, ((code + scale - 1) / scale) ** exponent).astype(np.float32)
