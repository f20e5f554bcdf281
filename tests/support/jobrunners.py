"""A runner of jobs over a real store, with a painter that the test controls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from jobstores import Bench, painting

from serve_app.errors import BrokenImage
from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.jobs.runner import Runner
from serve_app.jobs.words import Job, Status
from serve_app.settings import JobRunnerSettings

PATIENCE_S = 20.0


class Painter:
    """Paints by reversing the bytes of a photograph, once its gate is open.

    Attributes:
        gate: paintings wait while it is not set.
        faults: raised in place of painting, one for each call.
        begun, cancelled: photographs, in order.
        most: photographs that were painted at the same time, at most.
    """

    def __init__(self, *faults: Exception, is_open: bool = True) -> None:
        self.gate = asyncio.Event()
        self.faults = list(faults)
        self.begun: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.now = self.most = 0
        if is_open:
            self.gate.set()

    def pixels(self, photo: bytes, request: StylizeRequest) -> int:
        if photo == b"tiny":
            raise BrokenImage("Too small.")
        return 10_000

    async def paint(self, photo: bytes, request: StylizeRequest) -> EncodedImage:
        self.begun.append(photo)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.faults:
                raise self.faults.pop(0)
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(photo)
            raise
        finally:
            self.now -= 1
        return painting(photo[::-1])


class Ends:
    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def ended(self, outcome: str) -> None:
        self.outcomes.append(outcome)


def in_loop(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 3 * PATIENCE_S))


@asynccontextmanager
async def running(bench: Bench, painter: Painter, **settings: Any) -> AsyncIterator[Runner]:
    defaults = {"poll_s": 0.05}
    runner = Runner(
        bench.store, painter, JobRunnerSettings(**defaults | settings), bench.settings.lease_s, observer=Ends()
    )
    runner.start()
    try:
        yield runner
        assert runner.fault() is None
    finally:
        painter.gate.set()
        await runner.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


def status_of(bench: Bench, job: Job) -> Status:
    return bench.store.get(job.id).status


def has_ended(bench: Bench, *jobs: Job) -> Callable[[], bool]:
    return lambda: not any(status_of(bench, job).is_unfinished for job in jobs)
