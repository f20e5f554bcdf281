from pathlib import Path

import psutil
import pytest

from serve_app.engine.host_memory import available_bytes, left_in_groups

MB = 1_000_000


def write_group(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def root_with(tmp_path: Path, lines: str) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines)
    return tmp_path


def test_limit_of_a_container_is_minded(tmp_path: Path) -> None:
    root = root_with(tmp_path, "0::/\n")
    files = {"memory.max": 600 * MB, "memory.current": 250 * MB, "memory.stat": "anon 1\ninactive_file 50000000"}
    write_group(root / "sys/fs/cgroup", files)
    assert list(left_in_groups(root)) == [400 * MB]
    assert available_bytes(root) == 400 * MB


def test_tightest_of_the_groups_above_decides(tmp_path: Path) -> None:
    root = root_with(tmp_path, "0::/pods/pod1/service\n")
    write_group(root / "sys/fs/cgroup/pods/pod1/service", {"memory.max": "max", "memory.current": 10 * MB})
    write_group(root / "sys/fs/cgroup/pods/pod1", {"memory.max": 100 * MB, "memory.current": 30 * MB})
    write_group(root / "sys/fs/cgroup/pods", {"memory.max": 900 * MB, "memory.current": 100 * MB})
    assert available_bytes(root) == 70 * MB


def test_first_version_of_control_groups_is_minded(tmp_path: Path) -> None:
    root = root_with(tmp_path, "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    files = {
        "memory.limit_in_bytes": 500 * MB,
        "memory.usage_in_bytes": 300 * MB,
        "memory.stat": "inactive_file 1\ntotal_inactive_file 100000000",
    }
    write_group(root / "sys/fs/cgroup/memory", files)  # in the container its own group is the root of the mount
    assert available_bytes(root) == 300 * MB


def test_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    root = root_with(tmp_path, "0::/\n")
    write_group(root / "sys/fs/cgroup", {"memory.max": 100 * MB, "memory.current": 120 * MB})
    assert available_bytes(root) == 0


@pytest.mark.parametrize("lines", [None, "0::/\n", "4:memory:/absent\n"])
def test_without_a_limit_the_machine_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str | None
) -> None:
    root = tmp_path if lines is None else root_with(tmp_path, lines)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 123 * MB}))
    assert available_bytes(root) == 123 * MB
