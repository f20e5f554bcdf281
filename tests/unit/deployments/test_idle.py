"""Memory is returned when a process has been idle for a while."""

import asyncio
import mmap
import tempfile
from pathlib import Path

import pytest

from serve_app.deployments import idle
from serve_app.deployments.idle import IdleRelease, object_store_mappings


def test_memory_is_released_only_after_a_while_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[float] = []

    async def scene() -> None:
        monkeypatch.setattr(idle, "release", lambda: released.append(1))
        waiting = IdleRelease(after_s=0.2)
        waiting.update(is_idle=True)
        await asyncio.sleep(0.05)
        waiting.update(is_idle=False)
        await asyncio.sleep(0.3)
        assert released == []
        waiting.update(is_idle=True)
        while not released:
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(scene(), 20))
    assert len(released) == 1


def test_pages_of_the_object_store_are_forgotten_and_keep_their_content(tmp_path: Path) -> None:
    size = 2**20
    with tempfile.NamedTemporaryFile(prefix="plasma", dir=tmp_path) as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as mapped:
            mapped.write(b"x" * size)
            assert resident(file.name) >= size
            assert size in [length for _, length in object_store_mappings()]
            idle.release()
            assert resident(file.name) == 0
            assert mapped[:] == b"x" * size


def resident(path: str) -> int:
    """Bytes of a mapped file that count as this process's."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if path in line)
    return next(int(line.split()[1]) * 1024 for line in lines[at:] if line.startswith("Rss:"))
