"""A watch on how the service answers others while clients that mean no good are at work."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import psutil
import requests


@dataclass
class Health:
    """Asks `/livez` ten times a second in a thread, and keeps the longest time to an answer.

    With `process`es given, it also keeps the most memory that they had together.
    """

    address: str
    processes: tuple[psutil.Process, ...] = ()
    worst_s: float = 0.0
    failures: int = 0
    peak_bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Health":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            began = time.monotonic()
            try:
                answered = requests.get(f"{self.address}/livez", timeout=60).status_code == 200
            except requests.RequestException:
                answered = False
            self.failures += not answered
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            self.peak_bytes = max(self.peak_bytes, memory_bytes(*self.processes))


def memory_bytes(*processes: psutil.Process) -> int:
    """Memory that is resident in these processes, in bytes; the object store, which all of them map, counts once."""
    sizes = [process.memory_info() for process in processes]
    return sum(size.rss - size.shared for size in sizes) + max((size.shared for size in sizes), default=0)
