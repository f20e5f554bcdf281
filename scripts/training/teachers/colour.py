"""Colour: saturation within a limit, warm lights and cool shadows, luminous skies."""

import numpy as np

from training.teachers.planes import LabImage, Plane, luminance_of, mixed, smoothstep

CHROMA_LIMIT = 88.0


def with_luminance(lab: LabImage, luminance: Plane) -> LabImage:
    """Returns the image with another luminance, on [0, 1]."""
    return np.dstack([100 * luminance, lab[..., 1:]]).astype(np.float32)


def saturated(lab: LabImage, gain: float, limit: float = CHROMA_LIMIT, neutral: float = 0) -> LabImage:
    """Returns the image with chroma times `gain` where it is low, and below `limit` everywhere.

    Args:
        lab: the image.
        gain: factor of the chroma.
        limit: that no chroma exceeds.
        neutral: chroma below which the gain fades away: else teeth become yellow, and walls take a cast.
    """
    chroma = np.hypot(lab[..., 1], lab[..., 2]) + 1e-6
    gains = 1 + (gain - 1) * smoothstep(chroma, 0.2 * neutral, neutral) if neutral else gain
    factor = limit * np.tanh(gains * chroma / limit) / chroma
    return np.dstack([lab[..., 0], lab[..., 1] * factor, lab[..., 2] * factor]).astype(np.float32)


def split_toned(lab: LabImage, yellow: float, red: float = 0, pivot: float = 0.55) -> LabImage:
    """Returns the image with lights warmer and shadows cooler: up to half of `yellow` and `red` in b and a of Lab."""
    toned = lab.copy()
    light = luminance_of(lab) - pivot
    toned[..., 1] += red * light
    toned[..., 2] += yellow * light
    return toned


def fresh_skin(lab: LabImage, skin: Plane, brightness: float = 0.85) -> LabImage:
    """Returns the image with skin brighter and rosier: saturated colours would turn it orange or olive.

    Args:
        lab: the image.
        skin: where skin is.
        brightness: exponent of the luminance of skin.
    """
    a, b = lab[..., 1], lab[..., 2]
    chroma = 30 + 0.45 * (np.hypot(a, b) - 30)
    hue = np.arctan2(b, a)
    rosy = np.radians(54) + 0.45 * (hue - np.radians(54))
    fresh = np.dstack([100 * luminance_of(lab) ** brightness, chroma * np.cos(rosy), chroma * np.sin(rosy)])
    return mixed(lab, fresh.astype(np.float32), skin)


def blueness(lab: LabImage) -> Plane:
    """Returns how much a pixel has the blue of a sky, in [0, 1]."""
    return smoothstep(-lab[..., 2] - 0.3 * np.abs(lab[..., 1]), 4, 22)


def skin_likeness(lab: LabImage) -> Plane:
    """Returns how much a pixel has the colour of skin, dark or light, in [0, 1]: soft, between red and yellow."""
    a, b = lab[..., 1], lab[..., 2]
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a))
    in_hue = smoothstep(hue, 15, 30) * (1 - smoothstep(hue, 68, 80))
    in_chroma = smoothstep(chroma, 8, 14) * (1 - smoothstep(chroma, 42, 58))
    in_light = smoothstep(lab[..., 0], 15, 25)
    return np.asarray(in_hue * in_chroma * in_light, np.float32)
