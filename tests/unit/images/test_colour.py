"""What colours a file means: code points, profiles, gamma; each against the formulas of its standard."""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from decoding import Pixels, decoded, mean_difference, ramp, save
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pngs import chromaticities_chunk, chunk, code_points_chunk, gamma_chunk, profile_chunk, with_chunks
from shared import ROOT

from serve_app.images.colour import CodePoints, build_profile, points_of_profile, to_srgb

DATA = ROOT / "tests" / "data"
Curve = Callable[[NDArray[Any]], NDArray[Any]]

SRGB, P3, BT2020, BT709 = 13, 12, 9, 1
TO_SRGB = {  # linear light of these primaries to linear sRGB, as published in CSS Color 4
    P3: [[1.22494018, -0.22494018, 0], [-0.04205695, 1.04205695, 0], [-0.01963755, -0.07863605, 1.09827360]],
    BT2020: [
        [1.66049100, -0.58764114, -0.07284986],
        [-0.12455047, 1.13289990, -0.00834942],
        [-0.01815076, -0.10057890, 1.11872966],
    ],
    BT709: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}
P3_CHROMATICITIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def srgb_to_linear(code: NDArray[Any]) -> NDArray[Any]:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: NDArray[Any]) -> NDArray[Any]:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def bt2020_to_linear(code: NDArray[Any]) -> NDArray[Any]:
    return np.where(code < 0.0812429, code / 4.5, ((code + 0.0992968) / 1.0992968) ** (1 / 0.45))


def expected(pixels: Pixels, primaries: int, curve: Curve) -> NDArray[Any]:
    """The sRGB of pixels of other primaries and another transfer function, out of gamut clipped."""
    light = curve(pixels / 255) @ np.array(TO_SRGB[primaries]).T
    shown: NDArray[Any] = 255 * linear_to_srgb(np.clip(light, 0, 1))
    return shown


def png(*chunks: bytes, mode: str = "RGB") -> bytes:
    return with_chunks(save(Image.fromarray(ramp()).convert(mode), "PNG"), b"".join(chunks))


def profile_of(chromaticities: tuple[float, ...]) -> bytes:
    profile = build_profile(chromaticities, "srgb")
    assert profile is not None
    return profile


P3_PROFILE = profile_chunk(profile_of(P3_CHROMATICITIES))
CURVES: dict[int, Curve] = {
    1: srgb_to_linear,  # of cameras: stills that bear it hold sRGB
    4: lambda code: code**2.2,
    5: lambda code: code**2.8,
    6: srgb_to_linear,
    8: lambda code: code,
    13: srgb_to_linear,
    14: bt2020_to_linear,
    15: bt2020_to_linear,
}


@pytest.mark.parametrize("transfer", CURVES)
@pytest.mark.parametrize("primaries", [P3, BT2020, BT709])
def test_code_points_of_a_png_are_converted(primaries: int, transfer: int) -> None:
    frame = decoded(png(code_points_chunk(primaries, transfer))).frame
    difference = np.abs(frame - expected(ramp(), primaries, CURVES[transfer]))
    assert difference.max() <= 2
    assert difference.mean() <= 0.5


def test_transparency_is_no_colour() -> None:
    image = Image.fromarray(np.dstack([ramp(), np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))]))
    plain = save(image, "PNG")
    result = decoded(with_chunks(plain, code_points_chunk(P3, 8)))
    assert result.alpha is not None
    assert np.array_equal(result.alpha, np.asarray(image)[..., 3])


FLAT = np.array([[200, 60, 40], [40, 190, 80], [60, 70, 210], [180, 180, 180]], np.uint8)
NCLX = {
    "heic_nclx_p3.heic": (P3, srgb_to_linear),
    "heic_grid_gain_map_p3.heic": (P3, srgb_to_linear),
    "avif_nclx_p3.avif": (P3, srgb_to_linear),
    "avif_grid_p3.avif": (P3, srgb_to_linear),
    "avif_nclx_bt2020_10bit.avif": (BT2020, bt2020_to_linear),
    "avif_nclx_bt709.avif": (BT709, srgb_to_linear),
}


def quarters(frame: Pixels) -> Pixels:
    """The colours in the middle of the four quarters of a picture."""
    height, width = frame.shape[:2]
    rows, columns = [height // 4, 3 * height // 4], [width // 4, 3 * width // 4]
    return frame[np.ix_(rows, columns)].reshape(4, 3)


@pytest.mark.parametrize("name", NCLX)
def test_code_points_of_avif_and_heic_are_converted(name: str) -> None:
    """Grids are put together, and of a picture with a gain map the base is taken."""
    frame = decoded((DATA / name).read_bytes()).frame
    sizes = {"heic_grid_gain_map_p3.heic": (100, 120), "avif_grid_p3.avif": (128, 128)}
    assert frame.shape[:2] == sizes.get(name, (96, 128))
    want = expected(FLAT, *NCLX[name])
    assert mean_difference(quarters(frame), want) <= 2
    assert np.abs(quarters(frame) - want).max() <= 5  # they are coded with loss


@pytest.mark.parametrize("name", ["heic_nclx_pq_10bit.heic", "avif_nclx_hlg_10bit.avif"])
def test_hdr_of_avif_and_heic_is_mapped(name: str) -> None:
    transfer = 16 if "pq" in name else 18
    image = Image.fromarray(np.repeat(np.repeat(FLAT.reshape(2, 2, 3), 48, 0), 64, 1))
    want = np.asarray(to_srgb(image, {"code_points": CodePoints(BT2020, transfer)}))
    assert mean_difference(quarters(decoded((DATA / name).read_bytes()).frame), quarters(want)) <= 2


PRIORITY: dict[str, tuple[list[bytes], tuple[int, Curve]]] = {
    "cICP before iCCP": ([code_points_chunk(BT2020, 13), P3_PROFILE], (BT2020, srgb_to_linear)),
    "cICP for sRGB before iCCP": ([code_points_chunk(1, 13), P3_PROFILE], (BT709, srgb_to_linear)),
    "iCCP before gAMA": ([P3_PROFILE, gamma_chunk(1.0)], (P3, srgb_to_linear)),
    "sRGB before gAMA": ([chunk(b"sRGB", b"\0"), gamma_chunk(1.0)], (BT709, srgb_to_linear)),
    "narrow range in cICP": ([code_points_chunk(P3, 13, full_range=0)], (P3, srgb_to_linear)),
    "narrow range in cICP before iCCP": (
        [code_points_chunk(BT2020, 13, full_range=0), P3_PROFILE],
        (BT2020, srgb_to_linear),
    ),
    "a range that there is not": ([code_points_chunk(P3, 13, full_range=2)], (BT709, srgb_to_linear)),
    "unspecified transfer": ([code_points_chunk(P3, 2)], (P3, srgb_to_linear)),
    "unspecified transfer and narrow range": ([code_points_chunk(BT2020, 2, full_range=0)], (BT2020, srgb_to_linear)),
    "unspecified primaries": ([code_points_chunk(2, 8), P3_PROFILE], (BT709, lambda code: code)),
    "a matrix in cICP": ([code_points_chunk(P3, 13, matrix=1), P3_PROFILE], (P3, srgb_to_linear)),
    "reserved code points": ([code_points_chunk(99, 13), gamma_chunk(1.0)], (BT709, lambda code: code)),
    "unspecified code points": ([code_points_chunk(2, 2), P3_PROFILE], (P3, srgb_to_linear)),
    "a broken profile": ([profile_chunk(b"no profile"), gamma_chunk(1.0)], (BT709, lambda code: code)),
}


@pytest.mark.parametrize("rule", PRIORITY)
def test_what_says_most_is_believed(rule: str) -> None:
    chunks, (primaries, curve) = PRIORITY[rule]
    assert np.abs(decoded(png(*chunks)).frame - expected(ramp(), primaries, curve)).max() <= 2


@pytest.mark.parametrize("gamma", [0.35, 0.55, 0.7, 1.0, 1 / 1.8])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
def test_gamma_of_a_png_counts_where_nothing_better_is_said(gamma: float, mode: str) -> None:
    image = Image.fromarray(ramp()).convert(mode)
    frame = decoded(with_chunks(save(image, "PNG"), gamma_chunk(gamma))).frame
    want = expected(np.asarray(image.convert("RGB")), BT709, lambda code: code ** (1 / gamma))
    assert np.abs(frame - want).max() <= 2


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma_chunk(0.45455)],
        [gamma_chunk(0.4545), chromaticities_chunk(*SRGB_CHROMATICITIES)],
        [chromaticities_chunk(0.31269, 0.32899, 0.63999, 0.33001, 0.3, 0.6, 0.15, 0.05999)],
        [gamma_chunk(0.0)],
        [gamma_chunk(9999.0)],
        [chromaticities_chunk(*[0.0] * 8)],
    ],
)
def test_gamma_and_chromaticities_of_srgb_and_nonsense_change_nothing(chunks: list[bytes]) -> None:
    assert np.array_equal(decoded(png(*chunks)).frame, ramp())


@pytest.mark.parametrize("gamma", [None, 1.0])
def test_chromaticities_of_a_png_count(gamma: float | None) -> None:
    chunks = [chromaticities_chunk(*P3_CHROMATICITIES), *([gamma_chunk(gamma)] if gamma else [])]
    curve = srgb_to_linear if gamma is None else lambda code: code
    assert np.abs(decoded(png(*chunks)).frame - expected(ramp(), P3, curve)).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_rgb_profile_describes_a_grey_picture_too(mode: str, format: str) -> None:
    if format == "JPEG" and mode != "L":
        pytest.skip("JPEG holds neither alpha nor 16 bits")
    dark = build_profile(SRGB_CHROMATICITIES, 1.0)
    grey = ramp()[..., 0]
    deep = mode == "I;16" and format != "WEBP"
    image = (
        Image.fromarray(grey.astype(np.uint16) * 257)
        if deep
        else Image.fromarray(grey).convert(mode[:2].strip("I;") or "L")
    )
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    frame = decoded(save(image, format, icc_profile=dark, **options)).frame
    want = expected(np.dstack([grey] * 3), BT709, lambda code: code)
    assert mean_difference(frame, want) <= 1


def test_profile_with_code_points_in_pq_is_tone_mapped() -> None:
    """LittleCMS would take 10,000 cd/m² for white, and everything else for dark."""
    profile = with_code_points(profile_of(P3_CHROMATICITIES), BT2020, 16)
    assert points_of_profile(profile) == (BT2020, 16)
    told = decoded(png(code_points_chunk(BT2020, 16))).frame
    assert np.array_equal(decoded(png(profile_chunk(profile))).frame, told)


def with_code_points(profile: bytes, primaries: int, transfer: int) -> bytes:
    """An ICC profile with the tag `cicp`, which points behind its end."""
    count = struct.unpack_from(">I", profile, 128)[0]
    moved = bytearray(
        profile[:132] + bytes(12) + profile[132:] + b"cicp" + bytes(4) + bytes([primaries, transfer, 0, 1])
    )
    struct.pack_into(">I", moved, 128, count + 1)
    struct.pack_into(">4sII", moved, 132, b"cicp", len(moved) - 12, 12)
    for entry in range(144, 144 + 12 * count, 12):
        offset = struct.unpack_from(">I", moved, entry + 4)[0]
        struct.pack_into(">I", moved, entry + 4, offset + 12)
    struct.pack_into(">I", moved, 0, len(moved))
    return bytes(moved)


def test_built_profile_is_littlecms_and_says_what_it_was_built_from() -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_of(SRGB_CHROMATICITIES))).profile
    reference = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).profile
    assert profile.xcolor_space == "RGB "
    for name in ("red_primary", "green_primary", "blue_primary"):
        ours, theirs = getattr(profile, name)[0], getattr(reference, name)[0]
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_seldom_needed_libraries_are_not_imported_beforehand() -> None:
    """A process that decodes must stay small."""
    code = "import sys, serve_app.images.decode; sys.exit(bool({'imagecodecs', 'tifffile'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "profile", [b"", bytes(131), bytes(128) + b"\xff" * 4, bytes(128) + b"\0\0\0\1cicp\xff\xff\xff\xff"]
)
def test_malformed_profile_holds_no_code_points(profile: bytes) -> None:
    assert points_of_profile(profile) is None
