"""What the replicas answer each other, and how frames travel between them.

Large frames lie in Ray's object store: a call and its answer hold a reference, so that frames go from replica to
replica directly, whatever node they are on. Small frames travel in the calls themselves, because the object store takes
more time than they do.
"""

from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import ray
from numpy.typing import NDArray

from serve_app.errors import Lost
from serve_app.frames import Size

SMALL_BYTES = 2**20  # 512 x 512 pixels and their transparency; above that the object store takes less CPU time
LOST_RETRY_AFTER_S = 5  # a replica takes some seconds to come back


Pixels = NDArray[np.uint8]
Handed = Union[Pixels, "ray.ObjectRef[Any]"]  # pixels, or a reference to them


def hand_over(pixels: Pixels) -> Handed:
    """Returns what a call carries of pixels: a copy if they are few, else a reference."""
    return pixels.copy() if is_small(pixels) else ray.put(pixels)


def is_small(handed: Handed) -> bool:
    """Returns whether a call carries the pixels themselves."""
    return isinstance(handed, np.ndarray) and handed.nbytes <= SMALL_BYTES


def fetch(handed: Handed) -> Pixels:
    """Returns the pixels. It may wait for another node, so it is for threads.

    Raises:
        RayError: if they are lost.
    """
    return handed if isinstance(handed, np.ndarray) else ray.get(handed)


async def fetch_async(handed: Handed) -> Pixels:
    """Returns the pixels, as `fetch` does."""
    return handed if isinstance(handed, np.ndarray) else await handed


def frame_lost(step: str) -> Lost:
    """Returns, as a refusal, that a frame has gone with the process that made it, or with its client.

    Args:
        step: what was made of the picture before.
    """
    return Lost(f"The {step} picture was lost; try again later.", retry_after_s=LOST_RETRY_AFTER_S)


@dataclass(frozen=True)
class Painted:
    """The Stylizer's answer: a painted frame.

    Attributes:
        frame: the painting.
        took_ms: milliseconds that its batch was on the device.
        painter: name of what has painted it; see `serve_app.jobs.works`.
    """

    frame: Handed
    took_ms: float
    painter: str = ""


@dataclass(frozen=True)
class Stylized:
    """The Codec's answer: a painting as the bytes of an image file.

    Attributes:
        data: the file.
        original: the photograph's upright size before resizing.
        painted: the size of the painting.
        worked_ms: milliseconds of work in each step, in the order of the steps.
        painter: as the Stylizer has named it; empty if the Codec has another version of the code.
    """

    data: bytes
    original: Size
    painted: Size
    worked_ms: dict[str, float]
    painter: str = ""


@dataclass(frozen=True)
class Upright:
    """The Codec's answer: a photograph, upright and resized, as the bytes of an image file and its media type."""

    data: bytes
    media_type: str
