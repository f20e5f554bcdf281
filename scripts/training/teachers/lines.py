"""Lines: ink on contours by a flow-guided difference of Gaussians (Kang et al. 2007), and outlines of flat areas."""

import math

import numpy as np

from training.teachers.planes import (
    LabImage,
    Plane,
    RgbImage,
    blurred,
    contour_directions,
    gaussian_taps,
    gradient_strength,
    mixed,
    sample_along,
    smoothstep,
)


def contour_lines(luminance: Plane, width: float = 1.0, threshold: float = 0.55, softness: float = 1.05) -> Plane:
    """Returns the ink, in [0, 1], on the dark side of contours.

    It is normalised by local contrast, so that dark photographs are not covered with it.

    Args:
        luminance: on [0, 1].
        width: sigma in pixels of the line's profile.
        threshold: of the response, in local deviations; a larger one draws fewer lines.
        softness: from no ink to full ink, in local deviations.
    """
    x, y = contour_directions(luminance, 2.0 * width)
    across = sample_along(luminance, -y, x, difference_of_gaussians(width))
    along = sample_along(across, x, y, gaussian_taps(3.0 * width, math.ceil(6 * width)))
    contrast = np.sqrt(blurred(along * along, 12))
    response = np.asarray(-along / (0.008 + 1.2 * contrast), np.float32)
    return smoothstep(response, threshold, threshold + softness)


def outlines(lab: LabImage, weakest: float, strongest: float, width: float = 1.2) -> Plane:
    """Returns the ink, in [0, 1], on the boundaries of flat areas, also where only the colour changes.

    Args:
        lab: an image of flat areas.
        weakest: the step in units of Lab that gets no ink.
        strongest: the step that is inked fully.
        width: sigma in pixels of the line's profile.
    """
    x, y = contour_directions(lab, 2.0)
    peak = 1 / (math.sqrt(2 * math.pi) * width)  # of the gradient of a step of 1
    strength = sample_along(gradient_strength(lab, width) / peak, x, y, gaussian_taps(3.0, 6))
    return smoothstep(strength, weakest, strongest)


def difference_of_gaussians(width: float) -> dict[int, float]:
    """Returns a difference of Gaussians in one dimension: weights by offset in pixels."""
    radius = math.ceil(5 * width)
    centre, surround = gaussian_taps(width, radius), gaussian_taps(1.6 * width, radius)
    return {offset: centre[offset] - surround[offset] for offset in centre}


def inked(rgb: RgbImage, strength: Plane, darkness: float) -> RgbImage:
    """Returns the image with lines in a darker tone of its own colour: 0 leaves it, 1 makes them black."""
    return mixed(rgb, np.asarray((1 - darkness) * rgb, np.float32), strength)
