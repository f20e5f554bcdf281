import cv2
import numpy as np
import pytest

from serve_app.frames import Frame

pytest.importorskip("cv2", reason="the extra `train` is not installed: scripts/setup train")

from training.looks import distance, flat_share, outline_share


def noise(seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(60, 180, (64, 96, 3), np.uint8)


def test_exposure_and_contrast_are_no_distance() -> None:
    photo = noise()
    brighter = np.round(photo * [0.8, 1.1, 1.2] + [5, 20, 30]).astype(np.uint8)
    assert distance(photo, photo) < 1e-6
    assert distance(photo, brighter) < 0.003


def test_distance_is_the_same_both_ways_and_grows_with_the_difference() -> None:
    photo = noise()
    near, far = (np.asarray(cv2.GaussianBlur(photo, (0, 0), sigma), np.uint8) for sigma in (0.5, 2.0))
    assert distance(photo, near) == pytest.approx(distance(near, photo))
    assert 0 < distance(photo, near) < distance(photo, far)


def test_plain_areas_are_flat_and_a_slope_of_three_levels_is_not() -> None:
    left = np.zeros((64, 50, 3), np.uint8)
    slope = (3 * np.arange(50, dtype=np.uint8))[None, :, None].repeat(64, axis=0).repeat(3, axis=2)
    assert flat_share(left) == 1
    assert flat_share(slope) == 0
    assert flat_share(np.hstack([left, slope])) == pytest.approx(0.5, abs=0.02)


def test_outlines_are_dark_and_thin() -> None:
    page = np.full((100, 100, 3), 230, np.uint8)
    assert outline_share(page) == 0
    line, area, light = page.copy(), page.copy(), page.copy()
    line[:, 50:53] = 20
    area[:, 30:70] = 20
    light[:, 50:53] = 190
    assert outline_share(line) == pytest.approx(0.03)
    assert outline_share(area) == 0
    assert outline_share(light) == 0
