"""The passes over memory between convolutions: by torch on any device, or compiled for a CPU where numba is installed.

Between two convolutions every value is summed, normalised, activated, converted and copied. These steps cost little
arithmetic; what they cost is reading and writing memory. torch makes a pass over memory for each of them, a compiled
loop one for all.
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

BYTES = 2  # of a value in bfloat16
VALUES_A_THREAD = 1 << 17  # fewer take less time than another thread takes to start on them


class Passes(Protocol):
    """The steps between convolutions. Images are (N, rows, W, C)."""

    def sums(self, plane: Tensor) -> Tensor:
        """Returns each image's sum of values and sum of squares, (2, N) float64."""

    def normalise(self, plane: Tensor, rows: Tensor, scale: Tensor, shift: Tensor, slope: float) -> None:
        """Writes LeakyReLU(plane * scale + shift) into `rows`, rounded once if these have 16 bits.

        Args:
            plane: float32, bfloat16 or float16.
            rows: of the same shape, perhaps with other strides; they do not overlap the plane.
            scale: (N, 1, 1, C) float32.
            shift: the same.
            slope: for negative values, at most 1; 1 leaves them as they are.
        """


class TorchPasses:
    """The passes as operations of torch."""

    def sums(self, plane: Tensor) -> Tensor:
        """Sums within a plane in float32: as exact, with float64 between planes, as float64 throughout."""
        flat = plane.flatten(1)
        return torch.stack([flat.sum(1, dtype=torch.float32), sums_of_squares(flat)]).double()

    def normalise(self, plane: Tensor, rows: Tensor, scale: Tensor, shift: Tensor, slope: float) -> None:
        """Makes two passes in float32, four in 16 bits."""
        if rows.dtype == torch.float32:
            values = plane if plane.dtype == rows.dtype else rows.copy_(plane)
            torch.addcmul(shift, values, scale, out=rows)
            if slope != 1:
                F.leaky_relu_(rows, slope)
        else:
            rows.copy_(F.leaky_relu_(torch.addcmul(shift, plane.float(), scale), slope))


class CompiledPasses:
    """The passes as compiled loops on a CPU, for layers in bfloat16: one pass each, on as many threads as torch has.

    Args:
        kernels: the module `engine.kernels`, which needs numba.
    """

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        # They wait without using the CPU, unlike the threads of OpenMP, of which torch has a team already.
        self._threads = ThreadPoolExecutor(max(os.cpu_count() or 1, 2) - 1, thread_name_prefix="pass")

    def sums(self, plane: Tensor) -> Tensor:
        """Sums blocks in float32 and the blocks' sums in float64."""
        images, size = plane.shape[0], plane[0].numel()
        parts = count_parts(size, plane.numel())
        sums = torch.empty(parts, images, 2, dtype=torch.float64)
        plane = plane.contiguous()
        source, target = plane.data_ptr(), sums.data_ptr()

        def run(part: int, first: int, end: int) -> None:
            for image in range(images):
                at = source + BYTES * (image * size + first)
                self._kernels.sums(at, target + 16 * (part * images + image), end - first)

        self._split(parts, size, run)
        return sums.sum(0).t()

    def normalise(self, plane: Tensor, rows: Tensor, scale: Tensor, shift: Tensor, slope: float) -> None:
        """Writes bfloat16 or float32."""
        kernel = self._kernels.normalise_to_float32 if rows.dtype == torch.float32 else self._kernels.normalise
        images, height, width, channels = plane.shape
        sn, sy, sx, _ = plane.stride()
        tn, ty, tx, _ = rows.stride()
        source, target = plane.data_ptr(), rows.data_ptr()
        scales, shifts = scale.contiguous(), shift.contiguous()

        def run(_part: int, first: int, end: int) -> None:
            kernel(
                source + BYTES * first * sy,
                target + rows.element_size() * first * ty,
                scales.data_ptr(),
                shifts.data_ptr(),
                *(images, end - first, width, channels, sn, sy, sx, tn, ty, tx),
                slope,
            )

        self._split(count_parts(height, plane.numel()), height, run)

    def _split(self, parts: int, count: int, run: Callable[[int, int, int], None]) -> None:
        """Calls `run` with each part's number, and its first item and its end, side by side."""
        if parts == 1:
            run(0, 0, count)
            return
        bounds = [count * part // parts for part in range(parts + 1)]
        others = [self._threads.submit(run, part, *bounds[part : part + 2]) for part in range(1, parts)]
        run(0, bounds[0], bounds[1])
        for other in others:
            other.result()


def count_parts(items: int, values: int) -> int:
    """Returns how many threads a pass over so many values is worth, when it can be divided between so many items."""
    return max(min(torch.get_num_threads(), items, values // VALUES_A_THREAD), 1)


@functools.cache
def choose_passes(device_type: str, storage: torch.dtype, compute: torch.dtype) -> Passes:
    """Returns the passes that are fastest between convolutions in one dtype and layers stored in another.

    In float32, compiled passes would save some 4 % of a painting for the 110 MB that numba takes in memory. So they are
    for bfloat16, in which torch's take four times as long.
    """
    if device_type == "cpu" and storage == compute == torch.bfloat16:
        try:
            return CompiledPasses(importlib.import_module("serve_app.engine.kernels"))
        except ImportError as error:  # numba is missing, or does not know this NumPy yet
            logger.info("painting in bf16 is slower than it could be, since numba cannot be used: %s", error)
    return TorchPasses()


def sums_of_squares(flat: Tensor) -> Tensor:
    """Returns the sums of squares of (N, M), as (N,) in float32, without a temporary tensor."""
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32)
    return norm.square_()
