"""Painted frames to bytes. The picture is made anew from pixels, so no metadata of the upload can leave."""

import io
import time
from typing import Any

import numpy as np
from PIL import Image

from serve_app.frames import ImageFormat, Photo, Picture

MEDIA_TYPES: dict[ImageFormat, str] = {
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "png": "image/png",
    "avif": "image/avif",
}
DEFAULT_QUALITY: dict[ImageFormat, int] = {"jpeg": 90, "webp": 85, "avif": 75}


def encode(photo: Photo, format: ImageFormat, quality: int | None = None) -> Picture:
    """Encodes a painted photo; its alpha goes into webp, png and avif, and jpeg stays on white.

    Args:
        quality: 1 to 100; None for the format's default; png is lossless and ignores it.
    """
    began = time.perf_counter()
    pixels = photo.frame
    if photo.alpha is not None and format != "jpeg":
        pixels = np.dstack([photo.frame, photo.alpha])
    buffer = io.BytesIO()
    options = save_options(format, quality or DEFAULT_QUALITY.get(format, 0))
    Image.fromarray(pixels).save(buffer, format.upper(), **options)
    receipt = photo.receipt.timed(encode=1000 * (time.perf_counter() - began))
    return Picture(buffer.getvalue(), MEDIA_TYPES[format], receipt)


def save_options(format: ImageFormat, quality: int) -> dict[str, Any]:
    """Pillow's options, chosen on time: at 1024 px webp and avif at their defaults cost more than decoding."""
    if format == "png":
        return {"compress_level": 4}
    if format == "jpeg":
        # Painted lines are coloured and one pixel wide: from 90 on the chroma keeps every pixel.
        return {"quality": quality, "subsampling": "4:4:4" if quality >= 90 else "4:2:0"}
    if format == "webp":
        return {"quality": quality, "method": 2}
    return {"quality": quality, "speed": 8}
