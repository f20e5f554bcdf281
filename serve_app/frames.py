"""The data that travels through the service, and its types.

Sizes are (height, width) everywhere, as a `Size`; they are converted where Pillow is called.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 8  # pixels: the generator shrinks to a quarter, and then reflects one pixel at each edge

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
ImageFormat = Literal["jpeg", "webp", "png", "avif"]
ResizeMode = Literal["align", "half", "tf"]

Frame = NDArray[np.uint8]  # (H, W, 3), RGB, sRGB
Plane = NDArray[np.uint8]  # (H, W)


class Size(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    @property
    def longer_side(self) -> int:
        """The larger of height and width."""
        return max(self)

    @property
    def transposed(self) -> "Size":
        """The size of the image turned by 90 degrees."""
        return Size(self.width, self.height)

    def __str__(self) -> str:
        """Width first, as people write sizes: `1024 x 768`."""
        return f"{self.width} x {self.height}"


@dataclass(frozen=True)
class Client:
    """Whose request it is, for sharing the queue.

    Attributes:
        name: tells clients apart.
        share: the part of the queue that the client may hold, or its group; above 0, at most 1.
        group: clients of one group hold the share together; None if it is the client's own.
    """

    name: str
    share: float = 1.0
    group: str | None = None


@dataclass(frozen=True)
class StylizeRequest:
    """A client's request, with every default filled in.

    Attributes:
        style: name of an installed style.
        max_side: the longer painted side in pixels, at most.
        multiple: painted sides are rounded down to a multiple of this, because the style needs it.
        format: of the answer.
        quality: 1 to 100, or None for the format's default.
        timeout_s: seconds from admission to the answer.
        box: the painting fits into it as well, upright; None if `max_side` alone bounds it.
    """

    style: str
    max_side: int
    multiple: int
    format: ImageFormat
    quality: int | None = None
    timeout_s: float = 60.0
    box: Size | None = None


@dataclass(frozen=True)
class DecodedImage:
    """A photograph's pixels, ready to be painted.

    Attributes:
        frame: upright, sRGB, composited on white, at the size it will be painted at.
        alpha: its transparency at that size; None where the photograph is opaque.
        original: the upright size before resizing.
    """

    frame: Frame
    alpha: Plane | None
    original: Size

    @property
    def size(self) -> Size:
        """The size that it will be painted at."""
        height, width = self.frame.shape[:2]
        return Size(height, width)


@dataclass(frozen=True)
class Receipt:
    """A record of what was done to a photograph.

    Attributes:
        style: that it was painted in.
        original: its upright size.
        painted: the size of the painting.
        timings_ms: milliseconds of each step, in the order of the steps.
        painter: name of what has painted it (see `serve_app.jobs.works`); empty if that is not known.
        reused: whether the painting was made for an earlier request, and the timings are those of fetching it.
    """

    style: str
    original: Size
    painted: Size
    timings_ms: dict[str, float] = field(default_factory=dict)
    painter: str = ""
    reused: bool = False

    @property
    def resized(self) -> bool:
        """Whether the painting has another size than the photograph."""
        return self.painted != self.original


@dataclass(frozen=True)
class EncodedImage:
    """A painting as the bytes of an image file."""

    data: bytes
    media_type: str
    receipt: Receipt
