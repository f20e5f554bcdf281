"""What the serving process makes of the ways in which a start can fail, without a Ray."""

from pathlib import Path
from typing import Any

import pytest
from service import LOCAL_CONFIG, changed_config

from serve_app import serving


def test_serve_run_that_gives_up_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def give_up(*_: Any, **__: Any) -> None:
        raise SystemExit

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster, so that no Ray is started
    monkeypatch.setattr(serving, "serve_command", give_up)
    config = tmp_path / "config.yaml"
    changed_config(LOCAL_CONFIG, config)
    with pytest.raises(serving.StartError, match="gave up"):
        serving.start(config)
