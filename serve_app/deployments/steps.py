"""The answers of the replicas to the Ingress, one class for each step.

Frames stay in Ray's object store: an answer holds a reference to its frame, which the Ingress hands to the next replica
without opening it. So frames go from replica to replica directly, whatever node they are on, and the Ingress knows the
outcome of a step as soon as the step has ended.
"""

from dataclasses import dataclass
from typing import Any

import ray

from serve_app.errors import Lost
from serve_app.frames import Size

LOST_RETRY_AFTER_S = 5  # a replica takes some seconds to come back


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
        frame: refers to the frame that is to be painted.
        alpha: refers to the transparency; None where the photograph is opaque.
        original: its upright size before resizing.
        painted: the size of its frame.
        took_ms: milliseconds of decoding and resizing.
    """

    frame: "ray.ObjectRef[Any]"
    alpha: "ray.ObjectRef[Any] | None"
    original: Size
    painted: Size
    took_ms: float


@dataclass(frozen=True)
class Painted:
    """A painted frame.

    Attributes:
        frame: refers to it.
        took_ms: milliseconds that its batch was on the device.
    """

    frame: "ray.ObjectRef[Any]"
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
