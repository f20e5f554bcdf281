import io
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps
from shared import ROOT, SHARED, files_of, name_of, needs_shared

from serve_app.errors import BrokenImage, RequestError, TooManyPixels, TooSmall
from serve_app.frames import DecodedImage, StylizeRequest
from serve_app.images.decode import decode, has_several_scans, open_image, predict_decode_bytes
from serve_app.images.header import read_header, sniff

MAX_PIXELS = 64_000_000
REQUEST = StylizeRequest("toon", max_side=1024, multiple=1, format="jpeg")
TOO_SMALL = {"tiny_1x1_prophoto.png", "tiny_2x2.png"}


def picture(height: int = 60, width: int = 80, mode: str = "RGB") -> Image.Image:
    """A smooth picture, so that lossy formats stay near it."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / (width - 1), 255 * y / (height - 1), 255 * (x + y) / (width + height - 2)]
    return Image.fromarray(np.dstack(channels).astype(np.uint8)).convert(mode)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, **changes: Any) -> DecodedImage:
    values: dict[str, Any] = {"style": "toon", "max_side": 1024, "multiple": 1, "format": "jpeg"} | changes
    return decode(data, StylizeRequest(**values), MAX_PIXELS)


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_decode_reads_format_by_content(format: str) -> None:
    data = save(picture(), format)
    assert sniff(data) == format
    result = decoded(data)
    assert result.frame.shape == (60, 80, 3)
    assert result.frame.dtype == np.uint8
    tolerance = 12 if format == "GIF" else 3  # GIF has 256 colours
    assert mean_difference(result.frame, np.asarray(picture())) < tolerance


def test_decode_rejects_photo_above_pixel_limit() -> None:
    with pytest.raises(TooManyPixels) as refusal:
        decode(save(picture(), "PNG"), REQUEST, max_pixels=4799)
    assert str(refusal.value) == "The picture is 80 x 60, 4800 pixels; at most 4799 are decoded here. Send it smaller."
    assert (refusal.value.limit, refusal.value.actual) == (4799, 4800)


def test_decode_checks_the_limit_on_the_header_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 2**20) + b"IDAT" + b"no pixels follow"
    with pytest.raises(TooManyPixels):
        decoded(data)


def test_decode_refuses_truncated_image() -> None:
    data = save(picture(), "JPEG")
    with pytest.raises(BrokenImage, match=r"^The picture ends before it is complete; send the whole file\.$"):
        decoded(data[: len(data) // 2])


def test_decode_refuses_too_small_image_naming_the_minimum() -> None:
    with pytest.raises(TooSmall, match="each painted side needs at least 8 pixels") as refusal:
        decoded(save(picture(7, 80), "PNG"))
    assert (refusal.value.limit, refusal.value.actual) == (8, 7)


def test_decode_fits_to_max_side_and_says_so() -> None:
    image = decoded(save(picture(300, 400), "PNG"), max_side=100)
    assert (image.original, image.size) == ((300, 400), (75, 100))


def test_decode_rounds_down_to_the_styles_multiple() -> None:
    result = decoded(save(picture(61, 83), "PNG"), multiple=4)
    assert result.frame.shape == (60, 80, 3)
    assert result.size != result.original


def test_decode_keeps_a_small_image_as_it_is() -> None:
    result = decoded(save(picture(), "PNG"))
    assert result.size == result.original
    assert np.array_equal(result.frame, np.asarray(picture()))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_decode_turns_upright(turn: int, format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    data = save(picture(), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    result = decoded(data)
    assert result.original == (reference.height, reference.width)
    assert mean_difference(result.frame, np.asarray(reference)) == 0


def test_decode_survives_malformed_exif() -> None:
    assert decoded(save(picture(), "JPEG", exif=b"Exif\0\0garbage")).frame.shape == (60, 80, 3)


def test_decode_composites_on_white_and_keeps_alpha() -> None:
    image = picture(mode="RGBA")
    alpha = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
    image.putalpha(Image.fromarray(alpha))
    result = decoded(save(image, "PNG"))
    assert result.alpha is not None
    assert np.array_equal(result.alpha, alpha)
    share = alpha[..., None] / 255
    assert mean_difference(result.frame, np.asarray(picture()) * share + 255 * (1 - share)) < 1


def test_hidden_colour_does_not_show() -> None:
    """Two pictures that look the same decode to the same frame, whatever colour their transparent pixels hide."""
    frames = []
    for hidden in ((0, 0, 0), (255, 0, 0)):
        image = Image.new("RGBA", (64, 64), (*hidden, 0))
        image.paste((10, 200, 30, 255), (16, 16, 48, 48))
        frames.append(decoded(save(image, "PNG"), max_side=32).frame)
    assert np.array_equal(frames[0], frames[1])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_decode_takes_other_modes(mode: str) -> None:
    image = picture(mode=mode)
    result = decoded(save(image, "TIFF" if mode == "CMYK" else "PNG"))
    reference = np.asarray(image.convert("RGB"))
    assert mean_difference(result.frame, reference) <= 1


def test_decode_takes_palette_transparency() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (20, 0, 40, 40))
    result = decoded(save(image, "PNG", transparency=0))
    assert result.alpha is not None
    assert result.alpha[0, 0] == 0
    assert tuple(result.frame[0, 0]) == (255, 255, 255)
    assert tuple(result.frame[0, 39]) == (0, 0, 255)


def test_decode_takes_16_bit_grey() -> None:
    ramp = np.tile(np.linspace(0, 65535, 80).astype(np.uint16), (60, 1))
    result = decoded(save(Image.fromarray(ramp), "PNG"))
    assert mean_difference(result.frame[..., 0], ramp / 257) < 1


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_decode_takes_float_grey(scale: float) -> None:
    ramp = np.tile(np.linspace(0, scale, 80).astype(np.float32), (60, 1))
    result = decoded(save(Image.fromarray(ramp), "TIFF"))
    assert mean_difference(result.frame[..., 0], ramp * 255 / scale) < 1


def test_decode_takes_the_first_frame_of_an_animation() -> None:
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    result = decoded(save(red, "GIF", save_all=True, append_images=[blue]))
    assert tuple(result.frame[0, 0]) == (255, 0, 0)


def test_decode_ignores_a_broken_profile() -> None:
    result = decoded(save(picture(), "PNG", icc_profile=b"not a profile"))
    assert np.array_equal(result.frame, np.asarray(picture()))


def test_decode_ignores_a_profile_of_another_colour_space() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    result = decoded(save(picture(), "PNG", icc_profile=lab))
    assert np.array_equal(result.frame, np.asarray(picture()))


def test_shrink_on_load_stays_near_the_full_decode() -> None:
    y, x = np.mgrid[0:1200, 0:1600]
    texture = 128 + 60 * np.sin(x / 23) * np.cos(y / 31) + 40 * ((x // 97 + y // 89) % 2)
    image = Image.fromarray(np.dstack([texture, texture[::-1], texture[:, ::-1]]).astype(np.uint8))
    data = save(image, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).resize((400, 300), Image.Resampling.LANCZOS)
    assert mean_difference(decoded(data, max_side=400).frame, np.asarray(full)) < 2


def to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # it is None only for a conversion in place
    return converted


def reference_frame(path: Path) -> np.ndarray:
    """Pillow and LittleCMS with nothing clever: full decode, upright, to sRGB, on white, LANCZOS to 1024."""
    image: Image.Image = ImageOps.exif_transpose(Image.open(path))
    profile = image.info.get("icc_profile")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "LAB":
        image = to_srgb(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    elif profile:
        alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
        colours = image.convert(image.mode[:-1]) if alpha else image
        image = to_srgb(colours, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        if alpha:
            image.putalpha(alpha)
    if image.mode in ("RGBA", "LA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    scale = min(1, 1024 / max(image.size))
    return np.asarray(image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS))


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("path", files_of("photos"), ids=name_of)
def test_every_photo_decodes_near_the_littlecms_reference(path: Path) -> None:
    if path.name in TOO_SMALL:
        with pytest.raises(TooSmall, match="at least 8 pixels"):
            decoded(path.read_bytes())
        return
    result = decoded(path.read_bytes())
    reference = reference_frame(path)
    assert result.frame.shape == reference.shape
    assert result.frame.shape[:2] == result.size
    assert mean_difference(result.frame, reference) <= 2


@needs_shared
@pytest.mark.parametrize("kind", ["landscape", "portrait"])
def test_exif_turns_agree_upright(kind: str) -> None:
    paths = sorted((SHARED / "photos" / "exif_orientation").glob(f"{kind}_*.jpg"))
    first, *others = (decoded(path.read_bytes()).frame for path in paths)
    assert len(others) >= 2
    for other in others:
        assert mean_difference(other, first) <= 3


@needs_shared
@pytest.mark.parametrize("path", files_of("bad"), ids=name_of)
def test_every_hostile_file_is_refused_or_decodes_as_the_index_says(path: Path) -> None:
    row = next(line for line in (SHARED / "bad" / "INDEX.md").read_text().splitlines() if name_of(path) in line)
    verdict = row.split("|")[3].strip()
    try:
        result = decoded(path.read_bytes())
    except RequestError as error:
        refusal = error
    else:
        assert verdict.startswith("decodes")
        assert result.frame.shape[2] == 3
        return
    assert 400 <= refusal.status < 500


def predicted(data: bytes) -> int:
    return predict_decode_bytes(open_image(data, read_header(data), MAX_PIXELS), 1024)


def test_of_an_mpo_the_first_picture_is_decoded_as_the_jpeg_that_it_is() -> None:
    first, second = picture(2400, 3200), picture(600, 800)
    mpo = save(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    jpeg = save(first, "JPEG")
    assert predicted(mpo) == predicted(jpeg)  # it is shrunk while it is decoded
    image, same = decoded(mpo), decoded(jpeg)
    assert image.original == (2400, 3200)
    assert np.array_equal(image.frame, same.frame)


@needs_shared
@pytest.mark.parametrize(
    ("name", "several"),
    [("flower_noninterleaved.jpg", True), ("flower_partinterleaved.jpg", True), ("flower_cmyk_510x532.jpg", False)],
)
def test_jpeg_in_several_scans_is_known_to_keep_its_coefficients(name: str, several: bool) -> None:
    data = (SHARED / "photos" / "jpeg_kinds" / name).read_bytes()
    image = open_image(data, read_header(data), MAX_PIXELS)
    assert has_several_scans(image) is several
    assert (predicted(data) > 8 * image.width * image.height) is (several or image.mode == "CMYK")
    assert decoded(data).frame.shape[2] == 3  # and the file can still be read


def test_frame_that_is_larger_than_its_header_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.images.decode.load_early", lambda image: setattr(image, "_size", (800, 600)))
    with pytest.raises(BrokenImage):
        decoded(save(picture(), "JPEG"))


LARGE: dict[str, tuple[str, str, dict[str, object]]] = {
    "baseline": ("RGB", "JPEG", {}),
    "progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "cmyk": ("CMYK", "JPEG", {"progressive": True}),
    "rgb": ("RGB", "PNG", {"compress_level": 1}),
    "rgba": ("RGBA", "PNG", {"compress_level": 1}),
    "la": ("LA", "PNG", {"compress_level": 1}),
    "palette": ("P", "PNG", {"compress_level": 1}),
    "see-through palette": ("P", "PNG", {"compress_level": 1, "transparency": 3}),
    "bits": ("1", "PNG", {"compress_level": 1}),
    "16 bits": ("I;16", "PNG", {"compress_level": 1}),
    "float": ("F", "TIFF", {}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "webp": ("RGB", "WEBP", {"method": 0}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "see-through avif": ("RGBA", "AVIF", {"speed": 10}),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a process's peak")
@pytest.mark.parametrize("kind", LARGE)
def test_decoding_takes_no_more_than_predicted_from_its_header(kind: str, tmp_path: Path) -> None:
    mode, format, options = LARGE[kind]
    large = Image.effect_noise((400, 300), 90).convert("RGB").resize((4000, 3000))
    if mode == "I;16":
        large = Image.fromarray(np.asarray(large.convert("L")).astype(np.uint16) * 257)
    path = tmp_path / "large"
    path.write_bytes(save(large if mode == "I;16" else large.convert(mode), format, **options))
    script = f"""
        from pathlib import Path
        from serve_app.images.decode import decode, open_image, predict_decode_bytes
        from serve_app.images.header import read_header
        from serve_app.frames import StylizeRequest

        def status(key):
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
            return int(line.split()[1]) * 1024

        data = Path({str(path)!r}).read_bytes()
        predicted = predict_decode_bytes(open_image(data, read_header(data), 64_000_000), 1024)
        idle = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        decode(data, StylizeRequest("toon", max_side=1024, multiple=4, format="jpeg"), 64_000_000)
        print(status("VmHWM") - idle, predicted)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    measured, predicted = map(int, run.stdout.split())
    assert measured <= predicted
    assert predicted <= 2 * measured + 20_000_000  # and not a wild guess either
