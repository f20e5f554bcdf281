"""Pictures made on the fly, and answers read back."""

import io

import numpy as np
from PIL import Image


def photo_bytes(height: int, width: int, format: str = "PNG", seed: int = 0, **options: object) -> bytes:
    """A picture of soft shapes, different for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    channels = [127 + 120 * np.sin(x / 17 + phase[0]) * np.cos(y / 23 + shift) for shift in phase]
    buffer = io.BytesIO()
    Image.fromarray(np.dstack(channels).astype(np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
