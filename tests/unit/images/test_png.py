"""PNG files with chunks that Pillow stumbles over: what browsers show is decoded."""

import struct
import zlib

import numpy as np
import pytest
from decoding import decoded, mean_difference, on_white, ramp, refusal, save
from PIL import Image, ImageCms
from pngs import GREY, PALETTE, RGB, chunk, code_points_chunk, damaged, gamma_chunk, png_of, profile_chunk, with_chunks

from serve_app.images.png import END

PLAIN = save(Image.fromarray(ramp()), "PNG")
NOISE = np.random.default_rng(0).bytes(1_300_000)
LONG_TEXT = b"workflow " * 200_000  # 1.8 MB


def exif_of(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes()


def swapped_profile(padding: bytes = b"") -> bytes:
    """A sound profile in which red and blue change places, so that its use is seen, of any size."""
    sound = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = sound.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    size = len(swapped) + len(padding)
    return struct.pack(">I", size) + swapped[4:] + padding


TEXTS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG_TEXT)),
    "iTXt, compressed": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG_TEXT)),
    "iTXt": chunk(b"iTXt", b"workflow\0\0\0\0\0" + LONG_TEXT),
    "tEXt": chunk(b"tEXt", b"workflow\0" + LONG_TEXT),
    "many": b"".join(chunk(b"zTXt", b"part\0\0" + zlib.compress(bytes(1_000_000))) for _ in range(70)),
    "unknown method": chunk(b"zTXt", b"workflow\0\7" + zlib.compress(b"text")),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", TEXTS)
def test_text_of_any_size_is_passed_over(kind: str, place: str) -> None:
    assert np.array_equal(decoded(with_chunks(PLAIN, **{place: TEXTS[kind]})).frame, ramp())


ANCILLARY = [b"tIME", b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"bKGD", b"hIST", b"sBIT", b"sPLT", b"eXIf", b"iCCP", b"sRGB"]
ANCILLARY += [b"gAMA", b"cHRM", b"cICP", b"tRNS", b"prVt", b"acTL", b"fcTL", b"oFFs"]


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", ANCILLARY)
def test_ancillary_chunk_with_a_wrong_checksum_is_passed_over(name: bytes, place: str) -> None:
    contents = {b"gAMA": struct.pack(">I", 100_000), b"tRNS": bytes(6), b"cICP": b"\x0c\x0d\0\1"}
    contents[b"iCCP"] = b"p\0\0" + zlib.compress(swapped_profile())
    contents[b"eXIf"] = exif_of(6)[6:]
    broken = damaged(name, contents.get(name, b"\x07\xe9\1\1\1\1\1"))
    assert np.array_equal(decoded(with_chunks(PLAIN, **{place: broken})).frame, ramp())


@pytest.mark.parametrize("name", [b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tRNS", b"pHYs", b"acTL", b"fcTL", b"iCCP"])
@pytest.mark.parametrize("content", [b"", b"\0", bytes(3), bytes(40)])
def test_ancillary_chunk_of_a_wrong_length_is_passed_over(name: bytes, content: bytes) -> None:
    assert np.array_equal(decoded(with_chunks(PLAIN, chunk(name, content))).frame, ramp())


def test_second_chunk_of_a_name_is_passed_over() -> None:
    twice = with_chunks(PLAIN, gamma_chunk(1 / 2.2) + gamma_chunk(1.0))
    assert np.array_equal(decoded(twice).frame, ramp())


def test_colours_and_transparency_told_after_the_pixels_do_not_count() -> None:
    late = with_chunks(PLAIN, after=gamma_chunk(1.0) + code_points_chunk(12, 13) + chunk(b"tRNS", bytes(6)))
    result = decoded(late)
    assert np.array_equal(result.frame, ramp())
    assert result.alpha is None


def test_damage_in_a_critical_chunk_stays_damage() -> None:
    header = PLAIN[8:33]
    assert refusal(PLAIN[:8] + header[:-1] + b"\0" + PLAIN[33:]).code == "broken-image"
    palette = png_of(np.zeros((16, 16), np.uint8), 8, PALETTE, damaged(b"PLTE", bytes(3)))
    assert refusal(palette).code == "broken-image"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [None, 0, 1, 4, 257 * 3])
def test_indexed_picture_without_a_sound_palette_is_damaged(length: int | None, bits: int) -> None:
    palette = b"" if length is None else chunk(b"PLTE", bytes(length))
    assert "is damaged or malformed" in str(refusal(png_of(np.zeros((16, 16), np.uint8), bits, PALETTE, palette)))


def test_palette_that_follows_the_pixels_is_none() -> None:
    data = with_chunks(png_of(np.zeros((16, 16), np.uint8), 8, PALETTE), after=chunk(b"PLTE", bytes(3)))
    assert "is damaged or malformed" in str(refusal(data))


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_file_without_another_critical_chunk_is_damaged(name: bytes) -> None:
    at = PLAIN.index(name) - 4
    data = PLAIN[:at] + PLAIN[at + 12 + int.from_bytes(PLAIN[at : at + 4], "big") :]
    assert "is damaged or malformed" in str(refusal(data))


@pytest.mark.parametrize("entries", [1, 2, 256])
def test_palette_of_any_length_is_used(entries: int) -> None:
    palette = chunk(b"PLTE", bytes([200, 100, 50]) + bytes(3 * entries - 3))
    result = decoded(png_of(np.zeros((16, 16), np.uint8), 8, PALETTE, palette))
    assert result.frame[3, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize("size", [0, 1_300_000, 4_000_000])
def test_profile_of_a_printer_is_used_however_large(size: int) -> None:
    data = with_chunks(PLAIN, profile_chunk(swapped_profile((NOISE * 4)[:size])))
    assert mean_difference(decoded(data).frame, ramp()[..., ::-1]) <= 1


def test_profile_beyond_reason_is_skipped() -> None:
    bomb = swapped_profile(bytes(100_000_000))
    assert np.array_equal(decoded(with_chunks(PLAIN, profile_chunk(bomb))).frame, ramp())


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_is_found_at_any_depth(bits: int) -> None:
    top = 2**bits - 1
    samples = np.zeros((16, 16), np.uint16)
    samples[4:] = top - (bits > 1)
    samples[8:] = top
    key = int(samples[4, 0])
    result = decoded(png_of(samples, bits, GREY, chunk(b"tRNS", struct.pack(">H", key))))
    opacity = samples != key
    assert result.alpha is not None
    assert np.array_equal(result.alpha, 255 * opacity)
    assert mean_difference(result.frame[..., 0], on_white(samples[..., None] * (255 / top), opacity)[..., 0]) <= 0.5


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_colour_is_found_at_the_full_depth(bits: int) -> None:
    """Of two colours that differ in the last bit alone, only one is transparent."""
    top = 2**bits - 1
    samples = np.full((16, 16, 3), (top // 3, top // 5, top // 7), np.uint16)
    key = samples[0, 0].tolist()
    samples[8:, :, 2] += 1
    result = decoded(png_of(samples, bits, RGB, chunk(b"tRNS", struct.pack(">3H", *key))))
    assert result.alpha is not None
    assert np.array_equal(result.alpha[:, 0], np.repeat([0, 255], 8))
    assert np.abs(result.frame[8:] - samples[8:] * (255 / top)).max() <= 1


def test_picture_with_a_transparent_colour_has_its_other_properties_too() -> None:
    samples = np.full((16, 24), 30_000, np.uint16)
    chunks = gamma_chunk(1.0), chunk(b"tRNS", b"\0\0"), chunk(b"eXIf", exif_of(6)[6:])
    result = decoded(png_of(samples, 16, GREY, *chunks))
    assert result.size == (24, 16)
    assert result.frame[0, 0].tolist() == pytest.approx([180] * 3, abs=1)  # linear light 0.458


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_exif_that_imagemagick_wrote_as_text_turns_the_picture(name: bytes, place: str) -> None:
    exif = exif_of(6)
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    content = b"\0" + zlib.compress(text) if name == b"zTXt" else text
    data = with_chunks(PLAIN, **{place: chunk(name, b"Raw profile type exif\0" + content)})
    assert decoded(data).size == (64, 48)


@pytest.mark.parametrize("text", [b"", b"\nexif\n 8\nzz", b"\xff\xfe", b"\nexif\n 8\n00"])
def test_nonsense_in_the_place_of_such_exif_is_passed_over(text: bytes) -> None:
    data = with_chunks(PLAIN, chunk(b"tEXt", b"Raw profile type exif\0" + text))
    assert np.array_equal(decoded(data).frame, ramp())


def test_file_of_countless_chunks_is_refused() -> None:
    assert "too many pieces" in str(refusal(with_chunks(PLAIN, chunk(b"tIME") * 150_000)))


def test_apples_variant_is_named() -> None:
    data = PLAIN[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + PLAIN[8:]
    assert refusal(data).code == "unsupported-format"
    assert "CgBI" in str(refusal(data))


def apng(image: Image.Image, **options: object) -> bytes:
    """An animation of two frames, the default image and its rows in the opposite order."""
    later = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return save(image, "PNG", save_all=True, append_images=[later], duration=100, **options)


def pixels_end(data: bytes) -> int:
    """Where the last IDAT chunk ends, checksum included."""
    at = data.rindex(b"IDAT")
    return at + 8 + int.from_bytes(data[at - 4 : at], "big")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.95])
def test_animation_cut_off_after_its_default_image_is_painted(share: float) -> None:
    data = apng(Image.fromarray(ramp()))
    end = pixels_end(data)
    for extra in range(0, 60, 3):
        cut = data[: end + int(share * (len(data) - end)) + extra]
        assert np.array_equal(decoded(cut).frame, ramp()), (share, extra)


def test_animation_with_a_transparent_colour_in_16_bits_may_be_cut_off_too() -> None:
    samples = np.full((16, 24), 30_000, np.uint16)
    whole = png_of(samples, 16, GREY, chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"tRNS", b"\0\0"))
    assert np.array_equal(decoded(whole[:-12] + chunk(b"fdAT", bytes(99))[:50]).frame, decoded(whole).frame)


@pytest.mark.parametrize(
    "junk", [b"\xff\xfe" * 40, b"\0\0\0\4", b"\0\1\0\0XXXXabc", damaged(b"XXXX"), damaged(b"PLTE")]
)
def test_what_follows_the_pixels_cannot_spoil_them(junk: bytes) -> None:
    assert np.array_equal(decoded(PLAIN[:-12] + junk).frame, ramp())


def test_animation_cut_off_inside_its_default_image_is_incomplete() -> None:
    data = apng(Image.fromarray(ramp()))
    begin, end = data.index(b"IDAT"), pixels_end(data)
    for cut in (begin - 2, begin + 1, begin + 5, (begin + end) // 2, end - 12):
        assert "ends before it is complete" in str(refusal(data[:cut])), cut


def test_file_cut_off_between_two_pieces_of_its_pixels_is_incomplete() -> None:
    at, end = PLAIN.index(b"IDAT"), pixels_end(PLAIN)
    pixels = PLAIN[at + 4 : end - 4]
    first = PLAIN[: at - 4] + chunk(b"IDAT", pixels[: len(pixels) // 2])
    assert np.array_equal(decoded(first + chunk(b"IDAT", pixels[len(pixels) // 2 :])).frame, ramp())
    for tail in (b"", b"\0\0", b"\0\0\1\0IDA", END):
        assert "ends before it is complete" in str(refusal(first + tail)), tail


def test_incomplete_file_is_said_to_be_so() -> None:
    text = chunk(b"tEXt", b"some\0text")
    assert "ends before it is complete" in str(refusal(with_chunks(PLAIN, text)[:-200]))
