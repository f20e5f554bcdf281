"""Waiting for the end of jobs: one look at the store, again and again, for all who wait in this process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from serve_app.errors import RequestError
from serve_app.jobs.words import Job

LOOK_EVERY_S = 0.25

Find = Callable[[Sequence[str]], Awaitable[Mapping[str, Job]]]


class Watch:
    """Looks for the ends of jobs while anybody waits for one. For one event loop.

    Args:
        find: returns those of some jobs that exist, by their ids.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._ends: dict[str, set[asyncio.Future[None]]] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of those who wait."""
        return sum(map(len, self._ends.values()))

    async def end(self, job_id: str, seconds: float) -> None:
        """Returns when a job is no longer unfinished, and after some seconds in any case."""
        end = asyncio.get_running_loop().create_future()
        self._ends.setdefault(job_id, set()).add(end)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait({end}, timeout=seconds)
        finally:
            self._ends[job_id].discard(end)
            if not self._ends[job_id]:
                del self._ends[job_id]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._ends:
                return
            try:
                found = await self._find(list(self._ends))
            except RequestError:  # the store cannot be reached now
                continue
            for job_id, ends in self._ends.items():
                job = found.get(job_id)
                if job is None or not job.status.is_unfinished:
                    for end in ends:
                        if not end.done():
                            end.set_result(None)
