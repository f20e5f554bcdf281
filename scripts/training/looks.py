"""Measures what a painting looks like: its distance from other pictures, its flat areas and its outlines.

All functions take frames, (H, W, 3) uint8; distances are between frames of one size.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.frames import Frame

FLAT_GRADIENT = 2 / 255  # of luminance a pixel: less is flat
OUTLINE_WIDTH = 9  # pixels: wider dark areas are not outlines
OUTLINE_DEPTH = 0.12  # of luminance on [0, 1]: how much darker an outline is than what lies on both its sides
OUTLINE_LUMINANCE = 0.5  # an outline is darker than this


def distance(frame: Frame, other: Frame) -> float:
    """Returns how different two pictures look: their L1 on [0, 1] once mean and contrast of each channel are equal.

    So a change of exposure, contrast or white balance counts for nothing. Each picture is matched to the other in turn,
    and the mean of the two distances is returned.
    """
    first, second = as_floats(frame), as_floats(other)
    return float(np.mean([np.abs(matched(a, b) - b).mean() for a, b in ((first, second), (second, first))]))


def as_floats(frame: Frame) -> NDArray[np.float32]:
    """Returns the frame on [0, 1]."""
    return np.asarray(frame / np.float32(255), np.float32)


def matched(image: NDArray[np.float32], to: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the image with the mean and the standard deviation that each channel has in another one."""
    mean, deviation = image.mean((0, 1)), np.maximum(image.std((0, 1)), 1e-3)
    return np.asarray((image - mean) / deviation * to.std((0, 1)) + to.mean((0, 1)), np.float32)


def flat_share(frame: Frame) -> float:
    """Returns the share of pixels in flat areas: the gradient of their luminance is less than 2/255 a pixel."""
    luminance = luminance_of(frame)
    down = luminance[1:, 1:] - luminance[:-1, 1:]
    across = luminance[1:, 1:] - luminance[1:, :-1]
    return float((np.hypot(down, across) < FLAT_GRADIENT).mean())


def outline_share(frame: Frame) -> float:
    """Returns the share of pixels in outlines: dark, and in dark structures of less than `OUTLINE_WIDTH` pixels.

    These are found by a black top-hat: the morphological closing, which fills what is dark and narrow, minus the
    luminance.
    """
    luminance = luminance_of(frame)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OUTLINE_WIDTH, OUTLINE_WIDTH))
    depth = cv2.morphologyEx(luminance, cv2.MORPH_BLACKHAT, disc)
    return float(((depth > OUTLINE_DEPTH) & (luminance < OUTLINE_LUMINANCE)).mean())


def luminance_of(frame: Frame) -> NDArray[np.float32]:
    """Returns the luminance (Rec. 601), on [0, 1]."""
    return np.asarray(cv2.cvtColor(as_floats(frame), cv2.COLOR_RGB2GRAY), np.float32)
