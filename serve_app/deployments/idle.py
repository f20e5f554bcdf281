"""Returns the memory of a process that has nothing to do."""

import asyncio
import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

from serve_app.engine.allocator import find_function, release_free_memory

RELEASE_AFTER_S = 10.0
OBJECT_STORE = "plasma"  # part of the path that Ray's object store is mapped from


class IdleRelease:
    """Returns memory to the system after some seconds without work. For one event loop."""

    def __init__(self, after_s: float = RELEASE_AFTER_S) -> None:
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None

    def update(self, is_idle: bool) -> None:
        """Takes note that work has begun or ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if is_idle:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._after_s, loop.run_in_executor, None, release)


def release() -> None:
    """Returns free memory to the system, and forgets the pages of the object store that were used.

    The store keeps its pages, and those that are used again are mapped again. Otherwise each page that this process has
    ever written or read would count as its own, although it is long used by others.
    """
    release_free_memory()
    if (madvise := find_function("madvise")) is not None:
        for start, length in object_store_mappings():
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def object_store_mappings(maps: Path = Path("/proc/self/maps")) -> Iterator[tuple[int, int]]:
    """Yields the address and the length of each mapping of the object store that is shared, in bytes."""
    for line in maps.read_text().splitlines():
        addresses, permissions, *_, path = line.split(maxsplit=5)
        if OBJECT_STORE in path and permissions.endswith("s"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield start, end - start
