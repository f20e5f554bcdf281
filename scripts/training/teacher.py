"""The teacher: a classical, deterministic stylisation of photographs that the default style learns to imitate.

It flattens areas by bilateral filtering in Lab and L0 gradient smoothing (Xu et al. 2011), quantises luminance softly
(Winnemöller et al. 2006), lifts shadows, makes colours more saturated with warm lights and cool shadows, and draws thin
dark lines from a flow-guided difference of Gaussians (Kang et al. 2007).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.frames import Frame

Plane = NDArray[np.float32]  # (H, W)
FloatImage = NDArray[np.float32]  # (H, W, 3)

CONTRAST = 0.68  # root mean square about mid-grey, on [-1, 1]
MARGIN = 16  # pixels of reflection: l0Smooth works by FFT, so opposite borders would shine through


def teacher_painting(photo: Frame) -> Frame:
    """Returns the teacher's painting of a photograph, of the same size; all radii are pixels of that size."""
    rgb = with_standard_contrast(photo)
    lab = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), np.float32)
    detail = detail_mask(luminance_of(lab))[..., None]
    smoothed = smoothed_texture(lab)
    ink = ink_lines(luminance_of(smoothed))
    coloured = graded(flattened(smoothed) * (1 - detail) + lab * detail)
    painted = np.asarray(cv2.cvtColor(coloured, cv2.COLOR_LAB2RGB), np.float32)
    strength = 0.85 * ink[..., None]
    painted = painted * (1 - strength) + 0.28 * painted * strength
    return np.asarray(np.clip(painted * 255 + 0.5, 0, 255), np.uint8)


def with_standard_contrast(photo: Frame | FloatImage) -> FloatImage:
    """Returns the photograph, values 0 to 255, on [0, 1] at one standard contrast, with soft shoulders.

    The student cannot know the contrast. Its first convolution has no bias, and the norm behind it divides by the
    image's own deviation, so a photograph and the same at half the contrast about mid-grey look alike to it. It could
    not imitate a teacher that told them apart.
    """
    signal = photo.astype(np.float32) / 127.5 - 1
    signal *= CONTRAST / max(float(np.sqrt(np.mean(signal * signal))), 1e-3)
    return np.asarray(0.5 + 0.5 * signal / (1 + np.abs(signal) ** 3) ** (1 / 3), np.float32)


def luminance_of(lab: FloatImage) -> Plane:
    """Returns the L of Lab on [0, 1]."""
    return np.asarray(lab[..., 0] / 100, np.float32)


def smoothed_texture(lab: FloatImage) -> FloatImage:
    """Returns the image after three edge-preserving passes: texture disappears, contours stay."""
    for _ in range(3):
        lab = np.asarray(cv2.bilateralFilter(lab, d=7, sigmaColor=8, sigmaSpace=2.5), np.float32)
    return lab


def flattened(lab: FloatImage) -> FloatImage:
    """Returns the image in flat areas with clean boundaries.

    Shadows are lifted while it smooths, or all their contours would be lost.
    """
    rgb = np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1)
    margin = min(MARGIN, min(rgb.shape[:2]) - 1)
    padded = cv2.copyMakeBorder(rgb**0.7, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    flat = cv2.ximgproc.l0Smooth(padded, None, 0.007, 2.0)[margin:-margin, margin:-margin]
    flat_lab = cv2.cvtColor(np.clip(flat, 0, 1) ** (1 / 0.7), cv2.COLOR_RGB2LAB)
    return np.asarray(0.85 * flat_lab + 0.15 * lab, np.float32)


def detail_mask(luminance: Plane) -> Plane:
    """Returns where detail must stay, in [0, 1]: where it is strong (lettering) or isolated (an eye, a mouth).

    Contrast is relative to the brightness around it, so that eyes in dark faces count as much as in light ones.
    Texture is not isolated, since it is as strong as its surroundings.
    """
    around = cv2.GaussianBlur(luminance, (0, 0), 6)
    difference = np.abs(luminance - cv2.GaussianBlur(luminance, (0, 0), 3))
    detail = np.asarray(cv2.GaussianBlur(difference, (0, 0), 2), np.float32)
    detail /= 0.12 + 0.88 * around
    isolation = detail / (cv2.GaussianBlur(detail, (0, 0), 14) + 0.004)
    isolated = smoothstep(detail, 0.02, 0.05) * smoothstep(isolation, 1.0, 1.5)
    return np.asarray(np.maximum(0.6 * smoothstep(detail, 0.1, 0.2), 0.95 * isolated), np.float32)


def graded(lab: FloatImage) -> FloatImage:
    """Returns the image with luminance quantised at 60 %, shadows lifted, and colours saturated within a limit."""
    luminance = np.clip(lab[..., 0] / 100, 0, 1)
    bins = 8
    centre = (np.floor(luminance * bins) + 0.5) / bins
    stepped = centre + np.tanh((luminance - centre) * bins * 3) / (2 * bins)
    luminance = (0.04 + 0.96 * (0.4 * luminance + 0.6 * stepped)) ** 0.8
    chroma = np.hypot(lab[..., 1], lab[..., 2]) + 1e-6
    shoulder = 88.0
    gain = shoulder * np.tanh(1.35 * chroma / shoulder) / chroma
    a = lab[..., 1] * gain
    b = lab[..., 2] * gain + 14 * (luminance - 0.55)
    return np.dstack([100 * luminance, a, b]).astype(np.float32)


def ink_lines(luminance: Plane) -> Plane:
    """Returns the ink, in [0, 1], on the dark side of contours.

    It is normalised by local contrast, so that dark photographs are not covered with it.
    """
    tangent_x, tangent_y = contour_directions(luminance)
    across = sample_along(luminance, -tangent_y, tangent_x, dog_taps())
    along = sample_along(across, tangent_x, tangent_y, gaussian_taps(3.0, 6))
    contrast = np.sqrt(cv2.GaussianBlur(along * along, (0, 0), 12))
    return smoothstep(np.asarray(-along / (0.008 + 1.2 * contrast), np.float32), 0.55, 1.6)


def contour_directions(luminance: Plane) -> tuple[Plane, Plane]:
    """Returns x and y of unit vectors along contours: the minor eigenvector of the smoothed structure tensor."""
    dx = cv2.Sobel(luminance, cv2.CV_32F, 1, 0)
    dy = cv2.Sobel(luminance, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), 2.0) for product in (dx * dx, dy * dy, dx * dy))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def dog_taps() -> dict[int, float]:
    """Returns a difference of Gaussians in one dimension: weights by offset in pixels."""
    centre, surround = gaussian_taps(1.0, 5), gaussian_taps(1.6, 5)
    return {offset: centre[offset] - surround[offset] for offset in centre}


def gaussian_taps(sigma: float, radius: int) -> dict[int, float]:
    """Returns a Gaussian in one dimension: weights by offset in pixels, with sum 1."""
    weights = {offset: float(np.exp(-0.5 * (offset / sigma) ** 2)) for offset in range(-radius, radius + 1)}
    total = sum(weights.values())
    return {offset: weight / total for offset, weight in weights.items()}


def sample_along(plane: Plane, step_x: Plane, step_y: Plane, taps: dict[int, float]) -> Plane:
    """Returns, for each pixel, the weighted sum of samples on a straight line in the direction (step_x, step_y)."""
    rows, columns = np.indices(plane.shape, dtype=np.float32)
    total = np.zeros_like(plane)
    for offset, weight in taps.items():
        x, y = columns + offset * step_x, rows + offset * step_y
        total += weight * cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return total


def smoothstep(x: Plane, low: float, high: float) -> Plane:
    """Returns 0 below `low`, 1 above `high`, and a smooth curve between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
