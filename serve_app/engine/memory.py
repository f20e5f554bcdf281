"""How much memory a painting takes, known before it is begun.

The layers run one after another and each row is released when it has been read (`streaming`), so the peak is the one
layer where most stands: what is left of its input, what is made of its output, the residual that waits, and its strips.
"""

from dataclasses import dataclass

from serve_app.frames import Precision, Size
from serve_app.settings import MIB, MIN_SIDE

STRIP_BYTES = 4 * MIB  # of 64 float32 channels at full size: stays in a CPU's cache, and calls cost nothing beside it
MIN_ROWS, MAX_ROWS = 16, 64  # of a strip at full size; halved on the way to a quarter
LEAST_ROWS = 4  # where the budget asks for them, at the price of time

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
WORKING_BYTES = 4  # a value in a strip: 16-bit pictures are normalised, and mostly convolved, in float32

# What allocators keep beside what is in use: holes, rounding, oneDNN's scratch. Measured by `scripts/bench sizes`.
OVERHEAD_BYTES = 8 * MIB
OVERHEAD = {"cuda": 0.1, "tcmalloc": 0.08, "jemalloc": 0.28, "mimalloc": 0.35, "system": 0.6}
# More, where threads paint side by side: what one frees lies between what the others still use. A bound, since it
# differs from run to run; measured by `scripts/bench lanes`.
LANES_OVERHEAD = 0.19
# More for each lane of a process that has painted other sizes before: oneDNN's code for them, and memory that lies free
# in pieces that do not suit. Planned with, so that a budget holds for good; measured by `scripts/bench mixed`.
MIXED_BYTES = 32 * MIB


@dataclass(frozen=True)
class LayerSize:
    """A layer as the memory model sees it: channels and scale (1 full, 2 half, 4 quarter size) of both sides."""

    read: int
    read_scale: int
    made: int
    made_scale: int
    kernel: int = 1
    stride: int = 1
    waiting_before: int = 0  # channels of residual that stand when it begins, at the scale it reads
    waiting_after: int = 0

    @property
    def is_fast(self) -> bool:
        """Whether rows are made in phases from sums and copies of the window (`convolution`)."""
        is_winograd = self.read >= 128 and self.kernel == 3 and self.stride == 1
        return is_winograd or (self.read > 3 and self.kernel == 7)


FIRST_INVERTED = [
    LayerSize(128, 4, 256, 4),
    LayerSize(256, 4, 256, 4, kernel=3),
    LayerSize(256, 4, 256, 4),
]
INVERTED = [
    LayerSize(256, 4, 512, 4, waiting_before=256, waiting_after=256),
    LayerSize(512, 4, 512, 4, kernel=3, waiting_before=256, waiting_after=256),
    LayerSize(512, 4, 256, 4, waiting_before=256, waiting_after=256),
]
LAYERS = [
    LayerSize(0, 1, 32, 1, kernel=7),  # reads the uint8 frames, which are counted by themselves
    LayerSize(32, 1, 64, 2, kernel=3, stride=2),
    LayerSize(64, 2, 64, 2, kernel=3),
    LayerSize(64, 2, 128, 4, kernel=3, stride=2),
    LayerSize(128, 4, 128, 4, kernel=3),
    LayerSize(128, 4, 128, 4, kernel=3),
    *FIRST_INVERTED,
    *INVERTED,
    *INVERTED,
    *INVERTED,
    LayerSize(256, 4, 128, 4, kernel=3, waiting_before=256),
    LayerSize(128, 4, 128, 2, kernel=3),
    LayerSize(128, 2, 128, 2, kernel=3),
    LayerSize(128, 2, 64, 1, kernel=3),
    LayerSize(64, 1, 64, 1, kernel=3),
    LayerSize(64, 1, 32, 1, kernel=7),
    LayerSize(32, 1, 3, 1),
]


def strip_rows(height: int, width: int, batch: int) -> int:
    """Rows of a strip at full size: a multiple of 4, as many as `STRIP_BYTES` hold."""
    rows = STRIP_BYTES // (64 * WORKING_BYTES * width * batch)
    return min(max(rows, MIN_ROWS), MAX_ROWS, height + 3) // 4 * 4


def predict_peak_bytes(
    height: int,
    width: int,
    batch: int,
    precision: Precision,
    rows: int | None = None,
    allocator: str = "tcmalloc",
    lanes: int = 1,
) -> int:
    """What painting adds to a fresh process at its peak, frames in and out included: never less than will be measured.

    Args:
        height: pixels of each picture.
        width: pixels.
        batch: pictures painted at once.
        precision: fp32, or 16 bits between layers.
        rows: of a strip; default `strip_rows`.
        allocator: that the process runs on.
        lanes: threads that each paint such a batch at the same time.
    """
    rows = rows or strip_rows(height, width, batch)
    return lanes * painting_bytes(height, width, batch, precision, rows, allocator, lanes > 1) + OVERHEAD_BYTES


def planned_bytes(
    height: int,
    width: int,
    batch: int,
    precision: Precision,
    rows: int | None = None,
    allocator: str = "tcmalloc",
    lanes: int = 1,
) -> int:
    """The same of a process that has painted any number of other sizes before: what a budget is planned with."""
    return predict_peak_bytes(height, width, batch, precision, rows, allocator, lanes) + lanes * MIXED_BYTES


def painting_bytes(
    height: int, width: int, batch: int, precision: Precision, rows: int, allocator: str, is_beside: bool = False
) -> int:
    """What `predict_peak_bytes` has of one lane, without `OVERHEAD_BYTES`; `is_beside` where others paint meanwhile."""
    peak = max(layer_bytes(layer, height, width, rows, BYTES[precision], batch > 1) for layer in LAYERS)
    frames = 2 * 3 * height * width
    overhead = (1 + OVERHEAD[allocator]) * (1 + LANES_OVERHEAD if is_beside else 1)
    return int(batch * (peak + frames) * overhead)


def lane_bytes(
    height: int, width: int, batch: int, precision: Precision, rows: int, allocator: str, is_beside: bool = False
) -> int:
    """What `planned_bytes` has of one lane, without `OVERHEAD_BYTES`."""
    return painting_bytes(height, width, batch, precision, rows, allocator, is_beside) + MIXED_BYTES


def fitting_rows(
    height: int,
    width: int,
    batch: int,
    precision: Precision,
    memory_bytes: int,
    allocator: str,
    lanes: int = 1,
    taken_bytes: int = 0,
) -> int | None:
    """Rows of the tallest strips that keep `planned_bytes` within the budget; None where the lowest do not.

    Args:
        taken_bytes: of the budget, by other lanes.
    """
    is_beside = lanes > 1 or taken_bytes > 0
    free_bytes = memory_bytes - taken_bytes - OVERHEAD_BYTES
    rows = strip_rows(height, width, batch)
    while lanes * lane_bytes(height, width, batch, precision, rows, allocator, is_beside) > free_bytes:
        if rows == LEAST_ROWS:
            return None
        rows = max(rows // 8 * 4, LEAST_ROWS)
    return rows


def largest_side(size: Size, precision: Precision, memory_bytes: int, allocator: str) -> int:
    """The longer side of the largest picture of this shape that fits the budget; 0 where none does."""

    def fits(side: int) -> bool:
        height, width = (max(round(edge * side / max(size)), MIN_SIDE) for edge in size)
        return fitting_rows(height, width, 1, precision, memory_bytes, allocator) is not None

    low, high = 0, max(size)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low // 4 * 4


def layer_bytes(layer: LayerSize, height: int, width: int, rows: int, stored: int, is_batch: bool) -> int:
    """Of one picture, while one layer reads and writes."""
    read_width, made_width = -(-width // layer.read_scale), -(-width // layer.made_scale)
    read_pixels = read_width * -(-height // layer.read_scale)
    made_pixels = made_width * -(-height // layer.made_scale)
    before = read_pixels * (layer.read + layer.waiting_before) * stored
    after = made_pixels * layer.made * stored + read_pixels * layer.waiting_after * stored
    made_rows = rows if layer.made_scale < 4 else rows // 2
    read_rows = made_rows * layer.stride if layer.made_scale >= layer.read_scale else made_rows // 2
    window = (read_rows + layer.kernel) * (read_width + layer.kernel) * max(layer.read, 3) * WORKING_BYTES
    made = made_rows * made_width * layer.made
    chunk = made * (stored + (WORKING_BYTES if stored < WORKING_BYTES else 0))
    unread = read_rows * read_width * layer.read * stored
    # Its planes by phase, and one that is added up; rows of a batch do not lie together, and are copied once more.
    fast = (1 + is_batch) * window + made * WORKING_BYTES // 2 if layer.is_fast else 0
    return max(before, after) + window + chunk + unread + fast
