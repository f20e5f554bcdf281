"""Which memory allocator this process runs on, and how it returns free memory to the system. No torch.

Painting allocates and frees thousands of chunks of a few MiB. glibc asks the system for each one anew, or keeps holes
between them; tcmalloc reuses them. The allocator is chosen where a process is started (`LD_PRELOAD` in the Stylizer's
`runtime_env`); here it is only detected.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

M_MMAP_THRESHOLD = -3  # of malloc.h
PRELOADED = ("tcmalloc", "jemalloc", "mimalloc")


def running_allocator(maps: Path = Path("/proc/self/maps")) -> str:
    """Returns `tcmalloc`, `jemalloc` or `mimalloc` if it is preloaded, otherwise `system`."""
    try:
        libraries = {line.rsplit("/", 1)[-1] for line in maps.read_text().splitlines() if "/" in line}
    except OSError:  # not Linux
        return "system"
    return next((name for name in PRELOADED if any(name in library for library in libraries)), "system")


def release_free_memory() -> None:
    """Returns the memory that the allocator holds free to the system; the next use has to ask for it again."""
    for name, arguments in (("MallocExtension_ReleaseFreeMemory", ()), ("malloc_trim", (0,))):
        if (function := find_function(name)) is not None:
            function(*arguments)
            return


def return_large_buffers() -> None:
    """Makes glibc return buffers of 1 MiB and more to the system as soon as they are freed; others do nothing."""
    if (function := find_function("mallopt")) is not None:
        function(M_MMAP_THRESHOLD, 2**20)


def find_function(name: str) -> Callable[..., object] | None:
    """Returns a C function of a library that is already loaded; None if there is none of that name."""
    try:
        function: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # other allocators and other systems
        return None
    return function
