"""What the passes over memory between convolutions cost: `scripts/bench passes`.

bf16 is emulated, so it runs on every processor: the convolutions are in float32, the passes are as they will be.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.engines import installed_style
from benchmarks.reporting import Row, collect, report
from serve_app.frames import Size

if TYPE_CHECKING:
    from torch import Tensor

    from serve_app.engine.passes import Passes


def run(options: argparse.Namespace) -> None:
    """CPU time of the sums and of the norms of one painting, by torch and compiled, alternating in one process."""
    report(options.out, "passes", collect(rows(options)))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each side, dtype and kind of passes."""
    import torch

    from serve_app.engine.checkpoints import load_generator
    from serve_app.engine.memory import strip_rows
    from serve_app.engine.passes import TorchPasses, choose_passes
    from serve_app.engine.streaming import StripGenerator

    torch.set_num_threads(options.threads)
    style = installed_style(options)
    by_torch, compiled = Timed(TorchPasses()), Timed(choose_passes("cpu", torch.bfloat16, torch.bfloat16))
    for side in options.sides:
        frames = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
        kinds = {("fp32", "torch"): by_torch, ("bf16", "torch"): by_torch, ("bf16", "compiled"): compiled}
        models = {}
        for (precision, kind), timed in kinds.items():
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            models[precision, kind] = StripGenerator(
                load_generator(style), style.resize, dtype, dtype, is_emulated=precision == "bf16", passes=timed
            )
        times: dict[tuple[str, str], list[list[float]]] = {key: [] for key in models}
        for _ in range(options.repeats + 1):
            for key, model in models.items():
                timed = kinds[key]
                timed.sums_s = timed.norms_s = 0
                model.paint(frames, strip_rows(Size(side, side)))
                times[key].append([1000 * timed.sums_s, 1000 * timed.norms_s])
        for (precision, kind), measured in times.items():
            sums, norms = zip(*measured[1:], strict=True)  # the first painting loads kernels and touches memory
            yield {
                "side": side,
                "precision": precision,
                "passes": kind,
                "sums, CPU-ms": statistics.median(sums),
                "norms, CPU-ms": statistics.median(norms),
                "both": statistics.median(map(sum, measured[1:])),
                "spread": f"{min(map(sum, measured[1:])):.1f} to {max(map(sum, measured[1:])):.1f}",
            }


class Timed:
    """Passes that sum up how long they take, in CPU-seconds of the process."""

    def __init__(self, passes: "Passes") -> None:
        self._passes = passes
        self.sums_s = self.norms_s = 0.0

    def sums(self, plane: "Tensor") -> "Tensor":
        """Sums, timed."""
        start = time.process_time()
        sums = self._passes.sums(plane)
        self.sums_s += time.process_time() - start
        return sums

    def normalise(self, plane: "Tensor", rows: "Tensor", scale: "Tensor", shift: "Tensor", slope: float) -> None:
        """Normalises, timed."""
        start = time.process_time()
        self._passes.normalise(plane, rows, scale, shift, slope)
        self.norms_s += time.process_time() - start
