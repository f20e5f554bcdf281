"""Photographs made from a seed, and the sizes that a benchmark gives them."""

import io

import numpy as np
from PIL import Image

from serve_app.frames import Size

VARIED_SIZES = 24  # different results of `varied_size`


def photograph(seed: int, size: Size, format: str) -> bytes:
    """Returns an encoded image of smooth patches in random colours; it compresses and paints like a photograph.

    Args:
        seed: another seed gives other colours.
        size: pixels.
        format: by Pillow's name: `JPEG`, `PNG`, `WEBP`.
    """
    patches = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((size.width, size.height), Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def random_sizes(side: int, spread: float, count: int, seed: int = 0) -> list[Size]:
    """Returns sizes whose sides are drawn uniformly from `side` * (1 - spread) to `side` * (1 + spread)."""
    drawn = np.random.default_rng(seed).uniform(1 - spread, 1 + spread, (count, 2))
    return [Size(round(side * height), round(side * width)) for height, width in drawn]


def varied_size(pixels: int, number: int) -> Size:
    """Returns a size of about so many pixels, between 2 : 1 and 1 : 2, with sides that are multiples of 4.

    Numbers from 0 to `VARIED_SIZES` - 1 give different sizes.
    """
    ratio = 2 ** (2 * (number * 7 % VARIED_SIZES) / (VARIED_SIZES - 1) - 1)
    return Size(round((pixels * ratio) ** 0.5 / 4) * 4, round((pixels / ratio) ** 0.5 / 4) * 4)
