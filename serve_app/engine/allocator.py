"""Which malloc this process runs on, and giving memory back to the system.

Painting makes and drops thousands of chunks of a few MiB. glibc maps each anew, or keeps holes between them; tcmalloc
reuses them. The choice is made where a process is started (`LD_PRELOAD` in the Stylizer's `runtime_env`); here it is
only looked at.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

PRELOADED = ("tcmalloc", "jemalloc", "mimalloc")


def running_allocator(maps: Path = Path("/proc/self/maps")) -> str:
    """`tcmalloc`, `jemalloc` or `mimalloc` where one is preloaded; `system` otherwise."""
    try:
        libraries = {line.rsplit("/", 1)[-1] for line in maps.read_text().splitlines() if "/" in line}
    except OSError:  # not Linux
        return "system"
    return next((name for name in PRELOADED if any(name in library for library in libraries)), "system")


def release_free_memory() -> None:
    """Returns what is free in the allocator's hands to the system; what it costs is to ask for it again."""
    for name, arguments in (("MallocExtension_ReleaseFreeMemory", ()), ("malloc_trim", (0,))):
        if (function := find_function(name)) is not None:
            function(*arguments)
            return


def find_function(name: str) -> Callable[..., object] | None:
    try:
        function: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # other allocators and other systems
        return None
    return function
