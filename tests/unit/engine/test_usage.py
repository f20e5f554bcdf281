"""What painting takes, measured beside what was predicted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.engine.memory import OVERHEAD_BYTES, MemoryModel
from serve_app.engine.slots import WorkerSlots
from serve_app.engine.stylist import Stylist
from serve_app.engine.usage import MemoryUse
from serve_app.frames import Size
from serve_app.settings import MIB, Settings
from serve_app.styles.catalogue import InstalledStyle

CPU = torch.device("cpu")


def slots_of(threads: int = 2) -> WorkerSlots:
    return WorkerSlots(threads, MemoryModel("fp32"), 10**12, 256 * 256)


class Process:
    """A process as Linux describes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "status"

    def has(self, resident: int, highest: int) -> None:
        """Says how many MiB it has, and had at most."""
        lines = [f"Name:\tpython\nVmPeak:\t 999 kB\nVmHWM:\t{1024 * highest:8} kB", f"VmRSS:\t{1024 * resident:8} kB\n"]
        self.path.write_text("\n".join(lines))


@pytest.fixture
def process(tmp_path: Path) -> Process:
    made = Process(tmp_path)
    made.has(resident=600, highest=700)  # loading took more
    return made


def test_peak_is_what_a_batch_adds_to_the_idle_process(process: Process) -> None:
    use = MemoryUse(CPU, slots_of(), process.path)
    assert use.peak_bytes == 0
    process.has(resident=650, highest=700)  # loading took as much, so that only what is left tells of painting
    use.note_end()
    assert use.peak_bytes == 50 * MIB
    process.has(resident=610, highest=900)
    use.note_end()
    assert use.peak_bytes == 300 * MIB
    process.has(resident=640, highest=900)
    use.note_end()
    assert use.peak_bytes == 300 * MIB


def test_prediction_is_of_all_that_is_painted_at_a_time(process: Process) -> None:
    slots = slots_of()
    use = MemoryUse(CPU, slots, process.path)
    first = slots.reserve(Size(512, 512), 1, 2, 2)
    use.note_begin()
    second = slots.reserve(Size(512, 512), 1, 1, 1)
    use.note_begin()
    assert first is not None
    assert second is not None
    both = first.peak_bytes + second.peak_bytes + OVERHEAD_BYTES
    assert use.predicted_bytes == both
    slots.release(first)
    use.note_begin()
    assert use.predicted_bytes == both
    assert slots.reserved_bytes == second.peak_bytes


def test_a_system_that_is_not_linux_measures_nothing(tmp_path: Path) -> None:
    use = MemoryUse(CPU, slots_of(), tmp_path / "nothing")
    use.note_end()
    assert (use.peak_bytes, use.card()) == (0, (0, 0, 0))


def test_a_stylist_measures_each_batch_but_not_its_warm_up(seeded_style: InstalledStyle) -> None:
    threads = torch.get_num_threads()
    stylist = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=1))
    stylist.warm_up()
    assert stylist.memory.predicted_bytes == 0
    size = Size(96, 128)
    slot = stylist.reserve("seeded", size, 1, 1, 1)
    assert slot is not None
    stylist.start(slot, "seeded", [np.zeros((*size, 3), np.uint8)]).result()
    assert stylist.memory.predicted_bytes == slot.peak_bytes + OVERHEAD_BYTES
    assert stylist.memory.peak_bytes >= 0
    stylist.close()
    torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_cuda_the_allocator_tells() -> None:
    device = torch.device("cuda")
    kept = torch.zeros(MIB, device=device)
    use = MemoryUse(device, slots_of(1))
    torch.zeros(8 * MIB, device=device)
    assert use.peak_bytes == 32 * MIB
    allocated, reserved, share = use.card()
    assert kept.nbytes <= allocated <= reserved <= share
