"""Painting in strips equals the plain forward pass for every size, batch, strip height and resize mode."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from seeding import seeded_generator
from torch import Tensor

from serve_app.engine.generator import Generator
from serve_app.engine.passes import TorchPasses
from serve_app.engine.streaming import ChunkPool, Frames, Layer, StripGenerator, windows
from serve_app.frames import ResizeMode

SIZES: list[tuple[ResizeMode, int, int]] = [
    *[(mode, *size) for mode in ("align", "half", "tf") for size in ((8, 8), (12, 48), (64, 44), (100, 36))],
    *[("align", *size) for size in ((8, 9), (9, 8), (11, 14), (37, 61), (66, 35))],
]


def frames_of(batch: int, height: int, width: int) -> Tensor:
    return torch.randint(
        0, 256, (batch, height, width, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def plain(generator: Generator, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    x = (frames.permute(0, 3, 1, 2) / 127.5 - 1).to(dtype)
    with torch.inference_mode():
        painted: Tensor = generator.to(dtype)(x).float()
    return painted.permute(0, 2, 3, 1)


def streamed(strips: StripGenerator, frames: Tensor, rows: int) -> Tensor:
    painted = torch.full(frames.shape, torch.nan)

    def sink(at: int, strip: Tensor) -> None:
        painted[:, at : at + strip.shape[1]] = strip

    strips.run(Frames(frames), frames, rows, sink)
    return painted


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 12, 64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("mode", "height", "width"), SIZES)
def test_strips_equal_the_plain_forward(mode: ResizeMode, height: int, width: int, batch: int, rows: int) -> None:
    generator = seeded_generator(mode)
    frames = frames_of(batch, height, width)
    expected = plain(generator, frames)
    assert (streamed(StripGenerator(generator, mode), frames, rows) - expected).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["align", "half", "tf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_computed_in_16_bits", [False, True])
def test_16_bits_err_no_more_than_the_plain_forward_in_16_bits(
    mode: ResizeMode, dtype: torch.dtype, is_computed_in_16_bits: bool
) -> None:
    frames = frames_of(1, 96, 128)
    exact = plain(seeded_generator(mode), frames)
    compute = dtype if is_computed_in_16_bits else torch.float32
    ours = (streamed(StripGenerator(seeded_generator(mode), mode, dtype, compute), frames, 32) - exact).abs()
    theirs = (plain(seeded_generator(mode), frames, dtype) - exact).abs()
    if is_computed_in_16_bits:
        assert ours.mean() <= 1.05 * theirs.mean()  # the same roundings in another order
    else:
        assert ours.mean() <= 0.7 * theirs.mean()
        assert ours.max() <= theirs.max()


def test_painting_is_scaled_to_bytes_and_leaves_the_frames_alone() -> None:
    generator = seeded_generator("tf")
    frames = frames_of(2, 24, 32)
    copy = frames.clone()
    painted = StripGenerator(generator, "tf").paint(frames, 8)
    expected = ((plain(generator, frames) + 1) * 127.5).round().clamp(0, 255)
    assert (painted.float() - expected).abs().max() <= 1
    assert torch.equal(frames, copy)


def test_strips_use_the_eps_of_the_style() -> None:
    frames = frames_of(1, 16, 16) // 64 * 0 + 7  # flat: only eps keeps the norm finite
    generator = seeded_generator("tf", eps=1e-3)
    expected = plain(generator, frames)
    assert (streamed(StripGenerator(generator, "tf"), frames, 8) - expected).abs().max() <= 1e-4


def filled(height: int, rows: int, phases: tuple[int, int] = (1, 1)) -> tuple[Layer, Tensor, list[weakref.ref[Tensor]]]:
    """Returns a layer of width 6 and 3 channels, its values, and weak references to the planes that hold them."""
    values = torch.randn(2, height, 6, 3)
    layer = Layer(height, 6, 3, ChunkPool(torch.float32), TorchPasses())
    alive = []
    down, across = phases
    for first in range(0, height, rows):
        part = values[:, first : first + rows]
        chunk = [[part[:, row::down, column::across].clone() for column in range(across)] for row in range(down)]
        alive += [weakref.ref(plane) for planes in chunk for plane in planes]
        layer.append(chunk)
    return layer, values, alive


@pytest.mark.parametrize("phases", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("counts", [[12], [1] * 12, [5, 4, 3], [2, 7, 3]])
def test_layer_is_normalised_however_many_rows_are_read_at_a_time(phases: tuple[int, int], counts: list[int]) -> None:
    layer, values, _ = filled(12, 4, phases)
    norm = torch.nn.GroupNorm(1, 3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    layer.normalised(norm.requires_grad_(False))
    taken = []
    for count in counts:
        rows = torch.empty(2, count, 6, 3)
        layer.read_into(rows)
        taken.append(rows)
    expected = torch.nn.functional.leaky_relu(norm(values.permute(0, 3, 1, 2)), 0.2).permute(0, 2, 3, 1)
    assert (torch.cat(taken, 1) - expected).abs().max() <= 1e-5


@pytest.mark.slow
def test_rows_are_freed_once_they_have_been_read() -> None:
    layer, _, alive = filled(12, 4)
    layer.normalised(torch.nn.GroupNorm(1, 3).requires_grad_(False))
    held = []
    for _ in range(4):
        gc.collect()
        held.append(sum(chunk() is not None for chunk in alive))
        if len(held) < 4:
            layer.read_into(torch.empty(2, 4, 6, 3))
    assert held == [3, 2, 1, 0]


class Counting:
    """A source whose rows hold their own numbers."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.channels = height, width, 1
        self.rows: Iterator[int] = iter(range(height))

    def read_into(self, rows: Tensor) -> None:
        for row in range(rows.shape[1]):
            rows[:, row] = next(self.rows) + torch.arange(self.width)[:, None] / 100


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [(3, 1, (1, 1, 1, 1)), (7, 1, (3, 3, 3, 3)), (3, 2, (0, 1, 0, 1)), (1, 1, (0, 0, 0, 0))],
)
def test_windows_together_are_the_reflected_image(
    kernel: int, stride: int, pads: tuple[int, int, int, int], rows: int
) -> None:
    height, width = 11, 9
    like = torch.empty(1, 0)
    whole = torch.empty(1, height, width, 1)
    Counting(height, width).read_into(whole)
    padded = torch.nn.functional.pad(whole.permute(0, 3, 1, 2), pads, mode="reflect").permute(0, 2, 3, 1)
    at = 0
    for window in windows(Counting(height, width), like, pads, kernel, stride, rows):
        assert torch.equal(window, padded[:, at : at + window.shape[1]])
        at += rows * stride


def test_16_bit_chunks_reuse_the_storage_of_chunks_that_were_read() -> None:
    pool = ChunkPool(torch.float16)
    planes = torch.randn(2, 1, 4, 6, 3)
    storage, chunk = pool.store([[planes[0]], [planes[1]]])
    assert torch.equal(chunk[1][0], planes[1].half())
    pool.give_back(storage)
    again, _ = pool.store([[planes.flatten(0, 1)]])
    assert again is storage
    other, _ = pool.store([[planes[0]]])
    pool.give_back(storage)  # of a size that is no longer written
    assert pool.store([[planes[1]]])[0] is not storage
    assert other is not storage


def test_float32_chunks_are_not_copied() -> None:
    plane = torch.randn(1, 4, 6, 3)
    assert ChunkPool(torch.float32).store([[plane]]) == (None, [[plane]])
