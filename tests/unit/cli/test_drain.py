"""`animegan drain`, and the wait of `animegan run` for requests in hand, without a cluster."""

import re
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import GetTimeoutError, RayActorError
from service import free_port

from serve_app.cli.local_cluster import service
from serve_app.deployments import draining
from serve_app.errors import AnimeganError


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def in_hand(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the proxies say in turn: how many requests they have in hand, or what is raised then."""
    said: list[Any] = []

    def next_said(is_on: bool) -> int:
        assert is_on
        if isinstance(said[0], BaseException):
            raise said.pop(0)
        return int(said.pop(0))

    monkeypatch.setattr(draining, "set_draining", next_said)
    monkeypatch.setattr(draining, "POLL_S", 0)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    return said


def test_changes_are_told_until_nothing_is_in_hand(in_hand: list[Any]) -> None:
    told: list[int] = []
    in_hand += [2, 2, 1, 0]
    assert draining.drain_service(60, told.append) == 0
    assert told == [2, 1, 0]


@pytest.mark.parametrize(("error", "in_hand"), [(GetTimeoutError(), 1), (RayActorError(), 0)])
def test_proxy_that_is_busy_is_waited_for_and_one_that_died_is_not(
    monkeypatch: pytest.MonkeyPatch, error: Exception, in_hand: int
) -> None:
    proxy = SimpleNamespace(__ray_call__=Mock())
    monkeypatch.setattr("ray.get", Mock(side_effect=error))
    assert draining.asked(proxy, True) == in_hand


def test_requests_that_take_too_long_are_left(in_hand: list[Any]) -> None:
    in_hand += [3]
    assert draining.drain_service(0, lambda _: None) == 3


def test_second_interrupt_ends_the_wait_and_a_third_one_is_ignored(
    in_hand: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    in_hand += [2, KeyboardInterrupt()]
    service.finish_requests(60)
    assert capsys.readouterr().out.splitlines() == [
        "requests in hand: 2 (up to 60 s; Ctrl-C ends the wait)",
        "not waiting; Ray takes some 20 s to stop",
    ]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_service_without_a_guard_is_stopped_at_once(in_hand: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    in_hand += [AnimeganError("the guard is off")]
    service.finish_requests(60)
    assert capsys.readouterr().out == "not waiting: the guard is off\n"


def test_without_time_nobody_is_asked(in_hand: list[Any]) -> None:
    service.finish_requests(0)
    assert in_hand == []


@pytest.mark.parametrize("text", ["-1", "soon", "1e9", "nan"])
def test_timeout_is_a_number_of_seconds(animegan: Callable[..., int], text: str) -> None:
    with pytest.raises(SystemExit) as end:
        animegan("drain", "--timeout", text)
    assert end.value.code == 2


def test_cluster_that_cannot_be_reached_is_named(
    animegan: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert animegan("drain", "--address", f"127.0.0.1:{free_port()}") == 1
    assert re.fullmatch(
        r"animegan: no Ray cluster can be reached at 127\.0\.0\.1:\d+: .*refused\n", capsys.readouterr().err
    )
