"""The AnimeGANv2 generator: 2,143,552 parameters, RGB in [-1, 1] to RGB in [-1, 1].

The layers follow Chen, Liu and Chen, "AnimeGAN: a novel lightweight GAN for photo animation" (2020), and its second
version (TachibanaYoshino/AnimeGANv2). The keys of the state dict are those of bryandlee/animegan2-pytorch (MIT), so
that the public checkpoints load unchanged.

GroupNorm with one group normalises over all channels and pixels of an image. If an image were padded or cut into tiles,
every pixel would change. Therefore the images of a batch have one size, and none is padded.
"""

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.frames import ResizeMode

SLOPE = 0.2  # of every LeakyReLU, for negative values

Pads = tuple[int, int, int, int]  # left, right, top, bottom
Resize = Callable[[Tensor, int, int], Tensor]


def align_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resizes bilinearly with aligned corners, to any size."""
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


def half_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resizes bilinearly with half-pixel centres, to exactly twice the size."""
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def tf_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resizes as TensorFlow 1's legacy bilinear, to exactly twice the size: samples at `out / 2`, clamped at the ends.

    One replicated row and column give n + 1 samples. From n + 1 to 2n + 1, aligned corners step by exactly 1/2.
    """
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    resized = F.interpolate(padded, size=(height + 1, width + 1), mode="bilinear", align_corners=True)
    return resized[:, :, :height, :width]


RESIZES: dict[ResizeMode, Resize] = {"align": align_resize, "half": half_resize, "tf": tf_resize}


class ConvNormLReLU(nn.Sequential):
    """Reflection padding, convolution, GroupNorm with one group, LeakyReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | Pads = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            nn.ReflectionPad2d(padding),
            nn.Conv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=bias),
            nn.GroupNorm(1, out_channels, eps=eps),
            nn.LeakyReLU(SLOPE, inplace=True),
        )

    @property
    def pads(self) -> Pads:
        """The padding in pixels: left, right, top, bottom."""
        return cast(nn.ReflectionPad2d, self[0]).padding

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return cast(nn.Conv2d, self[1])

    @property
    def norm(self) -> nn.GroupNorm:
        """The norm."""
        return cast(nn.GroupNorm, self[2])


class InvertedResidual(nn.Module):
    """Inverted residual block with expansion 2; adds its input if it has as many channels as its output."""

    def __init__(self, in_channels: int, out_channels: int, eps: float) -> None:
        super().__init__()
        hidden = 2 * in_channels
        self.is_residual = in_channels == out_channels
        self.layers = nn.Sequential(
            ConvNormLReLU(in_channels, hidden, kernel=1, padding=0, eps=eps),
            ConvNormLReLU(hidden, hidden, groups=hidden, bias=True, eps=eps),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.GroupNorm(1, out_channels, eps=eps),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H, W)."""
        out: Tensor = self.layers(x)
        return out.add_(x) if self.is_residual else out


class Generator(nn.Module):
    """Paints a batch of images: (N, 3, H, W) to (N, 3, H, W), both in [-1, 1].

    Args:
        resize: how the two decoder stages double the size, a property of the checkpoint. `align` takes any H, W >= 8;
            `half` and `tf` need multiples of 4.
        eps: added to the variance in every norm, also a property of the checkpoint (1e-12 in TensorFlow's layer norm).
    """

    def __init__(self, resize: ResizeMode = "align", eps: float = 1e-5) -> None:
        super().__init__()
        self.resize = RESIZES[resize]

        def cnl(i: int, o: int, kernel: int = 3, stride: int = 1, padding: int | Pads = 1) -> ConvNormLReLU:
            return ConvNormLReLU(i, o, kernel, stride, padding, eps=eps)

        far_edge = (0, 1, 0, 1)  # TensorFlow's SAME padding of a stride-2 convolution on an even side
        self.block_a = nn.Sequential(cnl(3, 32, 7, padding=3), cnl(32, 64, stride=2, padding=far_edge), cnl(64, 64))
        self.block_b = nn.Sequential(cnl(64, 128, stride=2, padding=far_edge), cnl(128, 128))
        self.block_c = nn.Sequential(
            cnl(128, 128),
            InvertedResidual(128, 256, eps),
            InvertedResidual(256, 256, eps),
            InvertedResidual(256, 256, eps),
            InvertedResidual(256, 256, eps),
            cnl(256, 128),
        )
        self.block_d = nn.Sequential(cnl(128, 128), cnl(128, 128))
        self.block_e = nn.Sequential(cnl(128, 64), cnl(64, 64), cnl(64, 32, 7, padding=3))
        self.out_layer = nn.Sequential(nn.Conv2d(32, 3, 1, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, 3, H, W)."""
        height, width = x.shape[-2:]
        x = self.block_a(x)  # (N, 64, ceil(H/2), ceil(W/2))
        half_height, half_width = x.shape[-2:]
        x = self.block_b(x)  # (N, 128, H/4, W/4)
        x = self.block_c(x)
        x = self.block_d(self.resize(x, half_height, half_width))  # (N, 128, H/2, W/2)
        x = self.block_e(self.resize(x, height, width))  # (N, 32, H, W)
        out: Tensor = self.out_layer(x)
        return out
