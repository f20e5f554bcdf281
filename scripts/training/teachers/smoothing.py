"""Smoothing that keeps contours: bilateral, anisotropic Kuwahara, and along the contours themselves."""

import functools
import math

import cv2
import numpy as np

from training.teachers.planes import (
    Floats,
    LabImage,
    RgbImage,
    blurred,
    coherence,
    contour_directions,
    gaussian_taps,
    sample_along,
    smoothstep,
)

SECTORS = 8  # of the Kuwahara filter's neighbourhood
RINGS = (0.35, 0.7, 1.0)  # radii of its samples, of the whole
SHARPNESS = 8  # the exponent by which it prefers uniform sectors


def bilateral(lab: LabImage, passes: int = 3, sigma_colour: float = 8) -> LabImage:
    """Returns the image after edge-preserving passes: texture disappears, contours stay."""
    for _ in range(passes):
        lab = np.asarray(cv2.bilateralFilter(lab, d=7, sigmaColor=sigma_colour, sigmaSpace=2.5), np.float32)
    return lab


def along_contours(image: Floats, sigma: float) -> Floats:
    """Returns the image smoothed along its contours, as a brush would draw them."""
    x, y = contour_directions(image)
    return sample_along(image, x, y, gaussian_taps(sigma, math.ceil(2 * sigma)))


def kuwahara(rgb: RgbImage, radius: float, stretch: float = 1.5) -> RgbImage:
    """Returns the image in brush strokes: an anisotropic Kuwahara filter (Kyprianidis et al. 2009), by samples.

    Each pixel gets the mean of the most uniform sectors of an ellipse around it. The ellipse lies along the contour; it
    is a circle where there is no direction.

    Args:
        rgb: the image.
        radius: of the circle in pixels.
        stretch: factor of the ellipse's longer half axis, and divisor of its shorter one.
    """
    x, y = contour_directions(rgb, sigma=3.0)
    longer = 1 + (stretch - 1) * smoothstep(coherence(rgb, 3.0), 0.2, 0.6)
    soft = blurred(rgb, max(0.5, radius / 6))  # the samples are sparse
    rows, columns = np.indices(rgb.shape[:2], dtype=np.float32)
    total = np.zeros((SECTORS, *rgb.shape), np.float32)
    squares = np.zeros((SECTORS, *rgb.shape[:2]), np.float32)
    weights = np.zeros(SECTORS, np.float32)
    for distance, angle, shares in samples():
        along, across = radius * distance * np.cos(angle) * longer, radius * distance * np.sin(angle) / longer
        sample = cv2.remap(
            soft,
            np.asarray(columns + along * x - across * y, np.float32),
            np.asarray(rows + along * y + across * x, np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        square = np.einsum("hwc,hwc->hw", sample, sample)
        for sector, share in shares.items():
            total[sector] += share * sample
            squares[sector] += share * square
            weights[sector] += share
    painted, preferences = np.zeros_like(rgb), np.zeros(rgb.shape[:2], np.float32)
    for sector in range(SECTORS):
        mean = total[sector] / weights[sector]
        variance = np.maximum(squares[sector] / weights[sector] - np.einsum("hwc,hwc->hw", mean, mean), 0)
        preference = 1 / (1 + (255 * np.sqrt(variance)) ** SHARPNESS)
        painted += preference[..., None] * mean
        preferences += preference
    return np.asarray(painted / preferences[..., None], np.float32)


@functools.cache
def samples() -> list[tuple[float, float, dict[int, float]]]:
    """Returns the samples of a unit disc: distance, angle, and their shares in the sectors that they belong to."""
    found: list[tuple[float, float, dict[int, float]]] = [(0.0, 0.0, dict.fromkeys(range(SECTORS), 0.5))]
    spacing = 2 * math.pi / SECTORS
    for ring in RINGS:
        weight = ring * math.exp(-2 * ring * ring)  # the area that a sample stands for, under a Gaussian window
        for index in range(2 * SECTORS):
            first = index // 2
            shares = {first: weight} if index % 2 == 0 else {first: weight / 2, (first + 1) % SECTORS: weight / 2}
            found.append((ring, index * spacing / 2, shares))
    return found
