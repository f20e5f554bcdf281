"""Memory and CPU time of a server's processes while a load runs."""

import threading
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.servers import process_tree, role

OTHERS = "others"  # processes without a role: Ray's own, or all of a rival's
SAMPLE_S = 5.0  # a sample reads the page tables of 25 processes: 0.06 CPU-seconds, which the service would pay for


class CpuMeter:
    """CPU time that the processes of a tree have used since the meter was made."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._machine = psutil.cpu_times()
        self._before = self._read()

    def by_role(self) -> dict[str, float]:
        """Returns CPU-seconds by role of the process; `OTHERS` are all that have none."""
        used: dict[str, float] = {}
        for process, seconds in self._read().items():
            name = role(process) or OTHERS
            used[name] = used.get(name, 0.0) + seconds - self._before.get(process, 0.0)
        return used

    def machine_share(self) -> float:
        """Returns the share of all cores' time that was not idle, for whichever process."""
        now = psutil.cpu_times()
        idle = now.idle + now.iowait - self._machine.idle - self._machine.iowait
        return float(1 - idle / (sum(now) - sum(self._machine)))

    def _read(self) -> dict[psutil.Process, float]:
        seconds = {}
        for process in process_tree(self._process):
            with suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process] = times.user + times.system
        return seconds


class ProcessMonitor(threading.Thread):
    """Memory and CPU time of a process and all its descendants while a `with` block runs.

    Attributes:
        peak_pss: bytes, the most that all processes had together.
        cpu_s: CPU-seconds, by role of the process; `OTHERS` are all that have none.
        stylizer_rss: bytes at the first and the last sample; empty for a server without a Stylizer.
    """

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.peak_pss = 0
        self.stylizer_rss: list[int] = []
        self.cpu_s: dict[str, float] = {}
        self._process = process
        self._over = threading.Event()

    def __enter__(self) -> "ProcessMonitor":
        self._sample()
        self._meter = CpuMeter(self._process)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s = {name: round(seconds, 2) for name, seconds in self._meter.by_role().items()}
        self._over.set()
        self.join()
        self._sample()

    def run(self) -> None:
        """Takes samples until the block ends."""
        while not self._over.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        tree = process_tree(self._process)
        self.peak_pss = max(self.peak_pss, sum(map(pss_bytes, tree)))
        for process in tree:
            if role(process) == "Stylizer":
                self.stylizer_rss = [*self.stylizer_rss[:1], process.memory_info().rss]


def pss_bytes(process: psutil.Process) -> int:
    """Returns a process's proportional set size; 0 if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0
