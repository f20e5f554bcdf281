"""Planes and images of floats, and how the steps read them.

An `RgbImage` has values on [0, 1]. A `LabImage` is CIE Lab as OpenCV scales it for floats: L from 0 to 100.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32; the stubs of NumPy take products with a number for float64
Plane = Floats  # (H, W)
RgbImage = Floats  # (H, W, 3)
LabImage = Floats  # (H, W, 3)


def to_lab(rgb: RgbImage) -> LabImage:
    """Returns the image in Lab."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), np.float32)


def to_rgb(lab: LabImage) -> RgbImage:
    """Returns the image in RGB, clipped to [0, 1]."""
    return np.asarray(np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1), np.float32)


def luminance_of(lab: LabImage) -> Plane:
    """Returns the L of Lab on [0, 1]."""
    return np.asarray(np.clip(lab[..., 0] / 100, 0, 1), np.float32)


def blurred(plane: Plane, sigma: float) -> Plane:
    """Returns the plane or image after a Gaussian of `sigma` pixels."""
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.float32)


def mixed(first: Floats, second: Floats, share: Plane) -> Floats:
    """Returns the first image where `share` is 0, the second where it is 1, and a mixture between."""
    weight = share[..., None] if first.ndim > share.ndim else share
    return np.asarray(first + (second - first) * weight, np.float32)


def smoothstep(x: Plane, low: float, high: float) -> Plane:
    """Returns 0 below `low`, 1 above `high`, and a smooth curve between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def gradient_strength(image: Floats, sigma: float) -> Plane:
    """Returns the gradient magnitude a pixel, over all channels, after a Gaussian of `sigma` pixels."""
    smooth = blurred(image, sigma)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    squared = dx * dx + dy * dy
    return np.asarray(np.sqrt(squared if squared.ndim == 2 else squared.sum(axis=2)), np.float32)


def structure_tensor(image: Floats, sigma: float) -> tuple[Plane, Plane, Plane]:
    """Returns the tensor's xx, yy and xy, summed over the channels and averaged by a Gaussian of `sigma` pixels."""
    dx = cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=1 / 8)
    products = (dx * dx, dy * dy, dx * dy)
    planes = (product if product.ndim == 2 else product.sum(axis=2) for product in products)
    xx, yy, xy = (blurred(plane, sigma) for plane in planes)
    return xx, yy, xy


def contour_directions(image: Floats, sigma: float = 2.0) -> tuple[Plane, Plane]:
    """Returns x and y of unit vectors along contours: the minor eigenvector of the structure tensor."""
    xx, yy, xy = structure_tensor(image, sigma)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def coherence(image: Floats, sigma: float) -> Plane:
    """Returns how much all contours near a pixel have one direction: 1 on a single contour, near 0 in texture."""
    xx, yy, xy = structure_tensor(image, sigma)
    return np.asarray(np.sqrt((xx - yy) ** 2 + 4 * xy * xy) / (xx + yy + 1e-8), np.float32)


def gaussian_taps(sigma: float, radius: int) -> dict[int, float]:
    """Returns a Gaussian in one dimension: weights by offset in pixels, with sum 1."""
    weights = {offset: float(np.exp(-0.5 * (offset / sigma) ** 2)) for offset in range(-radius, radius + 1)}
    total = sum(weights.values())
    return {offset: weight / total for offset, weight in weights.items()}


def sample_along(image: Floats, step_x: Plane, step_y: Plane, taps: dict[int, float]) -> Floats:
    """Returns, for each pixel, the weighted sum of samples on a straight line in the direction (step_x, step_y)."""
    rows, columns = np.indices(image.shape[:2], dtype=np.float32)
    total = np.zeros_like(image)
    for offset, weight in taps.items():
        x, y = columns + offset * step_x, rows + offset * step_y
        total += weight * cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return total
