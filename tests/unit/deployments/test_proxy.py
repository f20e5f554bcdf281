"""How the guard gets into Serve's proxy: its config file, and what it does to uvicorn."""

import logging
import os
from ipaddress import ip_network
from pathlib import Path

import pytest
import uvicorn.config
import yaml

from serve_app.deployments import exposition, proxy
from serve_app.deployments.proxy import CALLBACK, CALLBACK_VARIABLE, CONFIG_VARIABLE, middlewares, warn_without_guard
from serve_app.errors import SettingsError
from serve_app.settings import MetricsSettings
from serve_app.web.connection import GuardedProtocol
from serve_app.web.guard import Guard, Site
from serve_app.web.request_log import GuardLog


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the callback changes in this process is changed back."""
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.setattr(proxy, "return_large_buffers", lambda: None)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)


def guard_of(config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guard:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    inner, outer = middlewares()
    guard = inner.cls(None, *inner.args, **inner.kwargs)  # type: ignore[arg-type]
    assert isinstance(guard, Guard)
    classes: list[object] = [outer.cls]
    assert classes == [GuardLog]
    assert outer.kwargs == {"trusted_proxies": guard.site.trusted_proxies, "log_clients": guard.site.log_clients}
    return guard


def test_uvicorn_parses_with_the_guarded_protocol_and_believes_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_of({"guard": {"header_timeout_s": 3}}, tmp_path, monkeypatch)
    config = uvicorn.Config(lambda: None, factory=True)
    config.load()
    assert issubclass(config.http_protocol_class, GuardedProtocol)
    assert config.http_protocol_class.header_timeout_s == 3
    assert config.forwarded_allow_ips == os.environ["FORWARDED_ALLOW_IPS"] == ""


@pytest.mark.parametrize("block", [None, False])
def test_no_metrics_are_answered_where_the_config_names_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: object
) -> None:
    monkeypatch.setattr(exposition, "join", lambda: tmp_path)
    monkeypatch.setattr(exposition, "serve", lambda *_: pytest.fail("it was served"))
    guard_of({"metrics": block}, tmp_path, monkeypatch)


@pytest.mark.parametrize("guard", [{}, False])
def test_metrics_are_answered_where_the_config_says_whether_or_not_there_is_a_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: object
) -> None:
    served: list[tuple[MetricsSettings, Path]] = []
    monkeypatch.setattr(exposition, "join", lambda: tmp_path / "folder")
    monkeypatch.setattr(exposition, "serve", lambda settings, folder, before: served.append((settings, folder)))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"metrics": {"host": "0.0.0.0", "port": 9000}, "guard": guard}))
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    middlewares()
    assert served == [(MetricsSettings(host="0.0.0.0", port=9000), tmp_path / "folder")]


def test_wrong_settings_of_the_metrics_keep_a_proxy_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "join", lambda: tmp_path)
    for block, said in (({"prot": 1}, "did you mean port"), ("on", "must hold keys, or be off")):
        with pytest.raises(SettingsError, match=said):
            guard_of({"metrics": block}, tmp_path, monkeypatch)


def test_settings_come_from_the_file_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingress = {"name": "Ingress", "user_config": {"trusted_proxies": ["10.0.0.0/8"], "log_clients": "full"}}
    config = {
        "http_options": {"host": "127.0.0.1"},
        "applications": [{"deployments": [{"name": "Codec"}, ingress]}],
        "guard": {"max_bytes": "1MiB"},
    }
    guard = guard_of(config, tmp_path, monkeypatch)
    assert guard.settings.max_bytes == 2**20
    assert guard.site == Site((ip_network("10.0.0.0/8"),), is_loopback=True, log_clients="full")
    assert not guard_of({"http_options": {"host": "0.0.0.0"}}, tmp_path, monkeypatch).site.is_loopback


def test_without_a_file_the_guard_has_its_defaults() -> None:
    classes: list[object] = [middleware.cls for middleware in middlewares()]
    assert classes == [Guard, GuardLog]


def test_guard_may_be_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("guard: off\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config.yaml"))
    assert middlewares() == []
    assert os.environ["FORWARDED_ALLOW_IPS"] == ""


@pytest.mark.parametrize(
    "text", [None, "guard: [", "- a list", "guard: {max_byte: 3}", "guard: on", "guard: {spool_dir: /nowhere}"]
)
def test_proxy_does_not_start_with_a_wrong_file(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    with pytest.raises(SettingsError):
        middlewares()


@pytest.mark.parametrize(
    ("value", "guarded"),
    [(CALLBACK, True), (CALLBACK.replace(":", "."), True), ("other:function", False), (None, False)],
)
def test_a_missing_guard_is_said_loudly(
    value: str | None, guarded: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(CALLBACK_VARIABLE, raising=False)
    if value:
        monkeypatch.setenv(CALLBACK_VARIABLE, value)
    with caplog.at_level("WARNING"):
        warn_without_guard()
    assert ("NO GUARD" in caplog.text) == (not guarded)
