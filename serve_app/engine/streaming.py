"""The generator in strips of rows: the plain forward's result in a fraction of its memory.

Every norm needs sums over the whole picture, so layers run one after another. Within a layer nothing stands whole but
what it reads and what it writes; a row is made when it is needed and released when it has been read. Layers are kept as
they were convolved: whoever reads a layer applies its norm and activation on the way into a buffer of a few rows, where
padding and resizing happen too. No padded, resized or normalised picture ever exists.

Pictures are (N, H, W, C) here, which is what torch calls channels_last.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.engine.convolution import Chunk, Doubled, choose_convolution
from serve_app.engine.generator import SLOPE, ConvNormLReLU, Generator, InvertedResidual, Pads
from serve_app.frames import ResizeMode


class Source(Protocol):
    """A picture that is read once, from its first row to its last."""

    height: int
    width: int
    channels: int

    def take(self, rows: Tensor) -> None:
        """Writes the next `rows.shape[1]` rows into (N, rows, W, C)."""


class Frames:
    """(N, H, W, 3) uint8 as values in [-1, 1]."""

    def __init__(self, frames: Tensor) -> None:
        self.height, self.width, self.channels = frames.shape[1:]
        self._frames = frames
        self._at = 0

    def take(self, rows: Tensor) -> None:
        rows.copy_(self._frames[:, self._at : self._at + rows.shape[1]]).div_(127.5).sub_(1)
        self._at += rows.shape[1]


class Pool:
    """Storage in 16 bits of the chunks of one layer after another, used again as soon as they have been read.

    Left to the allocator, they would come to lie between the strips' float32, and leave holes where no strip fits.
    Chunks in float32 are what the convolution made, and stay where they are.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._size = 0  # values of the chunks that are written now; others are let go
        self._free: list[Tensor] = []

    def put_by(self, chunk: Chunk) -> tuple[Tensor | None, Chunk]:
        """The chunk in this pool's dtype, and the storage that it was copied to, if it was."""
        planes = list(itertools.chain(*chunk))
        if planes[0].dtype == self._dtype:
            return None, chunk
        sizes = [plane.numel() for plane in planes]
        if sum(sizes) != self._size:
            self._size = sum(sizes)
            self._free.clear()
        storage = self._free.pop() if self._free else planes[0].new_empty(self._size, dtype=self._dtype)
        parts = iter(torch.split(storage, sizes))
        return storage, [[next(parts).view(plane.shape).copy_(plane) for plane in planes] for planes in chunk]

    def give_back(self, storage: Tensor | None) -> None:
        if storage is not None and storage.numel() == self._size:
            self._free.append(storage)


class Layer:
    """What one layer convolved, in chunks of rows that go as they are read; read with its norm applied.

    A chunk's planes hold its rows and columns by phase: with two phases of rows, the first plane has its even rows.
    """

    def __init__(self, height: int, width: int, channels: int, pool: Pool) -> None:
        self.height, self.width, self.channels = height, width, channels
        self._pool = pool
        self._chunks: deque[tuple[Tensor | None, Chunk]] = deque()  # with the storage that they lie in
        self._sums: Tensor | None = None  # (2, N) float64: of values, of their squares
        self._scale = self._shift = torch.empty(0)  # (N, 1, 1, C)
        self._is_activated = False
        self._read = 0  # rows of the first chunk

    def append(self, chunk: Chunk) -> None:
        for plane in itertools.chain(*chunk):
            flat = plane.flatten(1)
            # float32 within a chunk, float64 between chunks: as exact as float64 throughout, without its copies.
            sums = torch.stack([flat.sum(1, dtype=torch.float32), squares(flat)]).double()
            self._sums = sums if self._sums is None else self._sums.add_(sums)
        self._chunks.append(self._pool.put_by(chunk))

    def normalised(self, norm: nn.GroupNorm, is_activated: bool = True) -> "Layer":
        """Ends the writing: the sums are complete, and rows may be read."""
        assert self._sums is not None
        mean, square = self._sums / (self.height * self.width * self.channels)
        scale = (square - mean.square()).clamp_min_(0).add_(norm.eps).rsqrt_()[:, None] * norm.weight.double()
        shift = norm.bias.double() - mean[:, None] * scale
        self._scale, self._shift = (x.float()[:, None, None, :] for x in (scale, shift))
        self._is_activated = is_activated
        return self

    def take(self, rows: Tensor) -> None:
        done = 0
        while done < rows.shape[1]:
            storage, chunk = self._chunks[0]
            step = len(chunk)
            held = sum(planes[0].shape[1] for planes in chunk)
            count = min(rows.shape[1] - done, held - self._read)
            for phase, planes in enumerate(chunk):
                first, last = ((row - phase + step - 1) // step for row in (self._read, self._read + count))
                start = done + first * step + phase - self._read
                for column, plane in enumerate(planes):
                    self._write(plane[:, first:last], rows[:, start : done + count : step, column :: len(planes)])
            done += count
            self._read += count
            if self._read == held:
                self._chunks.popleft()
                self._pool.give_back(storage)
                self._read = 0
        if self._is_activated and rows.dtype == torch.float32:
            F.leaky_relu_(rows, SLOPE)

    def _write(self, plane: Tensor, rows: Tensor) -> None:
        if rows.dtype == torch.float32:
            values = plane if plane.dtype == rows.dtype else rows.copy_(plane)
            torch.addcmul(self._shift, values, self._scale, out=rows)
        else:  # one rounding to 16 bits, not one for each step
            values = torch.addcmul(self._shift, plane.float(), self._scale)
            rows.copy_(F.leaky_relu_(values, SLOPE) if self._is_activated else values)


class Kept:
    """Rows as they were put by, for a residual."""

    def __init__(self) -> None:
        self.chunks: deque[Tensor] = deque()

    def add_to(self, rows: Tensor) -> None:
        done = 0
        while done < rows.shape[1]:
            chunk = self.chunks.popleft()
            count = min(chunk.shape[1], rows.shape[1] - done)
            rows[:, done : done + count].add_(chunk[:, :count])
            if count < chunk.shape[1]:
                self.chunks.appendleft(chunk[:, count:])
            done += count


class Residual:
    """A layer and what is added to it."""

    def __init__(self, layer: Layer, kept: Kept) -> None:
        self.height, self.width, self.channels = layer.height, layer.width, layer.channels
        self._layer = layer
        self._kept = kept

    def take(self, rows: Tensor) -> None:
        self._layer.take(rows)
        self._kept.add_to(rows)


class Resized:
    """Bilinear on the way, as torch's `interpolate`: corners aligned, or half-pixel centres."""

    def __init__(self, source: Source, height: int, width: int, is_aligned: bool) -> None:
        self.height, self.width, self.channels = height, width, source.channels
        self._source = source
        self._is_aligned = is_aligned
        self._at = 0
        self._window: Tensor | None = None  # the source's rows that the last row made was between
        self._top = 0  # the window's first row

    def take(self, rows: Tensor) -> None:
        count = rows.shape[1]
        above, below, weight = self._positions(count, rows.device)
        window = self._read(rows, int(above[0]), int(below[-1]) + 1)
        upper = window.index_select(1, above - self._top)
        lower = window.index_select(1, below - self._top)
        mixed = upper.lerp_(lower, weight[:, None, None])
        wide = F.interpolate(
            mixed.permute(0, 3, 1, 2), size=(count, self.width), mode="bilinear", align_corners=self._is_aligned
        )
        rows.copy_(wide.permute(0, 2, 3, 1))
        self._at += count

    def _positions(self, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each of the next rows the two rows it lies between, and the second one's weight; in float32, as torch."""
        row = torch.arange(self._at, self._at + count, dtype=torch.float32, device=device)
        if self._is_aligned:
            position = row * ((self._source.height - 1) / max(self.height - 1, 1))
        else:
            position = ((row + 0.5) * (self._source.height / self.height) - 0.5).clamp_min_(0)
        last = self._source.height - 1
        above = position.long().clamp_max_(last)
        return above, (above + 1).clamp_max_(last), position - above

    def _read(self, rows: Tensor, first: int, end: int) -> Tensor:
        shape = rows.shape[0], end - first, self._source.width, self.channels
        window = rows.new_empty(shape, dtype=torch.float32)  # 16 bits would round once more on the way
        kept = 0
        if self._window is not None:
            held = self._top + self._window.shape[1]
            kept = max(held - first, 0)
            window[:, :kept] = self._window[:, first - self._top :]
        if first + kept < end:
            self._source.take(window[:, kept:])
        self._window, self._top = window, first
        return window


class StripGenerator:
    """A generator that paints in strips, with the plain forward's result. Several threads may paint with it at once.

    Args:
        generator: whose weights are taken; on the device that paints.
        resize: its growing mode.
        storage: of what stands between layers: float32, float16 or bfloat16.
        compute: of the convolutions.
    """

    def __init__(
        self,
        generator: Generator,
        resize: ResizeMode,
        storage: torch.dtype = torch.float32,
        compute: torch.dtype = torch.float32,
    ) -> None:
        self.generator = generator.requires_grad_(False)
        self.storage = storage
        self.compute = compute
        self.is_aligned = resize == "align"
        growing = [cast(ConvNormLReLU, block[0]).conv for block in (generator.block_d, generator.block_e)]
        self.doubled = {conv: Doubled(conv.weight.detach(), compute) for conv in growing if resize == "tf"}
        self.convolutions = {
            conv: choose_convolution(conv.weight, conv.bias, conv.stride[0], conv.groups, compute)
            for conv in generator.modules()
            if isinstance(conv, nn.Conv2d) and conv not in self.doubled
        }

    @torch.inference_mode()
    def paint(self, frames: Tensor, rows: int) -> Tensor:
        """(N, H, W, 3) uint8 to the same, painted.

        Args:
            frames: of one size, on the device.
            rows: of a strip at the picture's full size, a multiple of 4; see `memory.strip_rows`.
        """
        painted = torch.empty_like(frames)

        def sink(at: int, strip: Tensor) -> None:
            pixels = strip.float().add_(1).mul_(127.5).round_().clamp_(0, 255)
            painted[:, at : at + strip.shape[1]].copy_(pixels)

        self.run(Frames(frames), frames, rows, sink)
        return painted

    @torch.inference_mode()
    def run(self, photo: Source, like: Tensor, rows: int, sink: Callable[[int, Tensor], None]) -> None:
        """Paints a source; `sink` gets each strip's first row and its values (N, rows, W, 3) in [-1, 1].

        Args:
            photo: the picture.
            like: any tensor of the batch's N and device.
            rows: as in `paint`.
        """
        Pass(self, like).run(photo, rows, sink)


class Pass:
    """One batch on its way through a generator: its buffers, and how its layers follow each other."""

    def __init__(self, model: StripGenerator, like: Tensor) -> None:
        self._model = model
        self._like = like.new_empty((like.shape[0], 0), dtype=model.compute)
        self._pool = Pool(model.storage)

    def run(self, photo: Source, rows: int, sink: Callable[[int, Tensor], None]) -> None:
        generator = self._model.generator
        blocks = (generator.block_a, generator.block_b, generator.block_c, generator.block_d, generator.block_e)
        a, b, c, d, e = (cast(list[ConvNormLReLU], list(block)) for block in blocks)
        x: Source = self._convolve(photo, a[0], rows)
        x = self._convolve(x, a[1], rows // 2)
        x = self._convolve(x, a[2], rows)
        half = x.height, x.width
        x = self._convolve(x, b[0], rows // 2)
        x = self._convolve(x, b[1], rows)
        x = self._convolve(x, c[0], rows // 2)
        for block in c[1:-1]:
            x = self._invert(x, cast(InvertedResidual, block), rows // 2)
        x = self._convolve(x, c[-1], rows)
        x = self._grow(x, half, d[0], rows)
        x = self._convolve(x, d[1], rows)
        x = self._grow(x, (photo.height, photo.width), e[0], rows)
        x = self._convolve(x, e[1], rows)
        x = self._convolve(x, e[2], rows)
        at = 0
        last = self._model.convolutions[cast(nn.Conv2d, generator.out_layer[0])]
        for strip in self._strips(x, rows):
            (((plane,),),) = last(strip)
            sink(at, plane.contiguous().tanh_())
            at += strip.shape[1]

    def _convolve(self, source: Source, part: ConvNormLReLU, rows: int) -> Layer:
        """Pad, convolution, norm and activation."""
        conv, kernel, stride = part.conv, part.conv.kernel_size[0], part.conv.stride[0]
        left, right, top, bottom = part.pads
        layer = Layer(
            (source.height + top + bottom - kernel) // stride + 1,
            (source.width + left + right - kernel) // stride + 1,
            conv.out_channels,
            self._pool,
        )
        convolution = self._model.convolutions[conv]
        for window in windows(source, self._like, part.pads, kernel, stride, rows):
            for chunk in convolution(window):
                layer.append(chunk)
        return layer.normalised(part.norm)

    def _grow(self, source: Source, size: tuple[int, int], part: ConvNormLReLU, rows: int) -> Layer:
        """Resize, then as `_convolve`."""
        height, width = size
        doubled = self._model.doubled.get(part.conv)
        if doubled is None:
            return self._convolve(Resized(source, height, width, self._model.is_aligned), part, rows)
        layer = Layer(height, width, part.conv.out_channels, self._pool)
        for window in windows(source, self._like, (1, 1, 1, 1), 3, 1, rows // 2, repeat_far_edge=True):
            for chunk in doubled(window):
                layer.append(chunk)
        return layer.normalised(part.norm)

    def _invert(self, source: Source, block: InvertedResidual, rows: int) -> Source:
        """An inverted residual block."""
        expand, depthwise = (cast(ConvNormLReLU, block.layers[i]) for i in (0, 1))
        project, norm = cast(nn.Conv2d, block.layers[2]), cast(nn.GroupNorm, block.layers[3])
        expanding, projecting = self._model.convolutions[expand.conv], self._model.convolutions[project]
        kept = Kept()
        hidden = Layer(source.height, source.width, expand.conv.out_channels, self._pool)
        for strip in self._strips(source, rows):
            hidden.append(expanding(strip)[0])
            if block.is_residual:
                kept.chunks.append(strip.to(self._model.storage))
        filtered = self._convolve(hidden.normalised(expand.norm), depthwise, rows)
        layer = Layer(source.height, source.width, project.out_channels, self._pool)
        for strip in self._strips(filtered, rows):
            layer.append(projecting(strip)[0])
        layer.normalised(norm, is_activated=False)
        return Residual(layer, kept) if block.is_residual else layer

    def _strips(self, source: Source, rows: int) -> Iterator[Tensor]:
        """The source as it is, in strips."""
        for at in range(0, source.height, rows):
            count = min(rows, source.height - at)
            strip = self._like.new_empty(self._like.shape[0], count, source.width, source.channels)
            source.take(strip)
            yield strip


def windows(
    source: Source, like: Tensor, pads: Pads, kernel: int, stride: int, rows: int, repeat_far_edge: bool = False
) -> Iterator[Tensor]:
    """What a convolution reads to make `rows` rows at a time: the source, reflected at its edges.

    Each source row is read once: what two windows share is moved up. A window is gone when the next one is asked for.

    Args:
        source: the picture.
        like: of the batch's N, of the device and dtype of the windows.
        pads: reflected at left, right, top and bottom.
        kernel: the convolution's height.
        stride: its step.
        rows: that each window is to make; the last one makes what is left.
        repeat_far_edge: pads right and bottom by repeating the last column and row instead.
    """
    left, right, top, bottom = pads
    height, width = source.height, source.width
    far = 1 if repeat_far_edge else 2  # the row that the first padded one is taken from, counted from the end
    out_height = (height + top + bottom - kernel) // stride + 1
    window: Tensor | None = None
    for out_row in range(0, out_height, rows):
        first = out_row * stride - top  # rows of the source; outside it they are padding
        count = (min(rows, out_height - out_row) - 1) * stride + kernel
        before = window
        if window is None or window.shape[1] != count:
            window = like.new_empty(like.shape[0], count, width + left + right, source.channels)
        shared = 0
        if before is not None:
            shared = max(before.shape[1] - rows * stride, 0)
            rest = before[:, before.shape[1] - shared :]
            window[:, :shared] = rest.clone() if before is window and shared > count - shared else rest
        begin, end = max(first + shared, 0), min(first + count, height)
        if begin < end:
            fresh = window[:, begin - first : end - first]
            source.take(fresh[:, :, left : left + width])
            for column in range(left):
                fresh[:, :, column] = fresh[:, :, 2 * left - column]
            for column in range(right):
                fresh[:, :, left + width + column] = fresh[:, :, left + width - far - column]
        for row in range(first + shared, 0):
            window[:, row - first] = window[:, -row - first]
        for row in range(max(first + shared, height), first + count):
            window[:, row - first] = window[:, 2 * height - far - row - first]
        yield window


def squares(flat: Tensor) -> Tensor:
    """(N, M) to (N,): sums of squares in float32, without a temporary."""
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32)
    return norm.square_()
