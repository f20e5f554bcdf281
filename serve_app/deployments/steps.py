"""The answers of the replicas to the Ingress, one class for each step.

Frames stay in Ray's object store: an answer holds a reference to its frame, which the Ingress hands to the next replica
without opening it. So frames go from replica to replica directly, whatever node they are on, and the Ingress knows the
outcome of a step as soon as the step has ended. Frames of a few kilobytes travel in the answers themselves: the object
store took a quarter of the CPU time beside the painting of so small a picture.
"""

from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import ray
from numpy.typing import NDArray

from serve_app.errors import Lost
from serve_app.frames import Size

INLINE_BYTES = 48 * 2**10  # 128 x 128 pixels; Ray would put answers above 100 kB into the object store by itself
LOST_RETRY_AFTER_S = 5  # a replica takes some seconds to come back


Pixels = NDArray[np.uint8]
Handed = Union[Pixels, "ray.ObjectRef[Any]"]  # pixels, or a reference to them


def hand_over(pixels: Pixels) -> Handed:
    """Returns what an answer carries of pixels: a copy of a few, a reference to many."""
    return pixels.copy() if pixels.nbytes <= INLINE_BYTES else ray.put(pixels)


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
class Decoded:
    """A decoded photograph.

    Attributes:
        frame: that is to be painted.
        alpha: the transparency; None where the photograph is opaque.
        original: its upright size before resizing.
        painted: the size of its frame.
        took_ms: milliseconds of decoding and resizing.
    """

    frame: Handed
    alpha: Handed | None
    original: Size
    painted: Size
    took_ms: float


@dataclass(frozen=True)
class Painted:
    """A painted frame.

    Attributes:
        frame: the painting.
        took_ms: milliseconds that its batch was on the device.
    """

    frame: Handed
    took_ms: float


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file.

    Attributes:
        data: the file.
        took_ms: milliseconds of encoding.
    """

    data: bytes
    took_ms: float
