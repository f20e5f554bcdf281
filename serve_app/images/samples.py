"""Samples of any depth to 8 bits, and images that another library than Pillow decodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.frames import Size

STRIP_SAMPLES = 2**18  # converted at a time, so that the floats in between stay small
PILLOW_BYTES = 4  # per pixel; as much again for colours premultiplied by alpha, to resize them
SLACK_BYTES = 2  # per pixel, for what lies around it for a moment; measured on 12 megapixels

# What white may be, and the largest sample that goes with it. Floats a little above white are highlights or ringing.
FLOAT_RANGES = ((1.0, 16.0), (255.0, 510.0), (65535.0, np.inf))
INTEGER_RANGES = ((255.0, 255.0), (65535.0, 65535.0), (2.0**32 - 1, np.inf))


class ForeignImage(Image.Image):
    """An image that another library than Pillow decodes, when its pixels are first needed.

    Args:
        format: Pillow's name of it.
        mode: Pillow's name of the layout of its pixels.
        size: in pixels, as stored.
        decode: returns the pixels, uint8 (H, W, C) or (H, W), as Pillow's raw decoder of that mode takes them.
        decoding_bytes: per pixel, the most that `decode` takes at a time, what it returns included.
        info: as Pillow's images have it.
    """

    def __init__(
        self,
        format: str,
        mode: str,
        size: Size,
        decode: Callable[[], NDArray[np.uint8]],
        decoding_bytes: int,
        info: dict[str | tuple[int, int], Any],
    ) -> None:
        super().__init__()
        self.format = format
        self.bytes_per_pixel = max(decoding_bytes, PILLOW_BYTES + PILLOW_BYTES * (mode[-1] in "Aa")) + SLACK_BYTES
        self.info = info
        self._mode = mode
        self._size = (size.width, size.height)
        self._decode = decode

    def load(self) -> Any:
        """Decodes the pixels, the first time."""
        if self._im is None:
            pixels = np.ascontiguousarray(self._decode())
            self.im = Image.frombytes(self._mode, self._size, pixels.data, "raw", self._mode).im
        return super().load()


def to_bytes(samples: NDArray[Any], top: float, invert: bool = False) -> NDArray[np.uint8]:
    """Scales samples from 0 to `top` to bytes; what is not a number becomes 0, what lies outside is clipped.

    Args:
        samples: (H, W) or (H, W, C), of any type.
        top: the sample that becomes 255.
        invert: the sample that becomes 0 instead.
    """
    result = np.empty(samples.shape, np.uint8)
    rows = max(1, STRIP_SAMPLES // max(1, samples[:1].size))
    for row in range(0, len(samples), rows):
        strip = samples[row : row + rows].astype(np.float32)
        strip = np.nan_to_num(strip, copy=False, posinf=top) / (top / 255)
        if invert:
            strip = 255 - strip
        result[row : row + rows] = np.clip(strip + 0.5, 0, 255)
    return result


def white_of(samples: NDArray[Any]) -> float:
    """Guesses what white is in samples whose file does not say: the least of the usual ranges that holds them all."""
    rows = max(1, STRIP_SAMPLES // max(1, samples[:1].size))
    largest = 0.0
    for row in range(0, len(samples), rows):
        strip = samples[row : row + rows]
        largest = max(largest, float(strip.max(initial=0, where=np.isfinite(strip))))
    ranges = FLOAT_RANGES if samples.dtype.kind == "f" else INTEGER_RANGES
    return next(white for white, most in ranges if largest <= most)
