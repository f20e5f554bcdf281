import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.engine.generator import Generator

pytest.importorskip("torchvision", reason="the extra `train` is not installed: scripts/setup train")

from training.head_start import initialise_as_copy
from training.photographs import to_batch


def test_student_starts_as_a_near_copy_of_its_photograph() -> None:
    torch.manual_seed(0)
    spots = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    photo = np.array(Image.fromarray(spots).resize((128, 96), Image.Resampling.BICUBIC))
    copy = initialise_as_copy(Generator("tf"))
    with torch.inference_mode():
        tensor = to_batch([photo])
        painted = copy(tensor)
    likeness = torch.corrcoef(torch.stack([tensor.flatten(), painted.flatten()]))[0, 1]
    assert likeness > 0.95
