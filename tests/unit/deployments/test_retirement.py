"""When a replica retires: past its age or memory, in its turn, and not while it is the only one."""

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from serve_app.deployments.autoscaling import RETIRING
from serve_app.deployments.retirement import (
    JITTER,
    MEMORY_CHECKS,
    PATIENCE_S,
    TURN_CHECKS,
    Peers,
    Retirement,
    Retiring,
    peers_of_this_replica,
)
from serve_app.settings import CodecSettings, StylizerSettings

ROOT = Path(__file__).parents[3]
DAY_S = 86400
CHECK_S = 10.0
TURN_S = TURN_CHECKS * CHECK_S
LATEST_S = DAY_S * (1 + JITTER) + 1  # when the age of any replica is past a day's mark


class Replica:
    """A replica whose clock, memory and peers the test sets."""

    def __init__(self, running: int = 2, rank: int = 0) -> None:
        self.now_s, self.memory, self.asked, self.left = 0.0, 0, 0, 0
        self.peers = Peers(running, True, rank, running, CHECK_S)
        self.retirement = Retirement(
            self._leave, self._look, lambda: self.memory, lambda: self.now_s, lambda: self.now_s
        )

    def _leave(self) -> None:
        self.left += 1

    def _look(self) -> Peers:
        self.asked += 1
        return self.peers

    def retires(self, **settings: float) -> bool:
        try:
            asyncio.run(self.retirement.check(StylizerSettings.model_validate(settings)))
        except Retiring:
            return True
        return False

    def in_turn(self, after_s: float) -> None:
        """Sets the clock to the beginning of the next turn of this replica."""
        cycle_s = TURN_S * self.peers.size
        self.now_s = after_s - after_s % cycle_s + cycle_s + TURN_S * self.peers.rank


def test_without_settings_a_replica_stays() -> None:
    replica = Replica()
    replica.memory = 2**60
    replica.in_turn(1e9)
    assert not any(replica.retires() for _ in range(10))
    assert replica.asked == 0


def test_a_replica_retires_at_its_age_within_a_tenth() -> None:
    replica = Replica()
    replica.in_turn(DAY_S * (1 - JITTER) - 3 * TURN_S)
    assert not replica.retires(retire_after_s=DAY_S)
    assert replica.left == 0
    replica.in_turn(LATEST_S)
    assert all(replica.retires(retire_after_s=DAY_S) for _ in range(3))
    assert replica.left == 1


def test_replicas_that_started_together_do_not_retire_together() -> None:
    ages = {Retirement(Replica()._leave)._age_factor for _ in range(20)}
    assert len(ages) == 20


def test_a_replica_retires_after_three_checks_above_its_memory() -> None:
    replica = Replica()
    replica.in_turn(0)
    assert MEMORY_CHECKS == 3
    settings = {"retire_at_bytes": 1000}
    replica.memory = 1000
    assert not any(replica.retires(**settings) for _ in range(5))
    replica.memory = 1001
    assert [replica.retires(**settings) for _ in range(2)] == [False, False]
    replica.memory = 999  # a large batch has passed
    assert not replica.retires(**settings)
    replica.memory = 1001
    assert [replica.retires(**settings) for _ in range(3)] == [False, False, True]


def test_a_replica_that_leaves_fails_every_check_from_then_on() -> None:
    replica = Replica()
    replica.in_turn(LATEST_S)
    assert replica.retires(retire_after_s=DAY_S)
    replica.peers = Peers(1, False, 1, 7, CHECK_S)
    replica.now_s += TURN_S / 2
    assert [replica.retires() for _ in range(5)] == [True] * 5
    assert replica.asked == 1


def test_no_replica_leaves_while_another_starts_or_stops() -> None:
    replica = Replica()
    replica.in_turn(LATEST_S)
    replica.peers = replica.peers._replace(settled=False)
    assert not replica.retires(retire_after_s=DAY_S)
    replica.peers = replica.peers._replace(settled=True)
    assert replica.retires(retire_after_s=DAY_S)


def test_of_replicas_that_are_due_together_one_leaves_at_a_time() -> None:
    """At any time, only one of them may begin, and none within three checks of the next one's turn."""
    size, began = 4, {}
    for rank in range(size):
        moments = []
        for second in range(0, int(size * TURN_S), 5):
            replica = Replica(size, rank)
            replica.now_s = LATEST_S - LATEST_S % (size * TURN_S) + size * TURN_S + second
            if replica.retires(retire_after_s=DAY_S):
                moments.append(second)
        began[rank] = moments
    for rank, moments in began.items():
        assert moments
        assert min(moments) >= rank * TURN_S
        assert max(moments) + 3 * CHECK_S <= (rank + 1) * TURN_S


def test_a_replica_that_is_alone_waits_for_another_one_but_not_for_ever() -> None:
    replica = Replica(running=1)
    replica.in_turn(LATEST_S)
    due_s = replica.now_s
    assert not replica.retires(retire_after_s=DAY_S)
    assert replica.retirement.figures() == {RETIRING: 1.0}
    replica.now_s += TURN_S
    assert not replica.retires(retire_after_s=DAY_S)
    second = Replica(running=1)
    second.in_turn(LATEST_S)
    assert not second.retires(retire_after_s=DAY_S)
    second.peers = second.peers._replace(running=2)
    assert second.retires(retire_after_s=DAY_S)
    replica.now_s = due_s + 2 * TURN_S
    assert replica.now_s - due_s > PATIENCE_S
    assert replica.retires(retire_after_s=DAY_S)


def test_a_replica_whose_reason_has_gone_stays() -> None:
    replica = Replica(running=1)
    replica.in_turn(LATEST_S)
    replica.memory = 1001
    assert not any(replica.retires(retire_at_bytes=1000) for _ in range(MEMORY_CHECKS))
    assert replica.retirement.is_due
    replica.peers = replica.peers._replace(running=2)
    assert not replica.retires(retire_at_bytes=2000)  # the mark was raised before it could leave
    assert not replica.retirement.is_due


@pytest.mark.parametrize("applications", [{}, {"animegan": SimpleNamespace(deployments={})}])
def test_peers_are_not_settled_while_serve_does_not_know_the_deployment(
    applications: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(
        app_name="animegan",
        deployment="Stylizer",
        rank=SimpleNamespace(rank=0),
        world_size=1,
        _deployment_config=SimpleNamespace(health_check_period_s=CHECK_S),
    )
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    peers = peers_of_this_replica()
    assert (peers.running, peers.settled) == (0, False)


def test_autoscaling_hears_of_it_only_when_it_is_due() -> None:
    replica = Replica()
    replica.retires(retire_after_s=DAY_S)
    assert replica.retirement.figures() == {RETIRING: 0.0}


def test_settings_of_both_deployments_have_the_marks() -> None:
    for settings in (CodecSettings(), StylizerSettings()):
        assert (settings.retire_after_s, settings.retire_at_bytes) == (None, None)
    assert CodecSettings.model_validate({"retire_at_bytes": "2GiB"}).retire_at_bytes == 2**31


def test_memory_of_the_process_leaves_out_what_is_shared() -> None:
    script = """
        import mmap
        from serve_app.deployments.retirement import private_bytes_of_this_process

        before = private_bytes_of_this_process()
        shared = mmap.mmap(-1, 64 << 20)
        shared.write(bytes(1 << 20) * 64)
        with_shared = private_bytes_of_this_process()
        taken = bytearray(b"x") * (64 << 20)
        print(with_shared - before, private_bytes_of_this_process() - with_shared)
    """
    # In a process of its own: in this one, memory that earlier tests freed may be taken again, and nothing grows.
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True)
    shared_grown, private_grown = map(int, run.stdout.split())
    assert shared_grown == pytest.approx(0, abs=8 << 20)
    assert private_grown == pytest.approx(64 << 20, rel=0.1)
