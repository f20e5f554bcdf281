import io

import numpy as np
import pytest
from PIL import Image

from serve_app.frames import Frame, ImageFormat, Photo, Plane, Receipt
from serve_app.images.encode import MEDIA_TYPES, encode

FORMATS = list(MEDIA_TYPES)
LOSSY: list[ImageFormat] = ["jpeg", "webp", "avif"]
WITH_ALPHA: list[ImageFormat] = ["webp", "png", "avif"]


def painting(height: int = 48, width: int = 64) -> Frame:
    """Flat patches with sharp borders, as paintings have."""
    patches = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return patches.repeat(8, axis=0).repeat(8, axis=1)


def photo_of(frame: Frame, alpha: Plane | None = None) -> Photo:
    return Photo(frame, alpha, Receipt("toon", (96, 128), (frame.shape[0], frame.shape[1]), {"decode": 1.5}))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("format", FORMATS)
def test_picture_keeps_its_size_and_colours_and_names_its_media_type(format: ImageFormat) -> None:
    frame = painting()
    picture = encode(photo_of(frame), format)
    image = opened(picture.data)
    assert image.format == format.upper()
    assert image.size == (64, 48)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - frame).mean() < 16
    assert picture.media_type == f"image/{format}"


def test_png_is_lossless() -> None:
    frame = painting()
    assert np.array_equal(np.asarray(opened(encode(photo_of(frame), "png", 1).data)), frame)


@pytest.mark.parametrize("format", FORMATS)
def test_read_only_frame_is_encoded(format: ImageFormat) -> None:
    frame = painting()
    frame.setflags(write=False)  # as Ray hands it over
    assert opened(encode(photo_of(frame), format).data).size == (64, 48)


@pytest.mark.parametrize("format", FORMATS)
def test_no_metadata_leaves(format: ImageFormat) -> None:
    picture = encode(photo_of(painting(), np.full((48, 64), 128, np.uint8)), format)
    image = opened(picture.data)
    assert not image.info.keys() & {"exif", "icc_profile", "xmp", "XML:com.adobe.xmp", "comment", "Software"}
    assert len(image.getexif()) == 0


@pytest.mark.parametrize("format", WITH_ALPHA)
def test_alpha_is_put_back(format: ImageFormat) -> None:
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    image = opened(encode(photo_of(painting(), alpha), format).data)
    assert image.mode == "RGBA"
    assert np.abs(np.asarray(image.getchannel("A")).astype(int) - alpha).mean() < 2


def test_jpeg_keeps_the_frame_and_drops_the_alpha() -> None:
    white = np.full((48, 64, 3), 255, np.uint8)
    image = opened(encode(photo_of(white, np.zeros((48, 64), np.uint8)), "jpeg").data)
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 250


@pytest.mark.parametrize("format", LOSSY)
def test_quality_decides_the_size(format: ImageFormat) -> None:
    small, usual, large = (len(encode(photo_of(painting()), format, quality).data) for quality in (5, None, 100))
    assert small < usual < large


def test_png_ignores_quality() -> None:
    assert encode(photo_of(painting()), "png", 1).data == encode(photo_of(painting()), "png", 100).data


@pytest.mark.parametrize(("quality", "subsampled"), [(None, False), (90, False), (89, True)])
def test_jpeg_keeps_every_pixels_chroma_from_quality_90(quality: int | None, subsampled: bool) -> None:
    image = opened(encode(photo_of(painting()), "jpeg", quality).data)
    across, down = image.layer[0][1:3]  # type: ignore[attr-defined]
    assert (across, down) == ((2, 2) if subsampled else (1, 1))


def test_receipt_gains_the_time_of_encoding_and_keeps_the_rest() -> None:
    photo = photo_of(painting())
    receipt = encode(photo, "png").receipt
    assert list(receipt.timings_ms) == ["decode", "encode"]
    assert receipt.timings_ms["encode"] > 0
    assert (receipt.style, receipt.original, receipt.painted) == ("toon", (96, 128), (48, 64))
    assert list(photo.receipt.timings_ms) == ["decode"]
