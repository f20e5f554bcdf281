"""Convolutions with fewer multiplications equal the direct ones, and are chosen only where exact and faster."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.engine.convolution import (
    Chunk,
    Convolution,
    Direct,
    FastFirRows,
    UpsampledConv,
    WinogradRows,
    choose_convolution,
    convolve,
)
from serve_app.engine.generator import RESIZES


def interleaved(chunks: list[Chunk]) -> Tensor:
    """Returns the image whose rows and columns the planes hold by phase."""
    parts = []
    for chunk in chunks:
        rows = [torch.stack(planes, 3).flatten(2, 3) for planes in chunk]
        parts.append(torch.stack(rows, 2).flatten(1, 2))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("make", "kernel"), [(WinogradRows, 3), (FastFirRows, 7), (FastFirRows, 3)])
def test_fast_convolution_equals_the_direct_one(
    make: type[WinogradRows] | type[FastFirRows], kernel: int, batch: int, rows: int
) -> None:
    torch.manual_seed(rows)
    weight = torch.randn(5, 4, kernel, kernel)
    window = torch.randn(batch, rows + kernel - 1, 6 + kernel - 1, 4)
    exact = convolve(window.double(), weight.double())
    made = interleaved(make(weight)(window.clone()))
    assert made.shape == (batch, rows, 6, 5)
    assert (made - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("make", [WinogradRows, FastFirRows])
def test_window_is_not_changed_because_the_next_one_shares_its_rows(
    make: type[WinogradRows] | type[FastFirRows],
) -> None:
    kernel = 3 if make is WinogradRows else 7
    window = torch.randn(2, 12, 12, 4)
    copy = window.clone()
    make(torch.randn(5, 4, kernel, kernel))(window)
    assert torch.equal(window, copy)


@pytest.mark.parametrize("batch", [1, 2])
def test_upsampled_convolution_equals_upsampling_first(batch: int) -> None:
    weight = torch.randn(4, 3, 3, 3)
    image = torch.randn(batch, 3, 6, 7)
    upsampled = F.pad(RESIZES["tf"](image, 12, 14), (1, 1, 1, 1), mode="reflect")
    expected = F.conv2d(upsampled, weight).permute(0, 2, 3, 1)
    window = F.pad(F.pad(image, (1, 0, 1, 0), mode="reflect"), (0, 1, 0, 1), mode="replicate").permute(0, 2, 3, 1)
    assert (interleaved(UpsampledConv(weight, torch.float32)(window.contiguous())) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("shape", "stride", "groups", "dtype", "chosen"),
    [
        ((32, 64, 7, 7), 1, 1, torch.float32, FastFirRows),
        ((128, 128, 3, 3), 1, 1, torch.float32, WinogradRows),
        (
            (32, 3, 7, 7),
            1,
            1,
            torch.float32,
            Direct,
        ),  # three channels: the transforms would cost more than the convolution
        ((64, 64, 3, 3), 1, 1, torch.float32, Direct),
        ((128, 64, 3, 3), 2, 1, torch.float32, Direct),
        ((512, 1, 3, 3), 1, 512, torch.float32, Direct),
        ((512, 256, 1, 1), 1, 1, torch.float32, Direct),
        ((128, 128, 3, 3), 1, 1, torch.bfloat16, Direct),
    ],
)
def test_choice_of_convolution(
    shape: tuple[int, ...], stride: int, groups: int, dtype: torch.dtype, chosen: type[Convolution]
) -> None:
    assert type(choose_convolution(torch.randn(shape), None, stride, groups, dtype)) is chosen


def test_convolution_with_a_bias_is_direct_and_adds_it() -> None:
    bias = torch.randn(128)
    convolution = choose_convolution(torch.zeros(128, 128, 3, 3), bias, 1, 1, torch.float32)
    assert type(convolution) is Direct
    (((plane,),),) = convolution(torch.zeros(1, 3, 3, 128))
    assert torch.equal(plane.flatten(), bias)
