"""A process with a runner of jobs, to be run by another clock or killed: runner_process.py SETTINGS LOG SECONDS.

It takes some seconds to paint a photograph, by reversing it, and writes each that it begins to the log. One that begins
with "endless" is never painted the first time.
"""

import asyncio
import os
import sys
from pathlib import Path

from jobstores import painting

from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.jobs.runner import Runner
from serve_app.jobs.store import open_store
from serve_app.settings import JobRunnerSettings, JobsSettings


class SlowPainter:
    """See `serve_app.jobs.runner.Painter`."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log = log
        self.seconds = seconds

    def pixels(self, photo: bytes, request: StylizeRequest) -> int:
        return 10_000

    async def paint(self, photo: bytes, request: StylizeRequest) -> EncodedImage:
        seconds = self.seconds
        if photo.startswith(b"endless"):
            seconds = 0.1 if photo in self.log.read_bytes() else 600
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.write(log, photo + b"\n")
        os.close(log)
        await asyncio.sleep(seconds)
        return painting(photo[::-1])


async def main(settings: JobsSettings, log: Path, seconds: float) -> None:
    store = open_store(settings)
    looks = JobRunnerSettings(most_pictures=2, poll_s=0.05, sweep_s=0.3)
    runner = Runner(store, SlowPainter(log, seconds), looks, settings.lease_s)
    runner.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(JobsSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
