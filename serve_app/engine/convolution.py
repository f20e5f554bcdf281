"""Convolutions of a window of rows, with fewer multiplications where that pays.

A window is (N, rows, W, C), padding included. What comes back are chunks: planes by row phase and column phase, so that
a convolution that makes even and odd rows apart need not interleave them. On a CPU in float32 two classical algorithms
take fewer multiplications than counting taps says. Their transforms, sums and differences, run along rows only, where
each is one pass over memory: Winograd's minimal filtering F(2, 3) for 3 x 3 kernels (Lavin and Gray 2016), and the
two-parallel fast FIR algorithm for 7 x 7 ones (Parker and Parhi 1997).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Chunk = list[list[Tensor]]  # [row phase][column phase] of (N, rows, W, C) planes
Convolution = Callable[[Tensor], list[Chunk]]  # chunks from the top

WINOGRAD_CHANNELS = 128  # read by a 3 x 3 convolution, from which on the transforms cost less than they save


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, groups: int = 1) -> Tensor:
    """(N, H, W, C) to the same of the convolution, without padding."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, 0, 1, groups).permute(0, 2, 3, 1)


def place(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)


class Direct:
    """A convolution as it stands."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype) -> None:
        self._weight = place(weight, dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._stride = stride
        self._groups = groups

    def __call__(self, window: Tensor) -> list[Chunk]:
        return [[[convolve(window, self._weight, self._bias, self._stride, self._groups)]]]


class Pairwise:
    """Makes rows in pairs; an odd last row is convolved directly."""

    def __init__(self, weight: Tensor) -> None:
        self._taps = weight.shape[2]
        self._single = place(weight, torch.float32)

    def __call__(self, window: Tensor) -> list[Chunk]:
        made = window.shape[1] - self._taps + 1
        pairs = made // 2
        chunks: list[Chunk] = []
        if pairs:
            even, odd = self.pairs(window, pairs)
            chunks.append([[even], [odd]])
        if made % 2:
            chunks.append([[convolve(window[:, -self._taps :], self._single)]])
        return chunks

    def pairs(self, window: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Output rows 0, 2, 4 ... and 1, 3, 5 ..., `count` of each."""
        raise NotImplementedError


class WinogradRows(Pairwise):
    """F(2, 3) along rows: two output rows for four 1 x 3 convolutions, where the direct sum takes six."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        above, middle, below = weight.double().unbind(2)
        both = above + below
        filters = above, (both + middle) / 2, (both - middle) / 2, below
        self._filters = [place(filter[:, :, None], torch.float32) for filter in filters]

    def pairs(self, window: Tensor, count: int) -> tuple[Tensor, Tensor]:
        d0, d1, d2, d3 = (window[:, first : first + 2 * count : 2] for first in range(4))
        even = convolve(torch.sub(d0, d2), self._filters[0])
        odd = convolve(torch.add(d1, d2), self._filters[1])
        even.add_(odd)
        part = convolve(torch.sub(d2, d1), self._filters[2])
        even.add_(part)
        odd.sub_(part)
        odd.sub_(convolve(torch.sub(d1, d3), self._filters[3]))
        return even, odd


class FastFirRows(Pairwise):
    """Two output rows for three convolutions of half the kernel's height, where the direct sum takes four."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        even, odd = weight[:, :, 0::2], weight[:, :, 1::2]  # one tap more in `even`: the height is odd
        both = even.double() + F.pad(odd.double(), (0, 0, 1, 0))
        self._even, self._odd, self._both = (place(part, torch.float32) for part in (even, odd, both))

    def pairs(self, window: Tensor, count: int) -> tuple[Tensor, Tensor]:
        x0, x1 = window[:, 0::2].contiguous(), window[:, 1::2].contiguous()
        rows = count + self._even.shape[2] - 1
        a = convolve(x0[:, :rows], self._even)
        b = convolve(x1[:, :rows], self._odd)  # one row more than the others
        odd = convolve(x0[:, :rows].add_(x1[:, :rows]), self._both)
        odd.sub_(a).sub_(b[:, 1:])
        return a.add_(b[:, :-1]), odd


class Doubled:
    """A 3 x 3 convolution behind `tf` doubling, as four of the small picture: fewer taps, and no doubled picture.

    The window is the small picture, reflected at left and top and repeated at right and bottom, which is what the
    doubled picture's reflection comes to.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self._filters = [[place(filter, dtype) for filter in filters] for filters in doubling_weights(weight)]

    def __call__(self, window: Tensor) -> list[Chunk]:
        beside = window[:, :, 1:].contiguous()
        return [
            [
                [
                    convolve(columns[:, first:], filter)
                    for columns, filter in zip((window, beside), filters, strict=True)
                ]
                for first, filters in enumerate(self._filters)
            ]
        ]


def doubling_weights(weight: Tensor) -> list[list[Tensor]]:
    """What a 3 x 3 kernel behind `tf` doubling is to the small picture, by the phase of the row and of the column made.

    Doubled row 2i is small row i, row 2i + 1 the mean of i and i + 1; so even rows need 3 small rows, odd rows 2, and
    columns likewise.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (O, I, 3, 3), (O, I, 3, 2) for even rows and (O, I, 2, 3), (O, I, 2, 2) for odd rows.
    """
    even = weight.new_tensor([[0.5, 0, 0], [0.5, 1, 0.5], [0, 0, 0.5]])  # (small row, tap)
    odd = weight.new_tensor([[1, 0.5, 0], [0, 0.5, 1]])
    phases = even, odd
    return [[torch.einsum("oikl,yk,xl->oiyx", weight, rows, columns) for columns in phases] for rows in phases]


def choose_convolution(
    weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype
) -> Direct | Pairwise:
    """The fastest that is exact: other devices' libraries choose for themselves, and 16 bits are too few for sums."""
    kernel = weight.shape[2]
    if weight.device.type == "cpu" and dtype == torch.float32 and stride == groups == 1 and bias is None:
        if kernel == 7 and weight.shape[1] > 3:
            return FastFirRows(weight.detach())
        if kernel == 3 and weight.shape[1] >= WINOGRAD_CHANNELS:
            return WinogradRows(weight.detach())
    return Direct(weight, bias, stride, groups, dtype)
