"""A photograph that kills the process which decodes it; `test_processes.py` has those that kill a whole worker."""

import asyncio

import hostile
import psutil
import pytest
from jobrunners import Painter, has_ended, in_loop, running, until
from jobstores import Bench
from pictures import photo_bytes

from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.images.header import read_header
from serve_app.images.pool import DecodeLimits, DecoderPool
from serve_app.jobs.words import Status

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def database_url() -> None:
    """SQLite alone."""


class DecodingPainter(Painter):
    """Decodes photographs in processes, as a Codec does, and kills the process that works on a certain one."""

    def __init__(self, pool: DecoderPool, poison: bytes) -> None:
        super().__init__()
        self.pool = pool
        self.poison = poison

    async def paint(self, photo: bytes, request: StylizeRequest) -> EncodedImage:
        killing = asyncio.create_task(self.kill()) if photo == self.poison else None
        async with self.pool.decoded(photo, read_header(photo), request, DecodeLimits(64_000_000, 60)):
            assert killing is None
            return await super().paint(photo, request)

    async def kill(self) -> None:
        while True:
            for decoder in psutil.Process(self.pool.server.pid).children():
                if decoder.cpu_times().user > 0.1:
                    decoder.kill()
                    return
            await asyncio.sleep(0.02)


def test_photograph_that_kills_its_decoder_fails_with_a_reason_and_costs_no_other_job(bench: Bench) -> None:
    poison = hostile.jpeg_of_scans(20_000, 2048)
    good = [bench.submit("bob", photo_bytes(64, 64, seed=seed)) for seed in range(3)]
    bad = bench.submit("ann", poison)

    async def scene() -> None:
        pool = DecoderPool(4, 500_000_000)
        try:
            async with running(bench, DecodingPainter(pool, poison), most_pictures=2):
                await until(has_ended(bench, bad, *good))
        finally:
            pool.close()

    in_loop(scene())
    failed = bench.store.get(bad.id)
    assert failed.problem is not None
    assert (failed.status, failed.attempt, failed.problem["code"]) == (Status.FAILED, 1, "broken-image")
    assert {bench.store.get(job.id).status for job in good} == {Status.SUCCEEDED}
    bench.check()
