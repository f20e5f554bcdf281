"""How much memory a process may still take: what is free on the machine, or in its container if that is less.

A container's limit is that of its control group (cgroup), or of one above it. Linux has two layouts of control groups;
see the kernel's documentation, `admin-guide/cgroup-v1/memory` and `admin-guide/cgroup-v2`.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Layout:
    """The files of one version of control groups.

    Attributes:
        mount: where the groups are, below the root.
        limit, usage: files of a group that hold bytes.
        reclaimable: key in its `memory.stat` of cached file pages that the kernel drops when memory is needed.
    """

    mount: str
    limit: str
    usage: str
    reclaimable: str


V2 = Layout("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
V1 = Layout("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """Returns the bytes that this process may still take.

    Args:
        root: of the file system; another one in tests.
    """
    return min([psutil.virtual_memory().available, *left_in_groups(root)])


def left_in_groups(root: Path) -> Iterator[int]:
    """Yields what is left in each control group of this process that has a limit; never less than 0."""
    for layout, group in memory_groups(root):
        mount = root / layout.mount
        folder = mount / group
        for place in [folder, *folder.parents]:
            if not place.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limit = int((place / layout.limit).read_text())
                usage = int((place / layout.usage).read_text())
                yield max(limit - usage + reclaimable_bytes(place, layout), 0)


def memory_groups(root: Path) -> Iterator[tuple[Layout, str]]:
    """Yields the control groups of this process that count memory, as paths below their mount."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield V2, path.lstrip("/")
        elif "memory" in controllers.split(","):
            yield V1, path.lstrip("/")


def reclaimable_bytes(place: Path, layout: Layout) -> int:
    """Returns the bytes of cached files in a group's usage that the kernel can drop; 0 if that is unknown."""
    with suppress(OSError, ValueError):
        for line in (place / "memory.stat").read_text().splitlines():
            if line.startswith(f"{layout.reclaimable} "):
                return int(line.split()[1])
    return 0
