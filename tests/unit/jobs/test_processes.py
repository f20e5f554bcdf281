"""Workers that are processes of their own, and are killed at any moment."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobstores import REQUEST, Bench
from shared import ROOT
from sqlalchemy import select

from serve_app.jobs import ledger
from serve_app.jobs.table import blobs
from serve_app.jobs.words import NewJob, Status

MakeBench = Callable[..., Bench]

WORKER = ROOT / "tests" / "support" / "job_worker.py"
JOBS, KILLS, WORKERS = 60, 12, 3
PATIENCE_S = 120

pytestmark = pytest.mark.slow


class Workers:
    """Processes that work until they are killed; dead ones are replaced."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.command = [sys.executable, str(WORKER), bench.settings.model_dump_json(), str(folder / "ended")]
        self.console = (folder / "console").open("wb")
        paths = [str(WORKER.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.running: list[subprocess.Popen[bytes]] = []

    def fill(self) -> None:
        self.running = [worker for worker in self.running if worker.poll() is None]
        while len(self.running) < WORKERS:
            self.running.append(
                subprocess.Popen(self.command, env=self.environment, stdout=self.console, stderr=self.console)
            )

    def kill_one(self) -> None:
        random.choice(self.running).kill()

    def stop(self) -> None:
        for worker in self.running:
            worker.kill()
        for worker in self.running:
            worker.wait()
        self.console.close()


def test_every_job_that_was_accepted_ends_once_however_workers_die(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(lease_s=1.5, max_attempts=4)
    contents = [b"photo %d " % number + os.urandom(2000) for number in range(JOBS)]
    contents += [b"broken", b"poison"]
    workers = Workers(bench, tmp_path)
    with ThreadPoolExecutor(2) as clients:  # submissions and deaths at the same time
        submitted = clients.map(lambda photo: bench.store.submit("ann", [NewJob(REQUEST, photo)]).jobs[0].id, contents)
        try:
            deadline = time.monotonic() + PATIENCE_S
            kills = 0
            unfinished = True
            while unfinished or kills < KILLS:
                assert time.monotonic() < deadline, (tmp_path / "console").read_text()
                workers.fill()
                time.sleep(0.3)
                unfinished = bench.unfinished() > 0 or not_yet(bench, len(contents))
                if kills < KILLS and random.random() < 0.7:
                    workers.kill_one()
                    kills += 1
            ids = list(submitted)
        finally:
            workers.stop()
    jobs = bench.store.find(ids)
    assert len(jobs) == len(ids) == len(contents)
    for job_id, content in zip(ids, contents, strict=True):
        job = jobs[job_id]
        if job.status is Status.SUCCEEDED:
            assert bench.store.painting(job) == content[::-1]
        else:
            assert job.problem is not None
            expected = "broken-image" if content == b"broken" else "lost"
            assert (job.status, job.problem["code"]) == (Status.FAILED, expected)
    assert jobs[ids[-1]].status is Status.FAILED
    assert sum(job.status is Status.SUCCEEDED for job in jobs.values()) >= JOBS - KILLS
    ended = (tmp_path / "ended").read_text().split()
    assert len(ended) == len(set(ended))

    bench.pass_time(ledger.RESERVED_S + 1)  # reservations of the dead
    bench.store.sweep()
    with bench.database.read() as connection:
        named = set(connection.execute(select(blobs.c.name).where(blobs.c.refs > 0)).scalars())
        assert set(connection.execute(select(blobs.c.name)).scalars()) == named
    assert bench.files() == named
    bench.check()


def not_yet(bench: Bench, expected: int) -> bool:
    """Whether some of the jobs have not been submitted yet."""
    from serve_app.jobs.table import jobs

    with bench.database.read() as connection:
        return len(connection.execute(select(jobs.c.number)).all()) < expected
