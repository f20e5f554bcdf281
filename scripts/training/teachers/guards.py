"""Guards: where a step must hold back, in [0, 1].

They see some 50 pixels around each pixel at most, since the student sees no more.
"""

import numpy as np

from training.teachers.planes import Floats, Plane, blurred, coherence, gradient_strength, smoothstep


def detail(luminance: Plane) -> Plane:
    """Returns where detail must stay: where it is strong (lettering) or isolated (an eye, a mouth).

    Contrast is relative to the brightness around it, so that eyes in dark faces count as much as in light ones.
    Texture is not isolated, since it is as strong as its surroundings.
    """
    around = blurred(luminance, 6)
    difference = np.abs(luminance - blurred(luminance, 3))
    strength = blurred(np.asarray(difference, np.float32), 2)
    strength /= 0.12 + 0.88 * around
    isolation = strength / (blurred(strength, 14) + 0.004)
    isolated = smoothstep(strength, 0.02, 0.05) * smoothstep(isolation, 1.0, 1.5)
    return np.asarray(np.maximum(0.6 * smoothstep(strength, 0.1, 0.2), 0.95 * isolated), np.float32)


def sharp_contours(image: Floats) -> Plane:
    """Returns where contours are in focus: at a soft edge (a shaded cheek, a blurred light) it is 0.

    A step that is blurred by s pixels has a gradient of 1 / sqrt(s^2 + sigma^2) after a Gaussian of sigma pixels.
    So the ratio of two such gradients tells s, whatever the height of the step.
    """
    fine, coarse = gradient_strength(image, 1.0), gradient_strength(image, 3.0)
    ratio = blurred(fine, 1.5) / (blurred(coarse, 1.5) + 1e-4)
    return smoothstep(np.asarray(ratio, np.float32), 1.35, 1.75)


def texture(image: Floats) -> Plane:
    """Returns where contours have no common direction, as in grass or gravel."""
    return np.asarray(1 - smoothstep(coherence(image, 5.0), 0.12, 0.35), np.float32)


def calm(luminance: Plane) -> Plane:
    """Returns where there is nothing but soft shading, such as in a sky: steps of tone would be seen as bands there."""
    return np.asarray(1 - smoothstep(blurred(gradient_strength(luminance, 2.0), 6), 0.002, 0.007), np.float32)


def features(luminance: Plane, skin: Plane) -> Plane:
    """Returns where the features of a face are, the smaller the surer: fine contrast within skin.

    Flattening would merge the eyes of a small face with its brows, and outlines would draw a beard.
    """
    fine = np.abs(luminance - blurred(luminance, 2))
    strength = blurred(fine, 1.5) / (0.12 + 0.88 * blurred(luminance, 6))
    return smoothstep(strength, 0.02, 0.06) * smoothstep(blurred(skin, 5), 0.3, 0.6)


def lights(luminance: Plane) -> Plane:
    """Returns where small lights shine in the dark: flattening would turn the windows of a night into specks."""
    around = blurred(luminance, 6)
    spot = blurred(np.asarray(np.maximum(luminance - blurred(luminance, 4), 0), np.float32), 1)
    return smoothstep(spot, 0.008, 0.03) * (1 - smoothstep(around, 0.32, 0.5))
