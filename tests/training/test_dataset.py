import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.frames import Frame

pytest.importorskip("torchvision", reason="the extra `train` is not installed: scripts/setup train")

from torchvision.transforms import v2
from training import dataset
from training.dataset import PaintedCrops, batches, random_crops
from training.photographs import to_batch, to_frame


def noise(height: int, width: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(50, 333), (64, 64), (400, 300), (3000, 400)])
def test_crops_have_the_size_asked_for_and_differ(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    crops = random_crops(Image.fromarray(noise(*size)), 64, 12)
    assert [crop.shape for crop in crops] == [(64, 64, 3)] * 12
    assert {crop.dtype for crop in crops} == {np.dtype(np.uint8)}
    assert len({crop.tobytes() for crop in crops}) > 4  # of 64 x 64 there is one crop, in several colours


def test_crops_show_large_photographs_no_larger_than_1024_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "RECOLOUR", v2.Identity())
    columns = np.linspace(0, 255, 4096).astype(np.uint8)  # 16 columns to a grey level
    photo = Image.fromarray(np.tile(columns[:, None], (512, 1, 3)))
    torch.manual_seed(0)
    cut_sides = [16 * np.ptp(crop[32, :, 0].astype(int)) for crop in random_crops(photo, 64, 40)]
    assert min(cut_sides) >= 4 * 64 - 32
    assert min(cut_sides) < 4 * 64 + 64
    assert 512 - 64 < max(cut_sides) <= 512


def test_same_seed_gives_the_same_crops_and_another_seed_others() -> None:
    photo = Image.fromarray(noise(200, 300))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(np.stack(random_crops(photo, 32, 6)))
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_about_half_of_the_crops_are_in_other_colours() -> None:
    red = Image.new("RGB", (64, 64), (200, 40, 40))
    torch.manual_seed(0)
    crops = random_crops(red, 32, 60)
    unchanged = sum(bool((crop == (200, 40, 40)).all()) for crop in crops)
    assert 20 <= unchanged <= 40


def test_photograph_and_painting_are_mirrored_together() -> None:
    photo = noise(8, 12)
    crops = PaintedCrops([(photo, 255 - photo)])
    torch.manual_seed(0)
    drawn = [crops[0] for _ in range(20)]
    for pair in drawn:
        assert torch.allclose(pair[0], -pair[1], atol=1e-6)
    (plain,) = to_batch([photo])
    mirrored = sum(torch.equal(pair[0], plain.flip(-1)) for pair in drawn)
    assert 0 < mirrored < 20
    assert mirrored + sum(torch.equal(pair[0], plain) for pair in drawn) == 20


def test_every_crop_is_used_once_before_any_is_used_again() -> None:
    frames = [np.full((4, 4, 3), value, np.uint8) for value in range(6)]
    crops = PaintedCrops([(frame, frame) for frame in frames])
    torch.manual_seed(0)
    drawn = [to_frame(photo)[0, 0, 0] for batch, _ in batches(crops, 2, 6) for photo in batch]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))
    assert drawn[:6] != drawn[6:]


def test_frames_come_back_from_tensors_as_they_were() -> None:
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    (tensor,) = to_batch([frame])
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_frame(tensor), frame)
