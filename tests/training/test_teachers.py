import numpy as np
import pytest

pytest.importorskip("torchvision", reason="the extra `train` is not installed: scripts/setup train")

from training.teacher import teacher_painting, with_standard_contrast


@pytest.mark.parametrize("size", [(28, 40), (33, 47), (8, 8)])
def test_teacher_keeps_shape_and_type_and_paints_the_same_twice(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    before = photo.copy()
    painted = teacher_painting(photo)
    assert painted.shape == photo.shape
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, teacher_painting(photo))
    assert not np.array_equal(painted, photo)
    assert np.array_equal(photo, before)


def test_teacher_ignores_contrast_which_the_student_cannot_see() -> None:
    """To the student's first norm, a photograph and the same at half the contrast about mid-grey are equal."""
    bold = 127.5 + 100 * np.random.default_rng(0).uniform(-1, 1, (32, 32, 3))
    pale = 127.5 + (bold - 127.5) / 2
    exposed = [with_standard_contrast(photo.astype(np.float32)) for photo in (bold, pale)]
    assert np.abs(exposed[0] - exposed[1]).max() < 1e-5
