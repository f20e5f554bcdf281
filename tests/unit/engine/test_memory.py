"""The memory model: consistent with the generator, and never below what painting takes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shared import ROOT
from torch import nn

from serve_app.engine.generator import Generator
from serve_app.engine.memory import (
    ALLOCATOR_OVERHEAD,
    LAYERS,
    LEAST_ROWS,
    MemoryModel,
    strip_rows,
)
from serve_app.frames import Precision, Size

MIB = 2**20
FP32 = MemoryModel("fp32")


def test_layers_are_the_generators_convolutions_in_order() -> None:
    convolutions = [module for module in Generator().modules() if isinstance(module, nn.Conv2d)]
    table = [(layer.in_channels or 3, layer.out_channels, layer.kernel, layer.stride) for layer in LAYERS]
    assert table == [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions]


@pytest.mark.parametrize(
    ("height", "width", "batch", "rows"),
    [(1024, 1024, 1, 16), (1024, 1024, 2, 16), (3072, 4096, 1, 16), (512, 512, 1, 32), (64, 64, 1, 64), (9, 9, 1, 12)],
)
def test_strips_hold_a_fixed_number_of_bytes(height: int, width: int, batch: int, rows: int) -> None:
    assert strip_rows(Size(height, width), batch) == rows


def test_prediction_grows_with_the_image_the_batch_and_the_precision() -> None:
    base = FP32.peak_bytes(Size(512, 512))
    assert FP32.peak_bytes(Size(512, 640)) > base
    assert FP32.peak_bytes(Size(640, 512)) > base
    assert FP32.peak_bytes(Size(512, 512), batch=2) > base
    assert MemoryModel("fp16").peak_bytes(Size(512, 512)) < base


def test_planned_bytes_are_those_of_all_slots_and_the_overhead_of_the_process() -> None:
    size = Size(512, 512)
    alone, shared = (FP32.slot_bytes(size, 2, 16, is_shared) for is_shared in (False, True))
    assert shared > alone
    assert FP32.planned_bytes(size, 2, rows=16) == alone + 8 * MIB
    assert FP32.planned_bytes(size, 2, rows=16, slots=3) == 3 * shared + 8 * MIB


def test_lower_strips_are_used_where_the_budget_requires_them() -> None:
    size = Size(512, 512)
    tall = FP32.planned_bytes(size)
    low = FP32.planned_bytes(size, rows=LEAST_ROWS)
    assert FP32.tallest_rows(size, 1, tall) == strip_rows(size)
    rows = FP32.tallest_rows(size, 1, tall - 1)
    assert rows is not None
    assert LEAST_ROWS <= rows < strip_rows(size)
    assert FP32.tallest_rows(size, 1, low) == LEAST_ROWS
    assert FP32.tallest_rows(size, 1, low - 1) is None


@pytest.mark.parametrize("size", [Size(3072, 4096), Size(4096, 3072), Size(2000, 2000), Size(600, 4000)])
def test_largest_side_fits_and_the_next_one_does_not(size: Size) -> None:
    budget = 200 * MIB
    side = FP32.largest_side(size, budget)

    def fits(side: int) -> bool:
        scaled = Size(*(round(edge * side / size.longer_side) for edge in size))
        return FP32.tallest_rows(scaled, 1, budget) is not None

    assert side % 4 == 0
    assert fits(side)
    assert not fits(side + 8)


def test_nothing_fits_no_memory() -> None:
    assert FP32.largest_side(Size(64, 64), 1) == 0


def measured_growth(height: int, width: int, batch: int, precision: Precision) -> tuple[int, str]:
    """Returns the peak bytes over idle of a fresh process that paints once, and the allocator that it runs on."""
    script = f"""
        from pathlib import Path
        import torch
        from serve_app.engine.allocator import running_allocator
        from serve_app.engine.generator import Generator
        from serve_app.engine.memory import strip_rows
        from serve_app.engine.streaming import StripGenerator
        from serve_app.frames import Size

        def status(key):
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
            return int(line.split()[1]) * 1024

        torch.set_num_threads(2)
        storage = {{"fp32": torch.float32, "fp16": torch.float16}}[{precision!r}]
        strips = StripGenerator(Generator("tf").eval(), "tf", storage)
        strips.paint(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), 64)
        idle = status("VmRSS")
        frames = torch.randint(0, 256, ({batch}, {height}, {width}, 3), dtype=torch.uint8)
        Path("/proc/self/clear_refs").write_text("5")
        strips.paint(frames, strip_rows(Size({height}, {width}), {batch}))
        print(status("VmHWM") - idle, running_allocator())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    growth, allocator = run.stdout.split()
    return int(growth), allocator


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a process's peak")
@pytest.mark.parametrize(("height", "width", "batch", "precision"), [(768, 512, 1, "fp32"), (512, 512, 2, "fp16")])
def test_prediction_is_never_below_what_painting_takes(
    height: int, width: int, batch: int, precision: Precision
) -> None:
    measured, allocator = measured_growth(height, width, batch, precision)
    predicted = MemoryModel(precision, allocator).peak_bytes(Size(height, width), batch)
    assert measured <= predicted
    assert predicted <= 1.5 * measured + 16 * MIB  # and not a wild guess either


def test_every_allocator_has_its_overhead() -> None:
    assert set(ALLOCATOR_OVERHEAD) == {"cuda", "tcmalloc", "jemalloc", "mimalloc", "system"}
