"""Luminance: one standard contrast, few tones, lifted shadows."""

import numpy as np

from serve_app.frames import Frame
from training.teachers.planes import Floats, Plane, RgbImage

CONTRAST = 0.68  # root mean square about mid-grey, on [-1, 1]


def with_standard_contrast(photo: Frame | Floats) -> RgbImage:
    """Returns the photograph, values 0 to 255, on [0, 1] at one standard contrast, with soft shoulders.

    The student cannot know the contrast. Its first convolution has no bias, and the norm behind it divides by the
    image's own deviation, so a photograph and the same at half the contrast about mid-grey look alike to it. It could
    not imitate a teacher that told them apart.
    """
    signal = photo.astype(np.float32) / 127.5 - 1
    signal *= CONTRAST / max(float(np.sqrt(np.mean(signal * signal))), 1e-3)
    return np.asarray(0.5 + 0.5 * signal / (1 + np.abs(signal) ** 3) ** (1 / 3), np.float32)


def quantised(luminance: Plane, steps: int, steepness: float = 3.0) -> Plane:
    """Returns the luminance drawn to multiples of 1 / `steps` (Winnemöller et al. 2006).

    A larger `steepness` makes the steps between them harder.
    """
    centre = (np.clip(np.floor(luminance * steps), 0, steps - 1) + 0.5) / steps
    return np.asarray(centre + np.tanh((luminance - centre) * steps * steepness) / (2 * steps), np.float32)


def bright_tone(luminance: Plane, black: float = 0.1, gamma: float = 0.65) -> Plane:
    """Returns the luminance brightened in the middle, with a black point.

    At the standard contrast the black of a night is no darker than 0.17. Lifted further, it would become grey.
    """
    return np.asarray(np.clip((luminance - black) / (1 - black), 0, 1) ** gamma, np.float32)
