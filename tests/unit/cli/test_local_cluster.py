"""How the serving process ends when a start fails, without a Ray."""

import re
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from service import LOCAL_CONFIG, changed_config
from shared import ROOT

from serve_app.cli.local_cluster import service as local_cluster
from serve_app.cli.local_cluster.environment import PATIENCE, ray_environment
from serve_app.cli.local_cluster.service import RayDied, watch
from serve_app.cli.one_machine import PERIODS, WITHOUT_DASHBOARD
from serve_app.errors import SettingsError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config on a free port, and no Ray to be started by mistake."""

    def start_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", start_ray)
    path = tmp_path / "config.yaml"
    changed_config(LOCAL_CONFIG, path)
    return path


def run_main(config: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["local_cluster", str(config), "--ray-folder", str(config.parent)])
    return local_cluster.main()


def test_wrong_config_ends_the_start_with_every_finding(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace("queue_time_s", "queue_tim_s").replace("num_cpus", "num_cpu"))
    assert run_main(config, monkeypatch) == 1
    errors = capsys.readouterr().err
    assert "queue_tim_s: unknown key, did you mean queue_time_s?" in errors
    assert "num_cpu: unknown key, did you mean num_cpus?" in errors


def test_taken_port_ends_the_start_before_ray(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", yaml.safe_load(config.read_text())["http_options"]["port"]))
        taken.listen()
        assert run_main(config, monkeypatch) == 1
    assert "is taken; stop what listens there, or set http_options.port in" in capsys.readouterr().err


def test_taken_port_of_the_metrics_ends_the_start_before_ray(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"metrics": {"port": port}}))
        assert run_main(config, monkeypatch) == 1
    said = f"127.0.0.1:{port} is taken; stop what listens there, or set metrics.port in"
    assert said in capsys.readouterr().err


def test_ray_without_its_token_is_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert run_main(config, monkeypatch) == 1
    assert "RAY_AUTH_MODE=disabled lets everybody who reaches Ray's ports run code" in capsys.readouterr().err


def test_death_of_a_process_of_ray_is_named() -> None:
    with subprocess.Popen(["sleep", "60"]) as alive, subprocess.Popen(["sleep", "60"]) as dying:
        dying.kill()
        with pytest.raises(RayDied, match=r"^Ray's sleep has died, and the service with it; start it again$"):
            watch([psutil.Process(alive.pid), psutil.Process(dying.pid)])
        alive.kill()


def test_config_is_read_once_and_deployed_as_it_was_read(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(config.read_text())
    deployed: list[ServeDeploySchema] = []

    def start_ray(*_: object, **__: object) -> None:
        config.write_text("not: a config")  # a second read would see this

    monkeypatch.setattr("ray.init", start_ray)
    monkeypatch.setattr(local_cluster, "ray_environment", lambda dashboard: {})
    monkeypatch.setattr(local_cluster, "deploy", deployed.append)
    monkeypatch.setattr(local_cluster, "wait_until_ready", lambda address: None)
    local_cluster.start(config, tmp_path)
    assert [each.http_options.port for each in deployed] == [document["http_options"]["port"]]
    assert deployed[0].applications[0].args == document["applications"][0]["args"]


def test_key_file_that_is_missing_is_named_before_anything_starts(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["deployments"][0]["user_config"]["keys"] = f"file:{tmp_path}/nowhere"
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(SettingsError, match=r"Ingress\.user_config\.keys: .*nowhere"):
        local_cluster.start(config, tmp_path)


def test_variables_that_ray_is_started_with_are_documented_with_their_values() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert [name for name, value in PATIENCE.items() if f"`{name}` is {value} " not in text] == []
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, value in (PERIODS | WITHOUT_DASHBOARD).items():
        (row,) = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        assert value in re.findall(r"[a-z]+|[\d.]+", row.split("|")[2])


def test_tasks_are_listed_for_the_dashboard() -> None:
    assert (
        ray_environment(dashboard=False).items() - ray_environment(dashboard=True).items() == WITHOUT_DASHBOARD.items()
    )
