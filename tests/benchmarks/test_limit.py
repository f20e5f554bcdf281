"""What `scripts/bench limit` runs: configs that are valid, under a limit that the kernel holds."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.limit import MemoryCgroup, cases, cgroup_of, changed, on_port

from serve_app.cli.config_lint import load_config

MIB = 2**20
TAKE = "import sys; taken = b'x' * (int(sys.argv[1]) << 20)"


@pytest.fixture
def cgroup() -> Any:
    try:
        MemoryCgroup(2**30).remove()
    except (SystemExit, OSError) as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    return cgroup_of


@pytest.mark.parametrize("number", range(3))
def test_each_choice_of_settings_is_valid(number: int, tmp_path: Path) -> None:
    name, limit_bytes, config = cases()[number]
    path = tmp_path / "limit.yaml"
    path.write_text(yaml.safe_dump(on_port(config, 8123)))
    load_config(path)
    assert ("JobRunner" in path.read_text()) == name.startswith("container.yaml")
    assert "postgresql" not in path.read_text()
    assert limit_bytes >= 2 * 2**30


def test_changes_reach_their_blocks() -> None:
    _, _, container = cases()[0]
    config = changed(container, {"Stylizer.max_batch_size": 1, "args.precision": "bf16", "guard.max_bytes": 9})
    (application,) = config["applications"]
    stylizer = next(each for each in application["deployments"] if each["name"] == "Stylizer")
    assert stylizer["user_config"]["max_batch_size"] == 1
    assert application["args"]["precision"] == "bf16"
    assert config["guard"]["max_bytes"] == 9
    assert container["guard"]["max_bytes"] == "32MiB"


def test_small_config_is_the_container_config_with_the_least_of_everything() -> None:
    (_, _, wanted), (_, _, small) = cases()[1:]
    (application,) = wanted["applications"]
    application["args"]["jobs"] = {"enabled": False}
    application["deployments"] = [each for each in application["deployments"] if each["name"] != "JobRunner"]
    codec = next(each for each in application["deployments"] if each["name"] == "Codec")
    codec["user_config"]["decoder_processes"] = 2
    assert in_bytes(small) == in_bytes(wanted)


def in_bytes(value: Any) -> Any:
    """The same settings, with sizes as numbers."""
    if isinstance(value, dict):
        return {key: in_bytes(each) for key, each in value.items()}
    if isinstance(value, list):
        return [in_bytes(each) for each in value]
    return int(value.removesuffix("MiB")) * MIB if isinstance(value, str) and value.endswith("MiB") else value


def test_process_that_takes_more_than_the_limit_is_killed_and_counted(cgroup: Any) -> None:
    with cgroup(100 * MIB) as limited:
        command = limited.command([sys.executable, "-c", TAKE])
        assert subprocess.run([*command, "40"], check=False).returncode == 0
        assert limited.kills == 0
        assert 40 * MIB < limited.peak_bytes < 100 * MIB
        limited.forget_peak()
        assert limited.peak_bytes < 40 * MIB
        assert subprocess.run([*command, "200"], check=False).returncode != 0
        assert limited.kills == 1
    assert not limited.folder.exists()
