"""What the serving process makes of the ways in which a start can fail, without a Ray."""

from pathlib import Path
from typing import Any

import click
import pytest
from service import LOCAL_CONFIG, changed_config

from serve_app.cli import local_cluster as serving


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster, so that no Ray is started
    changed_config(LOCAL_CONFIG, tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(("ends_with", "told"), [(SystemExit, serving.StartError), (click.Abort, KeyboardInterrupt)])
def test_an_end_of_serve_run_is_told(
    monkeypatch: pytest.MonkeyPatch, config: Path, ends_with: type[BaseException], told: type[BaseException]
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise ends_with

    monkeypatch.setattr(serving, "serve_command", end)
    with pytest.raises(told):
        serving.start(config)
