"""The teacher: a classical, deterministic stylisation of photographs that the default style learns to imitate.

Flat areas from bilateral filtering in Lab and L0 gradient smoothing (Xu et al. 2011), soft luminance quantisation
(Winnemöller et al. 2006), an airy tone curve, saturated colours with warm lights and cool shadows, and thin dark lines
from a flow-guided difference of Gaussians (Kang et al. 2007).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]  # (H, W)
Picture = NDArray[np.float32]  # (H, W, 3)

CONTRAST = 0.68  # root mean square about mid-grey, on [-1, 1]
BORDER = 16  # l0Smooth works by FFT and wraps around: without reflected margins the borders glow


def teach(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paints one photograph, uint8 RGB (H, W, 3), at the size given; radii are pixels of that size."""
    rgb = expose(photo)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    kept = guard(lab[..., 0] / 100)[..., None]
    smoothed = smooth(lab)
    ink = lines(smoothed[..., 0] / 100)
    coloured = grade(flatten(smoothed) * (1 - kept) + lab * kept)
    painted = cv2.cvtColor(coloured, cv2.COLOR_LAB2RGB)
    strength = 0.85 * ink[..., None]
    painted = painted * (1 - strength) + 0.28 * painted * strength
    return np.clip(painted * 255 + 0.5, 0, 255).astype(np.uint8)


def expose(photo: NDArray[np.uint8] | Picture) -> Picture:
    """The photograph on [0, 1] at one standard contrast, with soft shoulders: what the student can know of it.

    The generator's first convolution has no bias and its norm divides by the picture's own deviation, so a photograph
    and the same at half the contrast about mid-grey are one to it. A teacher that told them apart could not be learnt.
    """
    signal = photo.astype(np.float32) / 127.5 - 1
    signal *= CONTRAST / max(float(np.sqrt(np.mean(signal * signal))), 1e-3)
    return np.asarray(0.5 + 0.5 * signal / (1 + np.abs(signal) ** 3) ** (1 / 3), np.float32)


def smooth(lab: Picture) -> Picture:
    """Three edge-preserving passes: texture goes, contours stay."""
    for _ in range(3):
        lab = cv2.bilateralFilter(lab, d=7, sigmaColor=8, sigmaSpace=2.5)
    return lab


def flatten(lab: Picture) -> Picture:
    """Flat areas with clean boundaries. Shadows are lifted for it, or all their contours would be lost."""
    rgb = np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1)
    margin = min(BORDER, min(rgb.shape[:2]) - 1)
    padded = cv2.copyMakeBorder(rgb**0.7, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    flat = cv2.ximgproc.l0Smooth(padded, None, 0.007, 2.0)[margin:-margin, margin:-margin]
    flat_lab = cv2.cvtColor(np.clip(flat, 0, 1) ** (1 / 0.7), cv2.COLOR_RGB2LAB)
    return np.asarray(0.85 * flat_lab + 0.15 * lab, np.float32)


def guard(luminance: Plane) -> Plane:
    """Where detail must be kept, in [0, 1]: it is strong (lettering), or alone in a calm place (an eye, a mouth).

    Contrast is relative to the brightness around, so that eyes in dark faces count as much as in light ones; texture is
    as strong as its surroundings and is not kept.
    """
    around = cv2.GaussianBlur(luminance, (0, 0), 6)
    detail = cv2.GaussianBlur(np.abs(luminance - cv2.GaussianBlur(luminance, (0, 0), 3)), (0, 0), 2)
    detail /= 0.12 + 0.88 * around
    alone = detail / (cv2.GaussianBlur(detail, (0, 0), 14) + 0.004)
    alone = smoothstep(detail, 0.02, 0.05) * smoothstep(alone, 1.0, 1.5)
    return np.maximum(0.6 * smoothstep(detail, 0.1, 0.2), 0.95 * alone)


def grade(lab: Picture) -> Picture:
    """Quantised luminance at 60 %, lifted shadows, saturated but never neon colours."""
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


def lines(luminance: Plane) -> Plane:
    """Ink in [0, 1]: the dark side of contours, normalised by local contrast so that dark photographs do not drown."""
    tangent_x, tangent_y = flow(luminance)
    across = sample_along(luminance, -tangent_y, tangent_x, dog_taps())
    along = sample_along(across, tangent_x, tangent_y, gaussian_taps(3.0, 6))
    contrast = np.sqrt(cv2.GaussianBlur(along * along, (0, 0), 12))
    return smoothstep(-along / (0.008 + 1.2 * contrast), 0.55, 1.6)


def flow(luminance: Plane) -> tuple[Plane, Plane]:
    """Unit vectors along contours: the minor eigenvector of the smoothed structure tensor."""
    dx = cv2.Sobel(luminance, cv2.CV_32F, 1, 0)
    dy = cv2.Sobel(luminance, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), 2.0) for product in (dx * dx, dy * dy, dx * dy))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def dog_taps() -> dict[int, float]:
    centre, surround = gaussian_taps(1.0, 5), gaussian_taps(1.6, 5)
    return {offset: centre[offset] - surround[offset] for offset in centre}


def gaussian_taps(sigma: float, radius: int) -> dict[int, float]:
    weights = {offset: float(np.exp(-0.5 * (offset / sigma) ** 2)) for offset in range(-radius, radius + 1)}
    total = sum(weights.values())
    return {offset: weight / total for offset, weight in weights.items()}


def sample_along(plane: Plane, step_x: Plane, step_y: Plane, taps: dict[int, float]) -> Plane:
    """Weighted samples of the plane along straight steps of a direction field."""
    rows, columns = np.indices(plane.shape, dtype=np.float32)
    total = np.zeros_like(plane)
    for offset, weight in taps.items():
        x, y = columns + offset * step_x, rows + offset * step_y
        total += weight * cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return total


def smoothstep(x: Plane, low: float, high: float) -> Plane:
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
