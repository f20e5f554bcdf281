import io

import numpy as np
import pytest
from PIL import Image

from serve_app.frames import Frame, ImageFormat
from serve_app.images.encode import MEDIA_TYPES, encode

FORMATS = list(MEDIA_TYPES)
LOSSY: list[ImageFormat] = ["jpeg", "webp", "avif"]
WITH_ALPHA: list[ImageFormat] = ["webp", "png", "avif"]


def painting(height: int = 48, width: int = 64) -> Frame:
    """Flat patches with sharp borders, as paintings have."""
    patches = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return patches.repeat(8, axis=0).repeat(8, axis=1)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("format", FORMATS)
def test_image_keeps_its_size_and_colours_and_names_its_media_type(format: ImageFormat) -> None:
    frame = painting()
    image = opened(encode(frame, None, format))
    assert image.format == format.upper()
    assert image.size == (64, 48)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - frame).mean() < 16
    assert MEDIA_TYPES[format] == f"image/{format}"


def test_png_is_lossless() -> None:
    frame = painting()
    assert np.array_equal(np.asarray(opened(encode(frame, None, "png", 1))), frame)


@pytest.mark.parametrize("format", FORMATS)
def test_read_only_frame_is_encoded(format: ImageFormat) -> None:
    frame = painting()
    frame.setflags(write=False)  # as Ray hands it over
    assert opened(encode(frame, None, format)).size == (64, 48)


@pytest.mark.parametrize("format", FORMATS)
def test_no_metadata_leaves(format: ImageFormat) -> None:
    image = opened(encode(painting(), np.full((48, 64), 128, np.uint8), format))
    assert not image.info.keys() & {"exif", "icc_profile", "xmp", "XML:com.adobe.xmp", "comment", "Software"}
    assert len(image.getexif()) == 0


@pytest.mark.parametrize("format", WITH_ALPHA)
def test_alpha_is_put_back(format: ImageFormat) -> None:
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    image = opened(encode(painting(), alpha, format))
    assert image.mode == "RGBA"
    assert np.abs(np.asarray(image.getchannel("A")).astype(int) - alpha).mean() < 2


def test_jpeg_keeps_the_frame_and_drops_the_alpha() -> None:
    white = np.full((48, 64, 3), 255, np.uint8)
    image = opened(encode(white, np.zeros((48, 64), np.uint8), "jpeg"))
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 250


@pytest.mark.parametrize("format", LOSSY)
def test_quality_decides_the_size(format: ImageFormat) -> None:
    small, usual, large = (len(encode(painting(), None, format, quality)) for quality in (5, None, 100))
    assert small < usual < large


def test_png_ignores_quality() -> None:
    assert encode(painting(), None, "png", 1) == encode(painting(), None, "png", 100)


@pytest.mark.parametrize(("quality", "subsampled"), [(None, False), (90, False), (89, True)])
def test_jpeg_keeps_every_pixels_chroma_from_quality_90(quality: int | None, subsampled: bool) -> None:
    image = opened(encode(painting(), None, "jpeg", quality))
    across, down = image.layer[0][1:3]  # type: ignore[attr-defined]
    assert (across, down) == ((2, 2) if subsampled else (1, 1))
