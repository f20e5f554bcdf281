"""Measures how close a painting is to the teacher's: the training loss and the published scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.looks import OUTLINE_WIDTH

LINE_WEIGHT = 4.0  # of lines in L1


def painting_loss(painted: Tensor, target: Tensor) -> Tensor:
    """Returns the training loss of paintings (N, 3, H, W) in [-1, 1].

    It adds up L1, L1 of gradients, L1 of Laplacians, SSIM, and the difference in mean gradient magnitude of each 8 x 8
    cell. With the first four alone the student blurs contours of whose place it is unsure; the last keeps them crisp.
    L1 counts the lines of the target `LINE_WEIGHT` times: the student draws those of which it is unsure, too, which it
    would leave out if one that is missing cost no more than one too many.
    """
    weights = 1 + (LINE_WEIGHT - 1) * line_likeness(target)
    loss = (weights * (painted - target).abs()).mean() + 0.15 * (1 - ssim(painted, target))
    for axis in (2, 3):
        own, other = painted.diff(dim=axis), target.diff(dim=axis)
        strength = (F.avg_pool2d(own.abs(), 8) - F.avg_pool2d(other.abs(), 8)).abs().mean()
        loss = loss + 0.5 * F.l1_loss(own, other) + 0.5 * strength
    return loss + 0.25 * F.l1_loss(laplacian(painted), laplacian(target))


def line_likeness(x: Tensor) -> Tensor:
    """Returns where dark lines are, in [0, 1], as (N, 1, H, W): what a morphological closing of luminance fills."""
    luminance = luminance_of(x)[:, None]
    dilated = F.max_pool2d(luminance, OUTLINE_WIDTH, stride=1, padding=OUTLINE_WIDTH // 2)
    closed = -F.max_pool2d(-dilated, OUTLINE_WIDTH, stride=1, padding=OUTLINE_WIDTH // 2)
    return ((closed - luminance - 0.1) / 0.3).clamp(0, 1)


def laplacian(x: Tensor) -> Tensor:
    """Returns the discrete Laplacian, (N, C, H - 2, W - 2)."""
    return 4 * x[..., 1:-1, 1:-1] - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]


def ssim(x: Tensor, y: Tensor, span: float = 2) -> Tensor:
    """Returns the mean structural similarity of images (N, 3, H, W), after Wang et al. 2004.

    Args:
        x: images with sides of at least 11 pixels.
        y: images of the same shape.
        span: difference between the largest and the smallest possible value.
    """
    taps = torch.exp(-0.5 * ((torch.arange(11, device=x.device) - 5) / 1.5) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, 11)

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, taps, groups=3), taps.transpose(2, 3), groups=3)

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean()


def scores(painted: Tensor, target: Tensor) -> dict[str, float]:
    """Returns L1 on [0, 1], SSIM, and crispness: the mean gradient magnitude of luminance over the target's."""
    return {
        "l1": F.l1_loss(painted, target).item() / 2,
        "ssim": ssim((painted + 1) / 2, (target + 1) / 2, span=1).item(),
        "crispness": (mean_gradient(painted) / mean_gradient(target).clamp_min(1e-6)).item(),
    }


def mean_gradient(x: Tensor) -> Tensor:
    """Returns the mean gradient magnitude of luminance (Rec. 601), by forward differences."""
    luminance = luminance_of(x)
    down = luminance[:, 1:, 1:] - luminance[:, :-1, 1:]
    across = luminance[:, 1:, 1:] - luminance[:, 1:, :-1]
    return torch.hypot(down, across).mean()


def luminance_of(x: Tensor) -> Tensor:
    """Returns the luminance (Rec. 601) of images (N, 3, H, W), as (N, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)
