"""How many bytes painting takes, predicted before it begins. No torch.

The layers run one after another, and each row is freed once it has been read (`streaming`). So the peak is reached in
one layer: the part of its input that is still unread, the part of its output that is already made, the residual that
waits to be added, and the strips it is working on.
"""

from dataclasses import dataclass

from serve_app.frames import MIN_SIDE, Precision, Size
from serve_app.settings import MIB

STRIP_BYTES = 4 * MIB  # of 64 float32 channels at full size: fits a CPU's cache, yet calls cost little beside the work
MIN_ROWS, MAX_ROWS = 16, 64  # of a strip at full size; a strip at quarter size has half as many
LEAST_ROWS = 4  # where nothing taller fits the budget; painting then takes longer

STORED_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of a value between two layers
WORKING_BYTES = 4  # of a value in a strip: 16-bit values are normalised, and mostly convolved, in float32

# The part that an allocator holds on top of what is in use: holes, rounding, oneDNN's scratch memory. Measured by
# `scripts/bench sizes`.
OVERHEAD_BYTES = 8 * MIB
ALLOCATOR_OVERHEAD = {"cuda": 0.1, "tcmalloc": 0.08, "jemalloc": 0.28, "mimalloc": 0.35, "system": 0.6}
# On top of that where several threads paint at once: memory that one frees lies between memory that others still use.
# An upper bound, since it differs from run to run. Measured by `scripts/bench slots`.
SHARED_OVERHEAD = 0.19
# On top of that for each slot, once a process has painted other sizes: the code that oneDNN compiled for them, and free
# memory in pieces of the wrong size. Counted in advance, so that a budget holds for good. Measured by
# `scripts/bench mixed`.
MIXED_SIZES_BYTES = 32 * MIB


@dataclass(frozen=True)
class LayerShape:
    """A layer as the memory model sees it.

    Attributes:
        in_channels: that it reads.
        in_scale: 1, 2 or 4: it reads at full, half or quarter size.
        out_channels: that it makes.
        out_scale: 1, 2 or 4, as `in_scale`.
        kernel: height and width of the kernel.
        stride: of the convolution.
        residual_before: channels of residual, at the scale it reads, that are held when it begins.
        residual_after: channels of residual that are still held when it ends.
    """

    in_channels: int
    in_scale: int
    out_channels: int
    out_scale: int
    kernel: int = 1
    stride: int = 1
    residual_before: int = 0
    residual_after: int = 0

    @property
    def is_fast(self) -> bool:
        """Whether `convolution` uses a fast algorithm, which copies parts of the window and sums of them."""
        is_winograd = self.in_channels >= 128 and self.kernel == 3 and self.stride == 1
        return is_winograd or (self.in_channels > 3 and self.kernel == 7)


FIRST_INVERTED = [
    LayerShape(128, 4, 256, 4),
    LayerShape(256, 4, 256, 4, kernel=3),
    LayerShape(256, 4, 256, 4),
]
INVERTED = [
    LayerShape(256, 4, 512, 4, residual_before=256, residual_after=256),
    LayerShape(512, 4, 512, 4, kernel=3, residual_before=256, residual_after=256),
    LayerShape(512, 4, 256, 4, residual_before=256, residual_after=256),
]
LAYERS = [
    LayerShape(0, 1, 32, 1, kernel=7),  # reads the uint8 frames, which are counted separately
    LayerShape(32, 1, 64, 2, kernel=3, stride=2),
    LayerShape(64, 2, 64, 2, kernel=3),
    LayerShape(64, 2, 128, 4, kernel=3, stride=2),
    LayerShape(128, 4, 128, 4, kernel=3),
    LayerShape(128, 4, 128, 4, kernel=3),
    *FIRST_INVERTED,
    *INVERTED,
    *INVERTED,
    *INVERTED,
    LayerShape(256, 4, 128, 4, kernel=3, residual_before=256),
    LayerShape(128, 4, 128, 2, kernel=3),
    LayerShape(128, 2, 128, 2, kernel=3),
    LayerShape(128, 2, 64, 1, kernel=3),
    LayerShape(64, 1, 64, 1, kernel=3),
    LayerShape(64, 1, 32, 1, kernel=7),
    LayerShape(32, 1, 3, 1),
]


@dataclass(frozen=True)
class MemoryModel:
    """Predicts the bytes that painting adds to a process, for one precision on one allocator.

    The predictions are upper bounds. They include the frames that go in and come out. In every method, `size` is the
    size of each image, `batch` the number of images in one tensor, `rows` the height of a strip at full size, and
    `slots` the number of threads that each paint such a batch at the same time.

    Attributes:
        precision: fp32, fp16 or bf16; in 16 bits, values between layers take half the memory.
        allocator: that the process runs on, or `cuda`; a key of `ALLOCATOR_OVERHEAD`.
    """

    precision: Precision
    allocator: str = "tcmalloc"

    def peak_bytes(self, size: Size, batch: int = 1, *, rows: int | None = None, slots: int = 1) -> int:
        """Returns the bytes that painting adds, at its peak, to a process that has painted nothing before.

        Args:
            size: of each image.
            batch: images in one tensor.
            rows: of a strip; default `strip_rows`.
            slots: threads that each paint such a batch at the same time.
        """
        rows = rows or strip_rows(size, batch)
        return slots * self._painting_bytes(size, batch, rows, slots > 1) + OVERHEAD_BYTES

    def planned_bytes(self, size: Size, batch: int = 1, *, rows: int | None = None, slots: int = 1) -> int:
        """Returns `peak_bytes` for a process that has painted any number of other sizes; budgets are planned with it.

        Args:
            size: of each image.
            batch: images in one tensor.
            rows: of a strip; default `strip_rows`.
            slots: threads that each paint such a batch at the same time.
        """
        return self.peak_bytes(size, batch, rows=rows, slots=slots) + slots * MIXED_SIZES_BYTES

    def slot_bytes(self, size: Size, batch: int, rows: int, is_shared: bool = False) -> int:
        """Returns one slot's part of `planned_bytes`: all but the fixed overhead of the process.

        Args:
            size: of each image.
            batch: images in one tensor.
            rows: of a strip.
            is_shared: whether other slots paint at the same time.
        """
        return self._painting_bytes(size, batch, rows, is_shared) + MIXED_SIZES_BYTES

    def tallest_rows(
        self, size: Size, batch: int, budget_bytes: int, *, slots: int = 1, reserved_bytes: int = 0
    ) -> int | None:
        """Returns the rows of the tallest strips that fit the budget; None if not even the lowest ones fit.

        Args:
            size: of each image.
            batch: images in one tensor.
            budget_bytes: for everything that the process paints.
            slots: more of them that each paint such a batch at the same time.
            reserved_bytes: the part of the budget that slots already hold.
        """
        is_shared = slots > 1 or reserved_bytes > 0
        free_bytes = budget_bytes - reserved_bytes - OVERHEAD_BYTES
        rows = strip_rows(size, batch)
        while slots * self.slot_bytes(size, batch, rows, is_shared) > free_bytes:
            if rows == LEAST_ROWS:
                return None
            rows = max(rows // 8 * 4, LEAST_ROWS)
        return rows

    def largest_side(self, size: Size, budget_bytes: int) -> int:
        """Returns the longer side, in pixels, of the largest image of this shape that fits the budget.

        The side is a multiple of 4, and 0 if no image fits.
        """

        def fits(side: int) -> bool:
            scaled = Size(*(max(round(edge * side / size.longer_side), MIN_SIDE) for edge in size))
            return self.tallest_rows(scaled, 1, budget_bytes) is not None

        low, high = 0, size.longer_side
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low // 4 * 4

    def _painting_bytes(self, size: Size, batch: int, rows: int, is_shared: bool) -> int:
        """Returns one slot's part of `peak_bytes`: all but the fixed overhead of the process."""
        peak = max(layer_bytes(layer, size, rows, STORED_BYTES[self.precision], batch > 1) for layer in LAYERS)
        frames = 2 * 3 * size.pixels
        overhead = (1 + ALLOCATOR_OVERHEAD[self.allocator]) * (1 + SHARED_OVERHEAD if is_shared else 1)
        return int(batch * (peak + frames) * overhead)


def strip_rows(size: Size, batch: int = 1) -> int:
    """Returns the usual rows of a strip at full size: a multiple of 4, as many as fit in `STRIP_BYTES`."""
    rows = STRIP_BYTES // (64 * WORKING_BYTES * size.width * batch)
    return min(max(rows, MIN_ROWS), MAX_ROWS, size.height + 3) // 4 * 4


def layer_bytes(layer: LayerShape, size: Size, rows: int, stored_bytes: int, is_batch: bool) -> int:
    """Returns the peak bytes for one image while one layer reads its input and writes its output.

    Args:
        layer: that runs.
        size: of the image.
        rows: of a strip at full size.
        stored_bytes: of a value between two layers.
        is_batch: whether other images are in the same tensor.
    """
    in_width, out_width = -(-size.width // layer.in_scale), -(-size.width // layer.out_scale)
    in_pixels = in_width * -(-size.height // layer.in_scale)
    out_pixels = out_width * -(-size.height // layer.out_scale)
    before = in_pixels * (layer.in_channels + layer.residual_before) * stored_bytes
    after = out_pixels * layer.out_channels * stored_bytes + in_pixels * layer.residual_after * stored_bytes
    out_rows = rows if layer.out_scale < 4 else rows // 2
    in_rows = out_rows * layer.stride if layer.out_scale >= layer.in_scale else out_rows // 2
    window = (in_rows + layer.kernel) * (in_width + layer.kernel) * max(layer.in_channels, 3) * WORKING_BYTES
    values = out_rows * out_width * layer.out_channels
    chunk = values * (stored_bytes + (WORKING_BYTES if stored_bytes < WORKING_BYTES else 0))
    unread = in_rows * in_width * layer.in_channels * stored_bytes
    # A fast algorithm copies the window by phases, and sums into one more plane. The rows of a batch are not contiguous
    # in memory, so they are copied once more.
    fast = (1 + is_batch) * window + values * WORKING_BYTES // 2 if layer.is_fast else 0
    return max(before, after) + window + chunk + unread + fast
