"""Looks again and again for leases whose workers are lost, and for what has expired."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from serve_app.errors import RequestError
from serve_app.jobs.silences import Silences
from serve_app.jobs.work import PatientStore

REAPS = 3  # looks at lost leases, in the time that one lasts
STRAYS_S = 86_400.0  # between two looks at all files, for those that a writer left which was very slow


class Sweeper:
    """Looks for lost leases and for what has expired. Every runner does, at times of its own.

    Args:
        store: of the jobs.
        own: returns the tokens of the leases that this process holds.
        lease_s: of the store's leases.
        clock: seconds, monotonic.
        jitter: a random number from 0 to 1, so that runners do not sweep in step.
    """

    def __init__(
        self,
        store: PatientStore,
        own: Callable[[], set[str]],
        lease_s: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._own = own
        self._look_s = lease_s / REAPS
        self._clock = clock
        self._jitter = jitter
        self._silences = Silences(clock)

    async def run(self, sweep_s: Callable[[], float]) -> None:
        """Looks again and again.

        Args:
            sweep_s: returns the seconds between two looks for what has expired.
        """
        swept_at, looked_at = -float("inf"), self._clock()
        while True:
            await asyncio.sleep(self._look_s * (0.5 + self._jitter()))
            await self._reap()
            if self._clock() - swept_at >= sweep_s():
                swept_at = self._clock()
                strays = swept_at - looked_at >= STRAYS_S
                looked_at = swept_at if strays else looked_at
                with suppress(RequestError):  # the store has logged it
                    await self._store.in_thread(partial(self._store.store.sweep, strays, reaps=False))

    async def _reap(self) -> None:
        queue = self._store.store.queue
        try:
            lost = self._silences.look(await self._store.in_lease_thread(queue.leases), self._own())
            if lost:
                await self._store.in_lease_thread(queue.reap, lost)
        except RequestError:
            self._silences.forget()
