import numpy as np
import pytest
import torch
from training.likeness import line_likeness, painting_loss, scores, ssim


def test_scores_of_an_image_against_itself_and_of_a_blurred_one() -> None:
    sharp = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert scores(sharp, sharp) == pytest.approx({"l1": 0, "ssim": 1, "crispness": 1}, abs=1e-5)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    blurred_scores = scores(blurred, sharp)
    assert blurred_scores["l1"] > 0.1
    assert blurred_scores["ssim"] < 0.8
    assert blurred_scores["crispness"] < 0.5


def test_ssim_agrees_with_the_definition_on_one_window() -> None:
    x, y = (np.random.default_rng(seed).uniform(-1, 1, (11, 11)) for seed in (0, 1))
    window = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(window, window) / window.sum() ** 2
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    variances = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
    expected = (2 * mean_x * mean_y + 4e-4) * (2 * covariance + 36e-4)
    expected /= (mean_x**2 + mean_y**2 + 4e-4) * (variances + 36e-4)
    first, second = (torch.from_numpy(plane).float().expand(1, 3, 11, 11) for plane in (x, y))
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-5)


def test_lines_are_dark_and_narrow() -> None:
    image = torch.full((1, 3, 40, 60), 0.5)
    image[..., :20] = -1  # a dark area
    image[..., 30:33] = -0.5  # a dark line
    image[..., 45:48] = 1  # a light one
    lines = line_likeness(image)
    assert lines.shape == (1, 1, 40, 60)
    assert (lines[..., 30:33] == 1).all()
    lines[..., 30:33] = 0
    assert lines.max() == 0


def test_a_missing_line_costs_more_than_one_too_many() -> None:
    plain = torch.full((1, 3, 40, 60), 0.5)
    lined = plain.clone()
    lined[..., 30:33] = -0.5
    assert painting_loss(plain, lined) > 1.2 * painting_loss(lined, plain)
