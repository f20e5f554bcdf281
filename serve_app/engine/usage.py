"""How much memory painting has taken, beside what was predicted."""

import re
from pathlib import Path

import torch

from serve_app.engine.memory import OVERHEAD_BYTES
from serve_app.engine.slots import WorkerSlots

STATUS = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB$", re.MULTILINE)


class MemoryUse:
    """Measures what painting adds to an idle process, at its peak. Make it when the styles are loaded.

    On CUDA that is what torch's allocator has counted. On a CPU it is what Linux says of the whole process, so other
    work of the process counts too; elsewhere it is 0.

    Args:
        device: that is painted on.
        slots: that are painted in.
        status: of this process; another file in tests.

    Attributes:
        predicted_bytes: most that painting was predicted to add.
        peak_bytes: most that it has added.
    """

    def __init__(self, device: torch.device, slots: WorkerSlots, status: Path = Path("/proc/self/status")) -> None:
        self.predicted_bytes = 0
        self._peak_bytes = 0
        self._is_cuda = device.type == "cuda"
        self._slots = slots
        self._status = status
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._idle_bytes = torch.cuda.memory_allocated()
        else:
            self._highest_bytes, self._idle_bytes = self._resident()

    @property
    def peak_bytes(self) -> int:
        """Bytes that painting has added to the idle process, at most."""
        if self._is_cuda:
            return torch.cuda.max_memory_allocated() - self._idle_bytes
        return self._peak_bytes

    def note_begin(self) -> None:
        """Takes note of what all active slots are predicted to add; call it when one is reserved."""
        self.predicted_bytes = max(self.predicted_bytes, self._slots.reserved_bytes + OVERHEAD_BYTES)

    def note_end(self) -> None:
        """Takes note of what was added; call it at the end of a batch."""
        if self._is_cuda:
            return
        highest, resident = self._resident()
        if highest > self._highest_bytes:
            self._highest_bytes = resident = highest
        self._peak_bytes = max(self._peak_bytes, resident - self._idle_bytes)

    def card(self) -> tuple[int, int, int]:
        """Returns the bytes of tensors on the card, those that the allocator holds, and those that it may hold."""
        if not self._is_cuda:
            return 0, 0, 0
        share = torch.cuda.get_per_process_memory_fraction() * torch.cuda.get_device_properties(0).total_memory
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), int(share)

    def _resident(self) -> tuple[int, int]:
        """Returns the most memory that this process has ever had in RAM, and what it has now."""
        try:
            found = dict(STATUS.findall(self._status.read_text()))
        except OSError:  # not Linux
            return 0, 0
        return 1024 * int(found["VmHWM"]), 1024 * int(found["VmRSS"])
