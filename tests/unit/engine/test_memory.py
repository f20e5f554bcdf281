"""The memory model: consistent with the generator, and never below what painting takes."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shared import ROOT
from torch import nn

from serve_app.engine.generator import Generator
from serve_app.engine.memory import (
    LAYERS,
    LEAST_ROWS,
    OVERHEAD,
    Room,
    fitting_rows,
    largest_side,
    planned_bytes,
    predict_peak_bytes,
    strip_rows,
)
from serve_app.frames import Precision

MIB = 2**20


def test_layers_are_the_generators_convolutions_in_order() -> None:
    convolutions = [module for module in Generator().modules() if isinstance(module, nn.Conv2d)]
    table = [(layer.read or 3, layer.made, layer.kernel, layer.stride) for layer in LAYERS]
    assert table == [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions]


@pytest.mark.parametrize(
    ("height", "width", "batch", "rows"),
    [(1024, 1024, 1, 16), (1024, 1024, 2, 16), (3072, 4096, 1, 16), (512, 512, 1, 32), (64, 64, 1, 64), (9, 9, 1, 12)],
)
def test_strips_hold_a_fixed_number_of_bytes(height: int, width: int, batch: int, rows: int) -> None:
    assert strip_rows(height, width, batch) == rows


def test_prediction_grows_with_the_picture_the_batch_and_the_precision() -> None:
    base = predict_peak_bytes(512, 512, 1, "fp32")
    assert predict_peak_bytes(512, 640, 1, "fp32") > base
    assert predict_peak_bytes(640, 512, 1, "fp32") > base
    assert predict_peak_bytes(512, 512, 2, "fp32") > base
    assert predict_peak_bytes(512, 512, 1, "fp16") < base


def test_lower_strips_are_taken_where_the_budget_asks_for_them() -> None:
    tall = planned_bytes(512, 512, 1, "fp32")
    low = planned_bytes(512, 512, 1, "fp32", LEAST_ROWS)
    assert fitting_rows(512, 512, 1, "fp32", tall, "tcmalloc") == strip_rows(512, 512, 1)
    rows = fitting_rows(512, 512, 1, "fp32", tall - 1, "tcmalloc")
    assert rows is not None
    assert LEAST_ROWS <= rows < strip_rows(512, 512, 1)
    assert fitting_rows(512, 512, 1, "fp32", low, "tcmalloc") == LEAST_ROWS
    assert fitting_rows(512, 512, 1, "fp32", low - 1, "tcmalloc") is None


@pytest.mark.parametrize("size", [(3072, 4096), (4096, 3072), (2000, 2000), (600, 4000)])
def test_largest_side_fits_and_the_next_one_does_not(size: tuple[int, int]) -> None:
    budget = 200 * MIB
    side = largest_side(size, "fp32", budget, "tcmalloc")

    def fits(side: int) -> bool:
        height, width = (round(edge * side / max(size)) for edge in size)
        return fitting_rows(height, width, 1, "fp32", budget, "tcmalloc") is not None

    assert side % 4 == 0
    assert fits(side)
    assert not fits(side + 8)


def test_nothing_fits_no_memory() -> None:
    assert largest_side((64, 64), "fp32", 1, "tcmalloc") == 0


def measured_growth(height: int, width: int, batch: int, precision: Precision) -> tuple[int, str]:
    """Peak bytes over idle of a fresh process that paints once, and the allocator that it ran on."""
    script = f"""
        from pathlib import Path
        import torch
        from serve_app.engine.allocator import running_allocator
        from serve_app.engine.generator import Generator
        from serve_app.engine.memory import strip_rows
        from serve_app.engine.streaming import StripGenerator

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
        strips.paint(frames, strip_rows({height}, {width}, {batch}))
        print(status("VmHWM") - idle, running_allocator())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    growth, allocator = run.stdout.split()
    return int(growth), allocator


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
@pytest.mark.parametrize(("height", "width", "batch", "precision"), [(768, 512, 1, "fp32"), (512, 512, 2, "fp16")])
def test_prediction_is_never_below_what_painting_takes(
    height: int, width: int, batch: int, precision: Precision
) -> None:
    measured, allocator = measured_growth(height, width, batch, precision)
    predicted = predict_peak_bytes(height, width, batch, precision, allocator=allocator)
    assert measured <= predicted
    assert predicted <= 1.5 * measured + 16 * MIB  # and not a wild guess either


def test_every_allocator_has_its_overhead() -> None:
    assert set(OVERHEAD) == {"cuda", "tcmalloc", "jemalloc", "mimalloc", "system"}


def enter(room: Room, count: int, inside: list[int], leave: threading.Event) -> threading.Thread:
    def work() -> None:
        with room.taken(count):
            inside.append(count)
            leave.wait(10)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def becomes(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_room_lets_in_what_fits_and_the_rest_in_order() -> None:
    room = Room(100)
    inside: list[int] = []
    doors = [threading.Event() for _ in range(4)]
    threads = []
    for count, door in zip((60, 40, 50, 10), doors, strict=True):
        threads.append(enter(room, count, inside, door))
        time.sleep(0.05)
    assert inside == [60, 40]  # 10 would fit no sooner than 50, which came first
    doors[1].set()
    time.sleep(0.1)
    assert inside == [60, 40]
    doors[0].set()
    assert becomes(lambda: len(inside) == 4)
    assert inside[2:] == [50, 10]
    for thread, door in zip(threads, doors, strict=True):
        door.set()
        thread.join(5)
    with room.taken(100):
        pass


def test_room_lets_in_alone_what_is_larger_than_it() -> None:
    with Room(10).taken(1000):
        pass


def test_room_is_given_back_by_work_that_fails() -> None:
    room = Room(10)
    with pytest.raises(ValueError, match="broken"), room.taken(10):
        raise ValueError("broken")
    with room.taken(10):
        pass
