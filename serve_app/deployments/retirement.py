"""Retirement: a replica past its age or memory is replaced, one of its deployment at a time, and no request is lost.

A replica asks to be replaced by failing its health checks: Serve routes nothing to it any more, lets it finish what it
has, and starts another, but only then. So a replica that is alone asks for a second one first, by
`autoscaling.RETIRING`, and leaves once that runs. Where there is no room for a second one it leaves after `PATIENCE_S`,
and what comes meanwhile waits for its successor.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import psutil
from ray import serve

from serve_app.deployments.autoscaling import RETIRING

logger = logging.getLogger("ray.serve")  # Serve writes it to the replica's log file

JITTER = 0.1  # of the age, so that replicas that started together do not retire together
MEMORY_CHECKS = 3  # running health checks above the mark: large batches pass
PATIENCE_S = 120.0  # for which a replica waits for a second one
# Replicas of one deployment take turns, by rank and clock. A replica decides in the first half of its turn, and Serve
# notices after three checks, within the second half: so the next one sees it leaving.
TURN_CHECKS = 8


class RetirementSettings(Protocol):
    """The settings of a deployment that say when its replicas retire."""

    @property
    def retire_after_s(self) -> float | None:
        """Age in seconds; None for any."""

    @property
    def retire_at_bytes(self) -> int | None:
        """Memory of the process alone; None for any."""


class Retiring(Exception):
    """The failure of a health check that lets Serve replace this replica."""


class Peers(NamedTuple):
    """The replicas of a deployment.

    Attributes:
        running: that run, this one included.
        settled: none starts or stops.
        rank: of this one, from 0.
        size: how many there should be.
        check_s: seconds between two health checks.
    """

    running: int
    settled: bool
    rank: int
    size: int
    check_s: float = 10.0


class Retirement:
    """Decides when this replica retires; its health check asks.

    Args:
        on_leave: is called once, when this replica leaves.
        peers: returns the replicas of the deployment; it may block.
        private_bytes: returns the memory of this process that it shares with no other.
        clock: seconds, monotonic.
        wall_clock: seconds, the same on every node within some.
    """

    def __init__(
        self,
        on_leave: Callable[[], None],
        peers: Callable[[], Peers] | None = None,
        private_bytes: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._on_leave = on_leave
        self._peers = peers or peers_of_this_replica
        self._private_bytes = private_bytes or private_bytes_of_this_process
        self._clock, self._wall_clock = clock, wall_clock
        self._started_s = clock()
        self._age_factor = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 # nosec B311 # so that not all go at once
        self._checks_above = 0
        self._reason = ""
        self._due_s = 0.0
        self._is_leaving = False

    @property
    def is_due(self) -> bool:
        """Whether this replica waits for its turn to be replaced, or leaves."""
        return bool(self._reason)

    def figures(self) -> dict[str, float]:
        """Returns what the autoscaling policies know of it."""
        return {RETIRING: float(self.is_due)}

    async def check(self, settings: RetirementSettings) -> None:
        """Looks whether it is time.

        Raises:
            Retiring: once this replica should be replaced, and at every later check: Serve asks for three in a row.
        """
        if not self._is_leaving:
            reason = self._reason_to_retire(settings)  # it may have gone, with the settings or with the memory
            if reason and not self._reason:
                self._due_s = self._clock()
                logger.info("this replica is to be replaced: %s", reason)
            self._reason = reason
            self._is_leaving = bool(reason) and self._may_leave(await asyncio.to_thread(self._peers))
            if self._is_leaving:
                self._on_leave()
        if self._is_leaving:
            raise Retiring(f"This replica retires, which is no fault: {self._reason}.")

    def _reason_to_retire(self, settings: RetirementSettings) -> str:
        age_s, limit_s = self._clock() - self._started_s, settings.retire_after_s
        if limit_s is not None and age_s > limit_s * self._age_factor:
            return f"it has run for {age_s:.0f} s (retire_after_s is {limit_s:g})"
        limit = settings.retire_at_bytes
        if limit is None or (taken := self._private_bytes()) <= limit:
            self._checks_above = 0
            return ""
        self._checks_above += 1
        if self._checks_above < MEMORY_CHECKS:
            return ""
        return f"it takes {taken:,} bytes (retire_at_bytes is {limit:,})"

    def _may_leave(self, peers: Peers) -> bool:
        turn_s = TURN_CHECKS * peers.check_s
        turn, elapsed_s = divmod(self._wall_clock(), turn_s)
        if not peers.settled or turn % peers.size != peers.rank or elapsed_s > turn_s / 2:
            return False
        return peers.running > 1 or self._clock() - self._due_s > PATIENCE_S


def peers_of_this_replica() -> Peers:
    """Returns the replicas of this replica's deployment, as Serve's controller sees them: none while all starts."""
    context = serve.get_replica_context()
    application = serve.status().applications.get(context.app_name)
    deployment = application and application.deployments.get(context.deployment)
    states = deployment.replica_states if deployment else {}
    counts: dict[str, int] = {state: count for state, count in states.items() if count}
    return Peers(
        counts.get("RUNNING", 0),
        set(counts) == {"RUNNING"},
        context.rank.rank,
        max(context.world_size, 1),
        context._deployment_config.health_check_period_s,  # Serve says it nowhere else
    )


def private_bytes_of_this_process() -> int:
    """Returns the memory of this process that it shares with no other: no libraries, nothing of the object store."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)
