"""Initial weights of the student: with them it copies its photograph, as well as its architecture allows."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.engine.generator import ConvNormLReLU, Generator, InvertedResidual

# Output signal, input signal, and the kernel between them: a single tap at (row, column), a whole kernel, or the
# centre tap (None).
Connection = tuple[int, int, tuple[int, int] | NDArray[np.float32] | None]


@torch.no_grad()
def initialise_as_copy(generator: Generator) -> Generator:
    """Sets the weights so that the generator nearly copies a photograph, and returns it.

    From random weights it would first have to learn that, which takes hours on a CPU.

    Twice, a stride-2 convolution moves the four pixels of each 2 x 2 cell into four channels. 3 x 16 signals then carry
    the whole image at a quarter of its size, and the decoder puts it together as well as bilinear upsampling allows.
    A signal is a pair of channels, x and -x. LeakyReLU only scales it, since leaky(x) - leaky(-x) = 1.2 x.
    GroupNorm does not shift it, since the mean of the pair is zero. All other channels keep their random weights.
    """
    a, b, c = generator.block_a, generator.block_b, generator.block_c
    d, e = generator.block_d, generator.block_e
    rgb: list[Connection] = [(i, i, None) for i in range(3)]
    half: list[Connection] = [(i, i, None) for i in range(12)]
    quarter: list[Connection] = [(i, i, None) for i in range(48)]
    cells = [(4 * i + 2 * p + q, i, (p, q)) for i in range(12) for p in (0, 1) for q in (0, 1)]
    join = [(i, signal, upsampling_kernel(p, q)) for signal, i, (p, q) in cells]
    connect(a[0], rgb, gain=1)
    connect(a[1], [cell for cell in cells if cell[1] < 3])
    connect(a[2], half)
    connect(b[0], cells)
    connect(b[1], quarter)
    connect(c[0], quarter)
    for block in (module for module in c if isinstance(module, InvertedResidual)):
        expand, depthwise, project, norm = block.layers
        connect(expand, quarter, gain=1 / 1.2 if block is c[1] else 1 / 2)
        connect(depthwise, quarter)
        connect(project, quarter)
        if block.is_residual:
            cast(nn.GroupNorm, norm).weight.mul_(0.1)
    connect(c[5], quarter, gain=1 / 2)
    connect(d[0], join)
    connect(d[1], half)
    connect(e[0], [connection for connection in join if connection[0] < 3])
    connect(e[1], rgb)
    connect(e[2], rgb)
    connect(generator.out_layer[0], rgb, gain=0.5)
    return generator


def connect(layer: nn.Module, connections: Sequence[Connection], gain: float = 1 / 1.2) -> None:
    """Lets signals pass a convolution; the random weights of their output channels shrink to a twentieth.

    Where the convolution has 3 input or output channels, these are the image's own and not pairs.
    """
    convolution = cast(nn.Conv2d, layer.conv if isinstance(layer, ConvNormLReLU) else layer)
    weight = convolution.weight  # (out, in, k, k)
    from_image, to_image = weight.shape[1] == 3, weight.shape[0] == 3
    signals = 1 + max(out for out, _, _ in connections)
    weight[: signals if to_image else 2 * signals] *= 0.05
    for out, source, tap in connections:
        kernel = torch.zeros(weight.shape[2:])
        if isinstance(tap, np.ndarray):
            kernel += torch.from_numpy(tap)
        else:
            row, column = tap or (weight.shape[2] // 2, weight.shape[3] // 2)
            kernel[row, column] = 1
        kernel *= gain
        if convolution.groups > 1:
            weight[2 * out, 0], weight[2 * out + 1, 0] = kernel, kernel
            continue
        for out_sign, row in [(1, out)] if to_image else [(1, 2 * out), (-1, 2 * out + 1)]:
            for in_sign, column in [(1, source)] if from_image else [(1, 2 * source), (-1, 2 * source + 1)]:
                weight[row, column] = out_sign * in_sign * kernel


def upsampling_kernel(p: int, q: int) -> NDArray[np.float32]:
    """Returns the 3 x 3 filter by which pixel (p, q) of each 2 x 2 cell, upsampled bilinearly, best restores the image.

    It is the product of two filters of one dimension. They come from a least-squares fit on random walks, since these
    have the spectrum of photographs.
    """
    signal = np.random.default_rng(0).standard_normal(4096).cumsum()
    columns = []
    for phase in (0, 1):
        samples = signal[phase::2]
        upsampled = np.stack([samples, (samples + np.roll(samples, -1)) / 2], axis=1).ravel()
        columns += [np.roll(upsampled, 1 - tap) for tap in range(3)]
    inner = slice(4, -4)  # np.roll wraps around at the ends
    filters = np.linalg.lstsq(np.stack(columns, axis=1)[inner], signal[inner], rcond=1e-6)[0].reshape(2, 3)
    return np.asarray(np.outer(filters[p], filters[q]), np.float32)
