"""TIFF in its depths and layouts: the right tones, or a refusal in words; and raw files of cameras."""

import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from decoding import decoded, mean_difference, on_white, ramp, refusal
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tiffs import BYTE, LONG, SHORT, basic_entries, depth, directory_of, packed, tiff_by_hand, tiff_of

from serve_app.errors import BrokenImage, TooManyPixels, TooSmall, UnsupportedFormat
from serve_app.images.tiff_directory import read_directories

COLOURS = ramp() / 255
GREY = COLOURS.mean(axis=2)
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
LAYOUTS = pytest.mark.parametrize("planes", ["contig", "separate"])


def assert_shows(data: bytes, values: NDArray[Any], steps: float = 255) -> None:
    """The picture is opaque, and shows these values from 0 to 1, as exactly as its depth lets it."""
    result = decoded(data)
    assert result.alpha is None
    want = 255 * (values if values.ndim == 3 else np.dstack([values] * 3))
    assert mean_difference(result.frame, want) <= max(0.5, 255 / steps / 3)


@ORDERS
@LAYOUTS
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma"])
def test_rgb_of_any_depth_layout_and_compression(bits: int, planes: str, order: str, compression: str | None) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": planes, "byteorder": order}
    assert_shows(tiff_of(depth(COLOURS, bits), compression=compression, **options), COLOURS)


@ORDERS
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("compression", ["lzw", "zlib"])
def test_predictor_is_undone(bits: int, order: str, compression: str) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "compression": compression, "predictor": True, "byteorder": order}
    assert_shows(tiff_of(depth(COLOURS, bits), **options), COLOURS)


@LAYOUTS
@pytest.mark.parametrize("predictor", [2, 3])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "f4"])
@pytest.mark.parametrize("compression", [None, "packbits"])
def test_predictor_means_nothing_to_a_compression_without_one(
    compression: str | None, kind: str, predictor: int, planes: str
) -> None:
    """As in libtiff: only LZW, Deflate, LZMA and Zstandard store differences."""
    samples = COLOURS.astype(kind) if kind == "f4" else depth(COLOURS, 8 * int(kind[1]))
    data = bytearray(tiff_of(samples, photometric="rgb", planarconfig=planes, compression=compression))
    at = data.index(struct.pack("<HHL", 296, SHORT, 1))  # the unit of resolution, which does not matter
    data[at : at + 12] = struct.pack("<HHLL", 317, SHORT, 1, predictor)
    assert_shows(bytes(data), COLOURS)


@pytest.mark.parametrize("predictor", [2, 3])
def test_predictor_means_nothing_to_bare_samples_that_share_bytes(predictor: int) -> None:
    entries = [*basic_entries(64, 48, 12, 1), (317, SHORT, 1, predictor)]
    assert_shows(tiff_by_hand(packed(depth(GREY, 12), 12), entries), GREY)


@ORDERS
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32])
def test_grey_of_any_depth(bits: int, white_is_zero: bool, order: str) -> None:
    values = 1 - GREY if white_is_zero else GREY
    samples = depth(values, bits)
    pixels = samples.astype(order + "u4").tobytes() if bits == 32 else packed(samples, bits)
    if bits == 16:
        pixels = samples.astype(order + "u2").tobytes()
    data = tiff_by_hand(pixels, basic_entries(64, 48, bits, 0 if white_is_zero else 1), order)
    assert_shows(data, np.round(GREY * (2.0**bits - 1)) / (2.0**bits - 1) if bits < 4 else GREY, 2**bits)


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_rgb_in_bits_that_share_bytes(bits: int) -> None:
    assert_shows(tiff_of(depth(COLOURS, bits), photometric="rgb", bitspersample=bits), COLOURS, 2**bits)


@ORDERS
@LAYOUTS
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_of_the_usual_ranges(kind: str, planes: str, order: str, white: float) -> None:
    if kind == "f2" and white > 60_000:
        pytest.skip("beyond what 16 bits hold")
    samples = (COLOURS * white).astype(kind)
    assert_shows(tiff_of(samples, photometric="rgb", planarconfig=planes, byteorder=order), COLOURS)


def test_floats_with_predictor_and_those_of_grey() -> None:
    options: dict[str, Any] = {"compression": "lzw", "predictor": True}
    assert_shows(tiff_of(COLOURS.astype("f4"), photometric="rgb", **options), COLOURS)
    assert_shows(tiff_of(GREY.astype("f4"), photometric="minisblack"), GREY)
    assert_shows(tiff_of((1 - GREY).astype("f4"), photometric="miniswhite"), GREY)


def test_floats_beyond_white_and_those_that_are_no_numbers() -> None:
    samples = np.zeros((16, 16), np.float32)
    samples[0], samples[1], samples[2], samples[3], samples[4] = 1.0, 1.7, np.nan, np.inf, -0.5
    frame = decoded(tiff_of(samples, photometric="minisblack")).frame
    assert frame[:5, 0, 0].tolist() == [255, 255, 0, 255, 0]


@ORDERS
@LAYOUTS
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("colours", ["grey", "rgb"])
def test_alpha_and_what_is_none(colours: str, alpha: str, bits: int, planes: str, order: str) -> None:
    opacity = np.where(np.arange(64) < 32, 0.5, 1.0)[None].repeat(48, axis=0)
    shown = COLOURS if colours == "rgb" else GREY[..., None]
    stored = shown * opacity[..., None] if alpha == "assocalpha" else shown
    data = tiff_of(
        depth(np.dstack([stored, opacity]), bits),
        photometric="rgb" if colours == "rgb" else "minisblack",
        extrasamples=[alpha],
        planarconfig=planes,
        byteorder=order,
    )
    if alpha == "unspecified":
        assert_shows(data, shown if colours == "rgb" else GREY)
        return
    result = decoded(data)
    assert result.alpha is not None
    assert mean_difference(result.alpha, 255 * opacity) <= 0.5
    assert mean_difference(result.frame, on_white(255 * shown, opacity)) <= 1


def test_channel_that_is_not_explained_is_alpha() -> None:
    data = bytearray(tiff_of(depth(np.dstack([COLOURS, GREY]), 16), photometric="rgb", extrasamples=["unassalpha"]))
    at = data.index(b"\x52\x01\x03\0")  # ExtraSamples
    data[at : at + 2] = b"\x51\x01"
    result = decoded(bytes(data))
    assert result.alpha is not None
    assert mean_difference(result.alpha, 255 * GREY) <= 0.5


@LAYOUTS
def test_cmyk_in_16_bits_is_as_in_8(planes: str) -> None:
    inks = np.dstack([COLOURS, GREY / 2])
    shallow = decoded(tiff_of(depth(inks, 8), photometric="separated", planarconfig=planes)).frame
    deep = decoded(tiff_of(depth(inks, 16), photometric="separated", planarconfig=planes)).frame
    assert shallow.std() > 20
    assert mean_difference(deep, shallow) <= 1


@LAYOUTS
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
def test_lab_of_both_kinds_and_depths(photometric: str, bits: int, compression: str | None, planes: str) -> None:
    """CIE Lab stores a and b as signed numbers, ICC's shifted to be positive."""
    lightness, a, b = 100 * GREY, 80 * COLOURS[..., 0] - 40, 60 * COLOURS[..., 1] - 30
    unit = 1 if bits == 8 else 256
    if photometric == "cielab":
        channels = [lightness * (255 if bits == 8 else 65535) / 100, a * unit, b * unit]
    else:
        channels = [lightness * (255 if bits == 8 else 65535) / 100, (a + 128) * (unit + bits // 16), (b + 128) * unit]
    kind = np.uint8 if bits == 8 else np.uint16
    samples = np.round(np.dstack(channels)).astype(np.int64).astype(kind)
    reference = np.dstack([lightness * 2.55, a + 128, b + 128])
    lab = Image.frombytes(
        "LAB", (64, 48), (np.round(reference).astype(np.uint8) ^ np.array([0, 128, 128], np.uint8)).tobytes()
    )
    want = ImageCms.profileToProfile(
        lab, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    data = tiff_of(samples, photometric=photometric, planarconfig=planes, compression=compression)
    assert mean_difference(decoded(data).frame, want) <= 1.5


@ORDERS
@pytest.mark.parametrize("compression", [1, 32773])
@pytest.mark.parametrize("unit", [1, 256, 257])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_of_8_or_16_bits(bits: int, unit: int, compression: int, order: str) -> None:
    """The specification wants 16 bits; old programs wrote 8, which libtiff recognises by the largest entry."""
    colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
    colours[-1] = 255
    indices = np.arange(48 * 64).reshape(48, 64) % 2**bits
    rows = packed(indices, bits)
    pixels = rows if compression == 1 else b"".join(b"\0" + rows[at : at + 1] for at in range(len(rows)))
    entries = [*basic_entries(64, 48, bits, 3, compression), (320, SHORT, colours.size, 0)]
    entries[-1] = (320, SHORT, colours.size, struct.pack(order + "L", len(tiff_by_hand(pixels, entries, order))))
    data = tiff_by_hand(pixels, entries, order) + (colours.T * unit).astype(order + "u2").tobytes()
    assert decoded(data).frame.tolist() == colours[indices].tolist()


@pytest.mark.parametrize(
    "options",
    [{"tile": (32, 32)}, {"tile": (16, 48), "compression": "lzw"}, {"bigtiff": True}, {"rowsperstrip": 5}],
    ids=str,
)
@LAYOUTS
def test_tiles_strips_and_files_with_large_offsets(options: dict[str, Any], planes: str) -> None:
    assert_shows(tiff_of(depth(COLOURS, 16), photometric="rgb", planarconfig=planes, **options), COLOURS)


@pytest.mark.parametrize("bits", [8, 16])
def test_orientation_turns_at_any_depth(bits: int) -> None:
    data = tiff_of(depth(COLOURS, bits), photometric="rgb", extratags=[(274, SHORT, 1, 6, True)])
    result = decoded(data)
    assert result.original == (64, 48)
    assert mean_difference(result.frame, np.rot90(255 * COLOURS, -1)) <= 0.5


@pytest.mark.parametrize("bits", [8, 16])
def test_profile_is_used_at_any_depth(bits: int) -> None:
    sound = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = sound.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    data = tiff_of(depth(COLOURS, bits), photometric="rgb", iccprofile=swapped)
    assert mean_difference(decoded(data).frame, 255 * COLOURS[..., ::-1]) <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_preview_before_the_picture_is_passed_over(bits: int) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
        writer.write(depth(COLOURS, bits), photometric="rgb", metadata=None)
    assert_shows(buffer.getvalue(), COLOURS)


ASIDE: dict[str, tuple[int, dict[str, Any]]] = {
    "preview": (1, {"photometric": "rgb"}),
    "preview by the old tag": (0, {"photometric": "rgb", "extratags": [(255, SHORT, 1, 2, True)]}),
    "mask": (4, {"photometric": "mask"}),
    "mask of a preview": (5, {"photometric": "mask"}),
    "mask by its colours": (0, {"photometric": "mask"}),
    "mask by its kind": (4, {"photometric": "minisblack"}),
}


def behind(aside: str, samples: NDArray[Any], order: str = "<", big: bool = False, **options: Any) -> bytes:
    """A TIFF whose first two pictures are of a kind in ASIDE; then come samples."""
    kind, front = ASIDE[aside]
    black = np.zeros((12, 16, 3) if front["photometric"] == "rgb" else (12, 16), np.uint8)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=">" if order == ">" else "<", bigtiff=big) as writer:
        for _ in range(2):
            writer.write(black, metadata=None, subfiletype=1 if kind else 0, **front)
        writer.write(samples, metadata=None, **options)
    tag = struct.pack(order + ("HHQL" if big else "HHLL"), 254, LONG, 1, 1)
    return buffer.getvalue().replace(tag, tag[:-4] + struct.pack(order + "L", kind))


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "palette", "JPEG"])
@pytest.mark.parametrize("aside", ASIDE)
def test_what_is_not_the_photograph_is_passed_over(aside: str, kind: str, order: str, big: bool) -> None:
    if kind == "palette":
        greys = np.stack([np.arange(256, dtype=np.uint16) * 257] * 3)
        data = behind(aside, depth(GREY, 8), order, big, photometric="palette", colormap=greys)
        assert_shows(data, GREY)
        return
    samples = depth(COLOURS, 16 if kind == "16 bits" else 8)
    compression = "jpeg" if kind == "JPEG" else None
    data = behind(aside, samples, order, big, photometric="rgb", compression=compression)
    assert_shows(data, COLOURS, 64 if compression else 255)


@pytest.mark.parametrize("value", [1, 3])
def test_old_tag_of_other_pictures_hides_none(value: int) -> None:
    """1 is a full picture, 3 a page of several."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(depth(COLOURS, 8), photometric="rgb", metadata=None, extratags=[(255, SHORT, 1, value, True)])
        writer.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", metadata=None)
    assert_shows(buffer.getvalue(), COLOURS)


def test_mask_alone_is_refused_in_words() -> None:
    refused = refusal(tiff_by_hand(bytes(3072), [(254, LONG, 1, 4), *basic_entries(64, 48, 8, 4)]))
    assert (refused.code, "a mask in 8 bits" in str(refused)) == ("unsupported-format", True)


def test_preview_alone_in_front_is_refused_in_words() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(depth(COLOURS, 8), photometric="rgb", metadata=None)
    refused = refusal(buffer.getvalue())
    assert (refused.code, "only a preview" in str(refused)) == ("unsupported-format", True)


UNREAD: dict[str, tuple[str, bytes]] = {
    "signed": ("signed numbers", tiff_of((GREY * 30_000).astype(np.int16), photometric="minisblack")),
    "signed bytes": ("signed numbers", tiff_of((GREY * 127).astype(np.int8), photometric="minisblack")),
    "complex": ("complex numbers", tiff_of(GREY.astype(np.complex64), photometric="minisblack")),
    "channels": (
        "5 channels",
        tiff_of(
            depth(np.dstack([GREY] * 5), 16), photometric="minisblack", planarconfig="contig", extrasamples=[0] * 4
        ),
    ),
    "64 bits": ("64 bits", tiff_of((GREY * 2**40).astype(np.uint64), photometric="minisblack")),
    "JPEG 2000": ("JPEG 2000", tiff_by_hand(bytes(99), basic_entries(64, 48, 8, 1, compression=34712))),
    "JBIG": ("JBIG", tiff_by_hand(bytes(99), basic_entries(64, 48, 1, 1, compression=34661))),
    "WebP": ("WebP", tiff_of(depth(COLOURS, 8), photometric="rgb", compression="webp")),
    "JPEG in 12 bits": ("JPEG", tiff_by_hand(bytes(99), basic_entries(64, 48, 12, 1, compression=7))),
    "unknown": ("method 40000", tiff_by_hand(bytes(99), basic_entries(64, 48, 8, 1, compression=40000))),
    "LogLuv": ("LogLuv", tiff_by_hand(bytes(9999), basic_entries(64, 48, 16, 32845))),
    "palette": ("a palette in 16 bits", tiff_by_hand(bytes(9999), basic_entries(64, 48, 16, 3))),
    "volume": ("a volume", tiff_by_hand(bytes(9999), [*basic_entries(64, 48, 16, 1), (32997, LONG, 1, 7)])),
    "cmyk with alpha": (
        "CMYK with transparency",
        tiff_of(depth(np.dstack([COLOURS, GREY, GREY]), 16), photometric="separated", extrasamples=[2]),
    ),
}


COLOURED = "save it as RGB or grey in 8 or 16 bits."
LOSSLESS = "save it with LZW, Deflate or no compression."
BOTH = f"{COLOURED[:-1]}, with LZW, Deflate or no compression."
SIGNED = "save it with unsigned numbers, as RGB or grey in 8 or 16 bits."
REMEDIES = dict.fromkeys(("JPEG 2000", "JBIG", "WebP", "JPEG in 12 bits", "unknown"), LOSSLESS) | {
    "signed": SIGNED,
    "signed bytes": SIGNED,
    "volume": "save it as a flat picture.",
}


@pytest.mark.parametrize("kind", UNREAD)
def test_sound_file_of_a_kind_that_is_not_read_is_refused_in_words(kind: str) -> None:
    words, data = UNREAD[kind]
    refused = refusal(data)
    assert refused.code == "unsupported-format"
    assert words in str(refused)
    assert REMEDIES.get(kind, COLOURED) in str(refused)


@pytest.mark.parametrize("photometric", [1, 2, 5])
@pytest.mark.parametrize("compression", [22610, 33003, 34887, 34933, 50001, 50002, 52546])
def test_colours_that_only_the_compression_spoils_are_not_asked_for(compression: int, photometric: int) -> None:
    entries = [entry for entry in basic_entries(64, 48, 8, photometric, compression) if entry[0] != 277]
    refused = refusal(tiff_by_hand(bytes(99), [*entries, (277, SHORT, 1, {1: 1, 2: 3, 5: 4}[photometric])]))
    assert (refused.code, LOSSLESS in str(refused)) == ("unsupported-format", True)


@pytest.mark.parametrize(("bits", "photometric", "compression"), [(16, 32845, 34677), (16, 3, 50001), (64, 1, 34887)])
def test_both_colours_and_compression_are_asked_for(bits: int, photometric: int, compression: int) -> None:
    refused = refusal(tiff_by_hand(bytes(99), basic_entries(64, 48, bits, photometric, compression)))
    assert (refused.code, BOTH in str(refused)) == ("unsupported-format", True)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("bits", [8, 16])
def test_incomplete_file_is_damaged(bits: int, compression: str | None) -> None:
    data = tiff_of(depth(COLOURS, bits), photometric="rgb", compression=compression)
    assert refusal(data[:-40]).code == "broken-image"


@pytest.mark.parametrize("compression", [5, 8, 32773, 34925, 50000])
def test_nonsense_in_place_of_pixels_is_damaged(compression: int) -> None:
    data = tiff_by_hand(b"\x37" * 5000, basic_entries(64, 48, 16, 1, compression))
    assert refusal(data).code == "broken-image"


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(256, SHORT, 1, 64)],
        [(256, SHORT, 1, 0), (257, SHORT, 1, 48), (258, SHORT, 1, 16)],
        [(277, LONG, 1, 300_000_000), *basic_entries(64, 48, 16, 1)],
        [*basic_entries(64, 48, 16, 1), (273, LONG, 1, 0)],
        basic_entries(64, 48, 999, 1),
    ],
    ids=["none", "width", "no width", "many samples", "no place", "many bits"],
)
def test_tags_that_make_no_picture_are_damaged(entries: list[Any]) -> None:
    assert refusal(tiff_by_hand(bytes(6144), entries)).code == "broken-image"


def test_directories_are_read_a_bounded_number_of_times() -> None:
    loop = tiff_by_hand(b"", basic_entries(8, 8, 8, 1))
    looped = loop[:-4] + (8).to_bytes(4, "little")
    chain, inner = read_directories(looped)
    assert (len(chain), inner) == (1, [])
    chain, inner = read_directories(b"II*\0\xff\xff\xff\xff" + bytes(20))
    assert (chain, inner) == ([], [])


def test_values_beyond_the_file_are_empty() -> None:
    entries = [(256, SHORT, 1, 7), (330, LONG, 9, 10**6), (258, SHORT, 3, 60_000)]
    (directory,), _ = read_directories(b"II*\0\x08\0\0\0" + directory_of(entries, "<"))
    assert {tag: directory.numbers(tag, 99) for tag in directory.tags} == {256: [7], 330: [], 258: []}


def raw_like(order: str, front: list[Any], raw: list[Any], inside: bool) -> bytes:
    """A thumbnail, and behind it the directory of a raw picture: in a SubIFD, or next in the chain."""
    thumbnail = [*basic_entries(16, 16, 8, 1), (254, LONG, 1, 1), *front]
    links = [(330, LONG, 1, 0)] if inside else []
    length = len(tiff_by_hand(bytes(256), thumbnail + links, order))
    behind = directory_of(raw, order)
    data = bytearray(tiff_by_hand(bytes(256), thumbnail + ([(330, LONG, 1, length)] if inside else []), order) + behind)
    if not inside:
        end = length - 256
        data[end - 4 : end] = length.to_bytes(4, "little" if order == "<" else "big")
    return bytes(data)


RAWS: dict[str, tuple[list[Any], list[Any], bool]] = {
    "DNG": ([(50706, BYTE, 4, b"\1\4\0\0")], basic_entries(64, 48, 16, 32803), True),
    "DNG of linear colours": ([(50706, BYTE, 4, b"\1\4\0\0")], basic_entries(64, 48, 16, 34892), True),
    "DNG with the raw picture in front": ([(50706, BYTE, 4, b"\1\4\0\0")], [], False),
    "NEF": ([(271, 2, 4, b"NIK\0")], basic_entries(64, 48, 14, 32803, compression=34713), True),
    "ARW": ([(271, 2, 4, b"SON\0")], basic_entries(64, 48, 14, 32803, compression=32767), True),
    "CR2 by its slices": ([], [*basic_entries(64, 48, 14, 1, compression=6), (50752, SHORT, 3, 100)], False),
    "PEF": ([], basic_entries(64, 48, 12, 32803, compression=65535), False),
    "colour filter array without its number": ([(33421, SHORT, 2, b"\2\0\2\0")], [], False),
}


@ORDERS
@pytest.mark.parametrize("camera", RAWS)
def test_raw_file_of_a_camera_is_never_its_thumbnail(camera: str, order: str) -> None:
    refused = refusal(raw_like(order, *RAWS[camera]))
    assert refused.code == "unsupported-format"
    assert "camera's raw file" in str(refused)


def test_tiff_that_names_a_camera_is_painted() -> None:
    tags = [(271, 2, 0, "NIKON CORPORATION", True), (272, 2, 0, "NIKON D3", True)]
    assert_shows(tiff_of(depth(COLOURS, 16), photometric="rgb", extratags=tags), COLOURS)


@pytest.mark.parametrize("bits", [8, 16])
def test_broken_offsets_never_escape_as_another_error(bits: int) -> None:
    data = tiff_of(depth(COLOURS, bits), photometric="rgb", compression="lzw")
    generator = np.random.default_rng(bits)
    for _ in range(300):
        copy = bytearray(data)
        for at in generator.integers(4, 330, 4):
            copy[at] = generator.integers(256)
        with contextlib.suppress(BrokenImage, UnsupportedFormat, TooManyPixels, TooSmall):
            decoded(bytes(copy))
