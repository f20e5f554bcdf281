"""How near a painting is to another: what training makes smaller, and what the style is judged by."""

import torch
import torch.nn.functional as F
from torch import Tensor


def picture_loss(painted: Tensor, target: Tensor) -> Tensor:
    """L1, L1 of gradients and of Laplacians, SSIM, and the strength of contours in each 8 x 8 cell.

    The first four blur what the student is unsure of; the last asks that even there the contours be as crisp.
    """
    loss = F.l1_loss(painted, target) + 0.15 * (1 - ssim(painted, target))
    for axis in (2, 3):
        own, other = painted.diff(dim=axis), target.diff(dim=axis)
        strength = (F.avg_pool2d(own.abs(), 8) - F.avg_pool2d(other.abs(), 8)).abs().mean()
        loss = loss + 0.5 * F.l1_loss(own, other) + 0.5 * strength
    return loss + 0.25 * F.l1_loss(laplacian(painted), laplacian(target))


def laplacian(x: Tensor) -> Tensor:
    return 4 * x[..., 1:-1, 1:-1] - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]


def ssim(x: Tensor, y: Tensor, span: float = 2) -> Tensor:
    """Mean structural similarity of (N, 3, H, W), values `span` wide, sides of 11 at least: Wang et al. 2004."""
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


def compare(painted: Tensor, target: Tensor) -> dict[str, float]:
    """L1 on [0, 1], SSIM, and crispness: the mean gradient magnitude of luminance over the target's."""
    return {
        "l1": F.l1_loss(painted, target).item() / 2,
        "ssim": ssim((painted + 1) / 2, (target + 1) / 2, span=1).item(),
        "crispness": (contours(painted) / contours(target).clamp_min(1e-6)).item(),
    }


def contours(x: Tensor) -> Tensor:
    """Mean gradient magnitude of luminance (Rec. 601), by forward differences."""
    luminance = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)
    down = luminance[:, 1:, 1:] - luminance[:, :-1, 1:]
    across = luminance[:, 1:, 1:] - luminance[:, 1:, :-1]
    return torch.hypot(down, across).mean()
