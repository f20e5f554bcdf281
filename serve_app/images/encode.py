"""Encodes painted frames. A file is made from pixels alone, so no metadata of the upload can leak into it."""

import io
from typing import Any

import numpy as np
from PIL import Image

from serve_app.frames import Frame, ImageFormat, Plane

MEDIA_TYPES: dict[ImageFormat, str] = {
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "png": "image/png",
    "avif": "image/avif",
}
DEFAULT_QUALITY: dict[ImageFormat, int] = {"jpeg": 90, "webp": 85, "avif": 75}


def encode(frame: Frame, alpha: Plane | None, format: ImageFormat, quality: int | None = None) -> bytes:
    """Encodes a frame; webp, png and avif carry the alpha, and jpeg stays on white.

    Args:
        frame: (H, W, 3) uint8.
        alpha: (H, W) uint8, or None where the image is opaque.
        format: of the file.
        quality: 1 to 100, or None for the format's default; png is lossless and ignores it.
    """
    pixels = with_alpha(frame, alpha if format != "jpeg" else None)
    buffer = io.BytesIO()
    options = save_options(format, quality or DEFAULT_QUALITY.get(format, 0))
    pixels.save(buffer, format.upper(), **options)
    return buffer.getvalue()


def with_alpha(frame: Frame, alpha: Plane | None) -> Image.Image:
    """Returns a frame as a Pillow image: RGBA where there is an alpha, else RGB."""
    return Image.fromarray(frame if alpha is None else np.dstack([frame, alpha]))


def save_options(format: ImageFormat, quality: int) -> dict[str, Any]:
    """Returns Pillow's options. They favour speed: webp and avif at their defaults take longer than decoding."""
    if format == "png":
        return {"compress_level": 4}
    if format == "jpeg":
        # Painted lines are coloured and one pixel wide: from quality 90 on the chroma keeps every pixel.
        return {"quality": quality, "subsampling": "4:4:4" if quality >= 90 else "4:2:0"}
    if format == "webp":
        return {"quality": quality, "method": 2}
    return {"quality": quality, "speed": 8}
