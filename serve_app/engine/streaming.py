"""Runs the generator in strips of rows: the same result as its plain forward pass, in a fraction of the memory.

Every norm needs sums over the whole image, so the layers run one after another. While a layer runs, only its input and
its output are held in full, and each input row is freed once it has been read. A layer's output is stored as it was
convolved. The norm and the activation are applied when the next layer reads it, into a buffer of a few rows. Padding
and resizing happen in that buffer too. So no padded, resized or normalised image is ever stored.

Images are (N, H, W, C) here, the memory layout that torch calls channels_last.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.engine.convolution import Chunk, UpsampledConv, choose_convolution
from serve_app.engine.generator import SLOPE, ConvNormLReLU, Generator, InvertedResidual, Pads
from serve_app.engine.passes import Passes, choose_passes
from serve_app.frames import ResizeMode


class Source(Protocol):
    """An image that is read once, from its first row to its last."""

    height: int
    width: int
    channels: int

    def read_into(self, rows: Tensor) -> None:
        """Writes the next `rows.shape[1]` rows of the image into `rows`, which is (N, rows, W, C)."""


class Frames:
    """A source that reads frames, (N, H, W, 3) uint8, as values in [-1, 1]."""

    def __init__(self, frames: Tensor) -> None:
        self.height, self.width, self.channels = frames.shape[1:]
        self._frames = frames
        self._at = 0

    def read_into(self, rows: Tensor) -> None:
        """Writes the next rows."""
        rows.copy_(self._frames[:, self._at : self._at + rows.shape[1]]).div_(127.5).sub_(1)
        self._at += rows.shape[1]


class ChunkPool:
    """Storage for chunks in 16 bits, reused by one layer after another once its chunks have been read.

    Without the pool, the allocator would place the chunks between the strips, which are float32. Freed, they would
    leave holes that are too small for a strip. Chunks in float32 are not copied: they stay where the convolution made
    them.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._size = 0  # values in a chunk of the current layer; storage of another size is not reused
        self._free: list[Tensor] = []

    def store(self, chunk: Chunk) -> tuple[Tensor | None, Chunk]:
        """Returns the storage that the chunk was copied to, None if it was not, and the chunk in the pool's dtype."""
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
        """Makes the storage of a chunk that has been read free for another one."""
        if storage is not None and storage.numel() == self._size:
            self._free.append(storage)


class Layer:
    """One layer's raw output in chunks of rows, normalised when it is read and freed after that.

    First all chunks are appended, then `normalised` ends the writing, then the rows are read. A chunk's planes hold its
    rows and columns by phase: with two row phases, the first plane has the even rows.
    """

    def __init__(self, height: int, width: int, channels: int, pool: ChunkPool, passes: Passes) -> None:
        self.height, self.width, self.channels = height, width, channels
        self._pool = pool
        self._passes = passes
        self._chunks: deque[tuple[Tensor | None, Chunk]] = deque()  # each with its storage in the pool
        self._sums: Tensor | None = None  # (2, N) float64: the sum of all values, and of their squares
        self._scale = self._shift = torch.empty(0)  # (N, 1, 1, C)
        self._slope: float = 1
        self._read = 0  # rows of the first chunk that have been read

    def append(self, chunk: Chunk) -> None:
        """Adds the next rows."""
        for plane in itertools.chain(*chunk):
            sums = self._passes.sums(plane)
            self._sums = sums if self._sums is None else self._sums.add_(sums)
        self._chunks.append(self._pool.store(chunk))

    def normalised(self, norm: nn.GroupNorm, is_activated: bool = True) -> "Layer":
        """Ends the writing, now that the sums are complete; from here on rows may be read.

        Args:
            norm: to apply to each value that is read.
            is_activated: whether to apply LeakyReLU too.
        """
        assert self._sums is not None
        mean, square = self._sums / (self.height * self.width * self.channels)
        scale = (square - mean.square()).clamp_min_(0).add_(norm.eps).rsqrt_()[:, None] * norm.weight.double()
        shift = norm.bias.double() - mean[:, None] * scale
        self._scale, self._shift = (x.float()[:, None, None, :] for x in (scale, shift))
        self._slope = SLOPE if is_activated else 1
        return self

    def read_into(self, rows: Tensor) -> None:
        """Writes the next rows, normalised."""
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
                    self._passes.normalise(
                        plane[:, first:last],
                        rows[:, start : done + count : step, column :: len(planes)],
                        self._scale,
                        self._shift,
                        self._slope,
                    )
            done += count
            self._read += count
            if self._read == held:
                self._chunks.popleft()
                self._pool.give_back(storage)
                self._read = 0


class ResidualBuffer:
    """Rows of a block's input, held until they are added to its output."""

    def __init__(self) -> None:
        self.chunks: deque[Tensor] = deque()

    def add_to(self, rows: Tensor) -> None:
        """Adds the next rows to `rows`, in place, and frees them."""
        done = 0
        while done < rows.shape[1]:
            chunk = self.chunks.popleft()
            count = min(chunk.shape[1], rows.shape[1] - done)
            rows[:, done : done + count].add_(chunk[:, :count])
            if count < chunk.shape[1]:
                self.chunks.appendleft(chunk[:, count:])
            done += count


class Residual:
    """The sum of a layer and a residual."""

    def __init__(self, layer: Layer, residual: ResidualBuffer) -> None:
        self.height, self.width, self.channels = layer.height, layer.width, layer.channels
        self._layer = layer
        self._residual = residual

    def read_into(self, rows: Tensor) -> None:
        """Writes the next rows."""
        self._layer.read_into(rows)
        self._residual.add_to(rows)


class Resized:
    """A source resized as it is read: bilinear as torch's `interpolate`, with aligned corners or half-pixel centres."""

    def __init__(self, source: Source, height: int, width: int, is_aligned: bool) -> None:
        self.height, self.width, self.channels = height, width, source.channels
        self._source = source
        self._is_aligned = is_aligned
        self._at = 0
        self._window: Tensor | None = None  # the source's rows that the last rows were made from
        self._top = 0  # the source's row that is the window's first

    def read_into(self, rows: Tensor) -> None:
        """Writes the next rows."""
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
        """Returns, for each of the next rows, the source's rows above and below it, and the weight of the one below.

        Computed in float32, as in torch.
        """
        row = torch.arange(self._at, self._at + count, dtype=torch.float32, device=device)
        if self._is_aligned:
            position = row * ((self._source.height - 1) / max(self.height - 1, 1))
        else:
            position = ((row + 0.5) * (self._source.height / self.height) - 0.5).clamp_min_(0)
        last = self._source.height - 1
        above = position.long().clamp_max_(last)
        return above, (above + 1).clamp_max_(last), position - above

    def _read(self, rows: Tensor, first: int, end: int) -> Tensor:
        """Returns the source's rows from `first` to `end`, in float32, with the batch and the device of `rows`."""
        shape = rows.shape[0], end - first, self._source.width, self.channels
        window = rows.new_empty(shape, dtype=torch.float32)  # in 16 bits, values would be rounded once more
        shared = 0  # rows that the last window had too
        if self._window is not None:
            held = self._top + self._window.shape[1]
            shared = max(held - first, 0)
            window[:, :shared] = self._window[:, first - self._top :]
        if first + shared < end:
            self._source.read_into(window[:, shared:])
        self._window, self._top = window, first
        return window


class StripGenerator:
    """A generator that paints in strips, with the same result as its plain forward pass.

    Several threads may paint with it at once.

    Args:
        generator: with the weights, on the device that paints.
        resize: the generator's resize mode.
        storage: dtype of the values between layers: float32, float16 or bfloat16.
        compute: dtype of the convolutions.
        is_emulated: whether to run them in float32 on values that are rounded to `compute`: for measuring, on a
            processor without instructions for it, how it would paint.
        passes: between the convolutions; default, the fastest here.
    """

    def __init__(
        self,
        generator: Generator,
        resize: ResizeMode,
        storage: torch.dtype = torch.float32,
        compute: torch.dtype = torch.float32,
        is_emulated: bool = False,
        passes: Passes | None = None,
    ) -> None:
        self.generator = generator.requires_grad_(False)
        self.storage = storage
        self.compute = compute
        device = next(generator.parameters()).device
        self.passes = passes or choose_passes(device.type, storage, compute)
        self.is_aligned = resize == "align"
        decoder = [cast(ConvNormLReLU, block[0]).conv for block in (generator.block_d, generator.block_e)]
        upsampled = decoder if resize == "tf" else []
        self.upsampled = {conv: UpsampledConv(conv.weight.detach(), compute, is_emulated) for conv in upsampled}
        self.convolutions = {
            conv: choose_convolution(conv.weight, conv.bias, conv.stride[0], conv.groups, compute, is_emulated)
            for conv in generator.modules()
            if isinstance(conv, nn.Conv2d) and conv not in self.upsampled
        }

    @torch.inference_mode()
    def paint(self, frames: Tensor, rows: int) -> Tensor:
        """Paints frames, (N, H, W, 3) uint8, and returns them in the same form.

        Args:
            frames: of one size, on the device.
            rows: of a strip at the image's full size, a multiple of 4; see `memory.strip_rows`.
        """
        painted = torch.empty_like(frames)

        def sink(at: int, strip: Tensor) -> None:
            pixels = strip.float().add_(1).mul_(127.5).round_().clamp_(0, 255)
            painted[:, at : at + strip.shape[1]].copy_(pixels)

        self.run(Frames(frames), frames, rows, sink)
        return painted

    @torch.inference_mode()
    def run(self, image: Source, like: Tensor, rows: int, sink: Callable[[int, Tensor], None]) -> None:
        """Paints a source strip by strip.

        Args:
            image: the source.
            like: any tensor with the batch's N, on its device.
            rows: as in `paint`.
            sink: is called with each strip's first row and its values, (N, rows, W, 3) in [-1, 1].
        """
        ForwardPass(self, like).run(image, rows, sink)


class ForwardPass:
    """One forward pass of a batch: its buffers, and the order of the layers."""

    def __init__(self, model: StripGenerator, like: Tensor) -> None:
        self._model = model
        self._like = like.new_empty((like.shape[0], 0), dtype=model.compute)
        self._pool = ChunkPool(model.storage)
        self._passes = model.passes

    def run(self, image: Source, rows: int, sink: Callable[[int, Tensor], None]) -> None:
        """Runs all layers; the arguments are those of `StripGenerator.run`."""
        generator = self._model.generator
        blocks = (generator.block_a, generator.block_b, generator.block_c, generator.block_d, generator.block_e)
        a, b, c, d, e = (cast(list[ConvNormLReLU], list(block)) for block in blocks)
        x: Source = self._convolve(image, a[0], rows)
        x = self._convolve(x, a[1], rows // 2)
        x = self._convolve(x, a[2], rows)
        half = x.height, x.width
        x = self._convolve(x, b[0], rows // 2)
        x = self._convolve(x, b[1], rows)
        x = self._convolve(x, c[0], rows // 2)
        for block in c[1:-1]:
            x = self._invert(x, cast(InvertedResidual, block), rows // 2)
        x = self._convolve(x, c[-1], rows)
        x = self._upsample(x, half, d[0], rows)
        x = self._convolve(x, d[1], rows)
        x = self._upsample(x, (image.height, image.width), e[0], rows)
        x = self._convolve(x, e[1], rows)
        x = self._convolve(x, e[2], rows)
        at = 0
        last = self._model.convolutions[cast(nn.Conv2d, generator.out_layer[0])]
        for strip in self._strips(x, rows):
            (((plane,),),) = last(strip)
            sink(at, plane.contiguous().tanh_())
            at += strip.shape[1]

    def _convolve(self, source: Source, part: ConvNormLReLU, rows: int) -> Layer:
        """Pads, convolves, normalises and activates."""
        conv, kernel, stride = part.conv, part.conv.kernel_size[0], part.conv.stride[0]
        left, right, top, bottom = part.pads
        layer = Layer(
            (source.height + top + bottom - kernel) // stride + 1,
            (source.width + left + right - kernel) // stride + 1,
            conv.out_channels,
            self._pool,
            self._passes,
        )
        convolution = self._model.convolutions[conv]
        for window in windows(source, self._like, part.pads, kernel, stride, rows):
            for chunk in convolution(window):
                layer.append(chunk)
        return layer.normalised(part.norm)

    def _upsample(self, source: Source, size: tuple[int, int], part: ConvNormLReLU, rows: int) -> Layer:
        """Resizes, then does the same as `_convolve`."""
        height, width = size
        upsampled = self._model.upsampled.get(part.conv)
        if upsampled is None:
            return self._convolve(Resized(source, height, width, self._model.is_aligned), part, rows)
        layer = Layer(height, width, part.conv.out_channels, self._pool, self._passes)
        for window in windows(source, self._like, (1, 1, 1, 1), 3, 1, rows // 2, repeat_far_edge=True):
            for chunk in upsampled(window):
                layer.append(chunk)
        return layer.normalised(part.norm)

    def _invert(self, source: Source, block: InvertedResidual, rows: int) -> Source:
        """Runs an inverted residual block."""
        expand, depthwise = (cast(ConvNormLReLU, block.layers[i]) for i in (0, 1))
        project, norm = cast(nn.Conv2d, block.layers[2]), cast(nn.GroupNorm, block.layers[3])
        expanding, projecting = self._model.convolutions[expand.conv], self._model.convolutions[project]
        residual = ResidualBuffer()
        hidden = Layer(source.height, source.width, expand.conv.out_channels, self._pool, self._passes)
        for strip in self._strips(source, rows):
            hidden.append(expanding(strip)[0])
            if block.is_residual:
                residual.chunks.append(strip.to(self._model.storage))
        filtered = self._convolve(hidden.normalised(expand.norm), depthwise, rows)
        layer = Layer(source.height, source.width, project.out_channels, self._pool, self._passes)
        for strip in self._strips(filtered, rows):
            layer.append(projecting(strip)[0])
        layer.normalised(norm, is_activated=False)
        return Residual(layer, residual) if block.is_residual else layer

    def _strips(self, source: Source, rows: int) -> Iterator[Tensor]:
        """Yields the source in strips, without padding."""
        for at in range(0, source.height, rows):
            count = min(rows, source.height - at)
            strip = self._like.new_empty(self._like.shape[0], count, source.width, source.channels)
            source.read_into(strip)
            yield strip


def windows(
    source: Source, like: Tensor, pads: Pads, kernel: int, stride: int, rows: int, repeat_far_edge: bool = False
) -> Iterator[Tensor]:
    """Yields the windows that a convolution reads to make `rows` rows at a time: the source with its padding.

    Each source row is read once: rows that two windows share are moved up. A window is valid until the next one is
    asked for.

    Args:
        source: the image.
        like: any tensor with the batch's N, on the device and in the dtype that the windows shall have.
        pads: pixels at left, right, top and bottom, filled by reflection.
        kernel: the convolution's height.
        stride: of the convolution.
        rows: that each window is for; the last window is for the rest.
        repeat_far_edge: fills the padding at right and bottom by repeating the last column and row instead.
    """
    left, right, top, bottom = pads
    height, width = source.height, source.width
    far = 1 if repeat_far_edge else 2  # the first padded row is a copy of this one, counted from the end
    out_height = (height + top + bottom - kernel) // stride + 1
    window: Tensor | None = None
    for out_row in range(0, out_height, rows):
        first = out_row * stride - top  # in rows of the source; those outside it are padding
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
            source.read_into(fresh[:, :, left : left + width])
            for column in range(left):
                fresh[:, :, column] = fresh[:, :, 2 * left - column]
            for column in range(right):
                fresh[:, :, left + width + column] = fresh[:, :, left + width - far - column]
        for row in range(first + shared, 0):
            window[:, row - first] = window[:, -row - first]
        for row in range(max(first + shared, height), first + count):
            window[:, row - first] = window[:, 2 * height - far - row - first]
        yield window
