"""What travels between the replicas. Sizes are (height, width) everywhere; convert at Pillow's door only."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
ImageFormat = Literal["jpeg", "webp", "png", "avif"]
ResizeMode = Literal["align", "half", "tf"]


class Size(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def longer_side(self) -> int:
        return max(self)

    @property
    def transposed(self) -> "Size":
        """The size of the image turned by 90 degrees."""
        return Size(self.width, self.height)

    def __str__(self) -> str:
        """Width first, as people write sizes: `1024 x 768`."""
        return f"{self.width} x {self.height}"


Frame = NDArray[np.uint8]  # (H, W, 3), RGB, sRGB
Plane = NDArray[np.uint8]  # (H, W)


@dataclass(frozen=True)
class Order:
    """What one request asks for, every default filled in.

    Attributes:
        max_side: pixels of the longer painted side at most.
        multiple: painted sides are rounded down to a multiple of this, for the style's sake.
        quality: 1 to 100, or None for the format's default.
        timeout_s: from being let in to the answer.
    """

    style: str
    max_side: int
    multiple: int
    format: ImageFormat
    quality: int | None = None
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Receipt:
    """What was done to a photograph; `timings_ms` grows along the way, in the order of the road."""

    style: str
    original: Size
    painted: Size
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def resized(self) -> bool:
        return self.painted != self.original

    def timed(self, **timings_ms: float) -> "Receipt":
        return replace(self, timings_ms=self.timings_ms | timings_ms)


@dataclass(frozen=True)
class Photo:
    """The one carrier: decode makes it, stylize replaces its frame, encode turns it into a Picture."""

    frame: Frame
    alpha: Plane | None
    receipt: Receipt


@dataclass(frozen=True)
class Picture:
    """An encoded answer."""

    data: bytes
    media_type: str
    receipt: Receipt
