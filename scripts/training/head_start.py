"""Weights from which the student starts: those that copy a photograph, as well as the architecture can."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.engine.generator import Generator, InvertedResidual

Tap = tuple[int, int, tuple[int, int] | NDArray[np.float32] | None]  # to signal, from signal, through (middle: None)


@torch.no_grad()
def carry_picture(generator: Generator) -> Generator:
    """Starts the student as a near copy of its photograph instead of as noise; hours of training saved on a CPU.

    A stride-2 convolution moves the four pixels of each 2 x 2 cell into four channels, twice: 3 x 16 signals carry the
    whole picture through the quarter size, and the decoder puts them back as well as bilinear growth allows. A signal
    is a pair of channels, x and -x: leaky(x) - leaky(-x) = 1.2 x is linear, and the pairs' mean is zero, so that the
    norms leave them be. All other channels keep their random start.
    """
    a, b, c, d, e = (getattr(generator, f"block_{name}") for name in "abcde")
    wire(a[0][1], [(i, i, None) for i in range(3)], gain=1)
    split = [(4 * i + 2 * p + q, i, (p, q)) for i in range(12) for p in (0, 1) for q in (0, 1)]
    join = [(i, signal, growth_kernel(p, q)) for signal, i, (p, q) in split]
    wire(a[1][1], [tap for tap in split if tap[1] < 3])
    wire(a[2][1], [(i, i, None) for i in range(12)])
    wire(b[0][1], split)
    quarter = [(i, i, None) for i in range(48)]
    wire(b[1][1], quarter)
    wire(c[0][1], quarter)
    for block in (module for module in c if isinstance(module, InvertedResidual)):
        expand, depthwise, project, _ = block.layers
        wire(expand[1], quarter, gain=1 / 1.2 if block is c[1] else 1 / 2)
        wire(depthwise[1], quarter)
        wire(project, quarter)
        if block.is_residual:
            block.layers[3].weight.mul_(0.1)
    wire(c[5][1], quarter, gain=1 / 2)
    wire(d[0][1], join)
    wire(d[1][1], [(i, i, None) for i in range(12)])
    wire(e[0][1], [tap for tap in join if tap[0] < 3])
    for layer in (e[1], e[2]):
        wire(layer[1], [(i, i, None) for i in range(3)])
    wire(generator.out_layer[0], [(i, i, None) for i in range(3)], gain=0.5)
    return generator


def wire(convolution: nn.Conv2d, taps: list[Tap], gain: float = 1 / 1.2) -> None:
    """Leads signals through a convolution; what is random in their rows shrinks to a twentieth."""
    weight = convolution.weight  # (out, in, k, k)
    from_photo, to_photo = weight.shape[1] == 3, weight.shape[0] == 3
    weight[: 1 + max(out for out, _, _ in taps) if to_photo else 2 + 2 * max(out for out, _, _ in taps)] *= 0.05
    for out, source, tap in taps:
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
        for out_sign, row in [(1, out)] if to_photo else [(1, 2 * out), (-1, 2 * out + 1)]:
            for in_sign, column in [(1, source)] if from_photo else [(1, 2 * source), (-1, 2 * source + 1)]:
                weight[row, column] = out_sign * in_sign * kernel


def growth_kernel(p: int, q: int) -> NDArray[np.float32]:
    """What cell (p, q), grown bilinearly, adds to the picture: the 3 x 3 filter that restores it best.

    Least squares on random walks, whose spectrum is that of photographs, in one dimension; separable in two.
    """
    signal = np.random.default_rng(0).standard_normal(4096).cumsum()
    columns = []
    for phase in (0, 1):
        samples = signal[phase::2]
        grown = np.stack([samples, (samples + np.roll(samples, -1)) / 2], axis=1).ravel()
        columns += [np.roll(grown, 1 - tap) for tap in range(3)]
    inner = slice(4, -4)  # clear of np.roll's seam
    filters = np.linalg.lstsq(np.stack(columns, axis=1)[inner], signal[inner], rcond=1e-6)[0].reshape(2, 3)
    return np.asarray(np.outer(filters[p], filters[q]), np.float32)
