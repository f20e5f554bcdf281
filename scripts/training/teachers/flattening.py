"""Areas of one colour with clean boundaries, by L0 gradient smoothing (Xu et al. 2011)."""

import cv2
import numpy as np

from training.teachers.planes import LabImage, to_lab, to_rgb

MARGIN = 16  # pixels of reflection: l0Smooth works by FFT, so opposite borders would shine through
GAMMA = 0.7  # lifts shadows while it smooths, or all their contours would be lost


def flattened(lab: LabImage, strength: float) -> LabImage:
    """Returns the image in flat areas.

    Args:
        lab: the image.
        strength: the weight of the number of gradients: steps below some sqrt(strength) of the whole range disappear.
    """
    margin = min(MARGIN, min(lab.shape[:2]) - 1)
    padded = cv2.copyMakeBorder(to_rgb(lab) ** GAMMA, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    flat = cv2.ximgproc.l0Smooth(padded, None, strength, 2.0)[margin:-margin, margin:-margin]
    return to_lab(np.asarray(np.clip(flat, 0, 1) ** (1 / GAMMA), np.float32))
