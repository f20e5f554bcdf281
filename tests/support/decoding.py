"""Decodes pictures as the service does, and compares pixels."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serve_app.errors import RequestError
from serve_app.frames import DecodedImage, StylizeRequest
from serve_app.images.decode import decode

Pixels = NDArray[np.uint8]


def decoded(data: bytes, **changes: Any) -> DecodedImage:
    """The decoded image, at its own size unless `max_side` is given."""
    values: dict[str, Any] = {"style": "toon", "max_side": 1024, "multiple": 1, "format": "png"} | changes
    return decode(data, StylizeRequest(**values), 64_000_000)


def refusal(data: bytes) -> RequestError:
    """The error that a file is refused with."""
    with pytest.raises(RequestError) as caught:
        decoded(data)
    return caught.value


def save(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of an image file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def ramp(height: int = 48, width: int = 64) -> Pixels:
    """A smooth picture with many colours, (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x / (width - 1), y / (height - 1), (x + y) / (width + height - 2)]
    return np.round(255 * np.dstack(channels)).astype(np.uint8)


def mean_difference(one: Any, other: Any) -> float:
    """The mean absolute difference of two pictures."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def on_white(colours: Any, opacity: Any) -> NDArray[np.float64]:
    """What colours (H, W, 3) look like on white, where the opacity (H, W) is from 0 to 1."""
    share = np.asarray(opacity, float)[..., None]
    seen: NDArray[np.float64] = np.asarray(colours, float) * share + 255 * (1 - share)
    return seen
