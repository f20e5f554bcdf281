"""Convolutions of a window of rows, with fewer multiplications where that is faster.

A window is (N, rows, W, C) and includes the padding. The result is a list of chunks. A chunk holds its rows and columns
in planes: with two row phases, one plane has the even rows and another the odd ones, and likewise for columns. So a
convolution that makes even and odd rows separately need not interleave them.

On a CPU in float32, two classical algorithms need fewer multiplications than one for each tap of the kernel: Winograd's
minimal filtering F(2, 3) for 3 x 3 kernels (Lavin and Gray 2016), and the two-parallel fast FIR algorithm for 7 x 7
kernels (Parker and Parhi 1997). Both add and subtract inputs and outputs. They do so between whole rows only, so that
each such step is one pass over memory.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Chunk = list[list[Tensor]]  # [row phase][column phase] of (N, rows, W, C) planes
Convolution = Callable[[Tensor], list[Chunk]]  # a window to its chunks, from the top down

WINOGRAD_CHANNELS = 128  # input channels of a 3 x 3 convolution, from which Winograd saves more than it costs


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, groups: int = 1) -> Tensor:
    """Convolves (N, H, W, C) without padding, to the same layout, and in the dtype of the weight."""
    if x.dtype != weight.dtype:
        return convolve(x.to(weight.dtype), weight, bias, stride, groups).to(x.dtype)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, 0, 1, groups).permute(0, 2, 3, 1)


def prepare_weight(weight: Tensor, dtype: torch.dtype, is_emulated: bool = False) -> Tensor:
    """Returns a weight in the dtype and memory layout that convolutions are fastest with.

    If the dtype is emulated, its values are rounded to it and kept in float32. Products of 16-bit values are exact
    there, and sums are in float32 on real processors too.
    """
    rounded = weight.detach().to(dtype)
    return (rounded.float() if is_emulated else rounded).contiguous(memory_format=torch.channels_last)


class Direct:
    """A convolution by torch's own operator."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        groups: int,
        dtype: torch.dtype,
        is_emulated: bool = False,
    ) -> None:
        self._weight = prepare_weight(weight, dtype, is_emulated)
        self._bias = None if bias is None else bias.detach().to(dtype).to(self._weight.dtype)
        self._stride = stride
        self._groups = groups

    def __call__(self, window: Tensor) -> list[Chunk]:
        """Convolves a window."""
        return [[[convolve(window, self._weight, self._bias, self._stride, self._groups)]]]


class Pairwise:
    """Base of the convolutions that make rows in pairs; an odd last row is convolved directly."""

    def __init__(self, weight: Tensor) -> None:
        self._taps = weight.shape[2]
        self._single = prepare_weight(weight, torch.float32)

    def __call__(self, window: Tensor) -> list[Chunk]:
        """Convolves a window."""
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
        """Returns output rows 0, 2, 4 ... and output rows 1, 3, 5 ..., `count` of each."""
        raise NotImplementedError


class WinogradRows(Pairwise):
    """F(2, 3) between rows: makes two output rows with four 1 x 3 convolutions instead of six."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        above, middle, below = weight.double().unbind(2)
        both = above + below
        filters = above, (both + middle) / 2, (both - middle) / 2, below
        self._filters = [prepare_weight(filter[:, :, None], torch.float32) for filter in filters]

    def pairs(self, window: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the even and the odd output rows, `count` of each."""
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
    """Fast FIR between rows: makes two output rows with three convolutions of half the height instead of four."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        even, odd = weight[:, :, 0::2], weight[:, :, 1::2]  # the height is odd, so `even` has one tap more
        both = even.double() + F.pad(odd.double(), (0, 0, 1, 0))
        self._even, self._odd, self._both = (prepare_weight(part, torch.float32) for part in (even, odd, both))

    def pairs(self, window: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the even and the odd output rows, `count` of each."""
        x0, x1 = window[:, 0::2].contiguous(), window[:, 1::2].contiguous()
        rows = count + self._even.shape[2] - 1
        a = convolve(x0[:, :rows], self._even)
        b = convolve(x1[:, :rows], self._odd)  # one row more than the other two
        odd = convolve(x0[:, :rows].add_(x1[:, :rows]), self._both)
        odd.sub_(a).sub_(b[:, 1:])
        return a.add_(b[:, :-1]), odd


class UpsampledConv:
    """A 3 x 3 convolution after the 2 x upsampling of `tf`, computed on the input before upsampling.

    Four small convolutions, one for each phase of rows and columns, take fewer multiplications, and the upsampled image
    is never stored. The window is the input, reflected at left and top and repeated at right and bottom. This equals
    the reflection of the upsampled image.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, is_emulated: bool = False) -> None:
        self._filters = [
            [prepare_weight(filter, dtype, is_emulated) for filter in filters] for filters in upsampled_weights(weight)
        ]

    def __call__(self, window: Tensor) -> list[Chunk]:
        """Convolves a window."""
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


def upsampled_weights(weight: Tensor) -> list[list[Tensor]]:
    """Returns kernels that give a 3 x 3 convolution after TensorFlow's 2 x upsampling, from the input before it.

    There is one kernel for each phase of output rows and columns. Row 2i of the upsampled image is input row i, and row
    2i + 1 is the mean of input rows i and i + 1. So even output rows need 3 input rows, odd ones need 2, and columns
    likewise.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        For even rows (O, I, 3, 3) and (O, I, 3, 2), for odd rows (O, I, 2, 3) and (O, I, 2, 2): each time the kernel
        for even columns, then the one for odd columns.
    """
    even = weight.new_tensor([[0.5, 0, 0], [0.5, 1, 0.5], [0, 0, 0.5]])  # (input row, tap)
    odd = weight.new_tensor([[1, 0.5, 0], [0, 0.5, 1]])
    phases = even, odd
    return [[torch.einsum("oikl,yk,xl->oiyx", weight, rows, columns) for columns in phases] for rows in phases]


def choose_convolution(
    weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype, is_emulated: bool = False
) -> Direct | Pairwise:
    """Returns the fastest convolution that is exact enough.

    The fast algorithms are for float32 on a CPU: other devices' libraries make a choice of their own, and 16 bits are
    too few for the sums.
    """
    kernel = weight.shape[2]
    if weight.device.type == "cpu" and dtype == torch.float32 and stride == groups == 1 and bias is None:
        if kernel == 7 and weight.shape[1] > 3:
            return FastFirRows(weight.detach())
        if kernel == 3 and weight.shape[1] >= WINOGRAD_CHANNELS:
            return WinogradRows(weight.detach())
    return Direct(weight, bias, stride, groups, dtype, is_emulated)
