"""Processes whose clocks are wrong by hours, beside one whose clock is right: no job is taken away, lost or doubled.

PostgreSQL has a clock of its own. The clock of an SQLite database is that of whichever process asks.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobstores import Bench
from service import wait_for
from shared import ROOT

from serve_app.jobs.words import Status

MakeBench = Callable[..., Bench]

RUNNER = ROOT / "tests" / "support" / "runner_process.py"
LEASE_S, PAINT_S = 1.6, 2.0  # painting takes longer than a lease lasts
JOBS = 4
PATIENCE_S = 60

pytestmark = pytest.mark.slow


def find_libfaketime() -> Path | None:
    """Where Debian's package `faketime` puts its library."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


@contextmanager
def runner_process(bench: Bench, log: Path, offset: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A runner by a clock that is wrong by an offset; the clock that only counts seconds is right, as always."""
    library = find_libfaketime()
    if library is None:
        pytest.skip("libfaketime is not installed (Debian's package `faketime`)")
    paths = [str(RUNNER.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    faked = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(faked if offset else {})}
    command = [sys.executable, str(RUNNER), bench.settings.model_dump_json(), str(log), str(PAINT_S)]
    process = subprocess.Popen(command, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("database_url", "offset"),
    [("sqlite", "+5h"), ("sqlite", "-5h"), ("postgresql", "-5h")],
    indirect=["database_url"],
)
def test_runner_whose_clock_is_wrong_takes_loses_and_doubles_nothing(
    make_bench: MakeBench, tmp_path: Path, offset: str
) -> None:
    bench = make_bench(lease_s=LEASE_S)
    log = tmp_path / "begun"
    log.touch()
    victim = bench.submit(photo=b"endless")
    with runner_process(bench, log, offset) as process:  # it dies with a job
        wait_for(lambda: log.read_bytes() == b"endless\n", PATIENCE_S)
        if bench.database.is_sqlite:
            started_at = bench.store.get(victim.id).started_at
            assert started_at is not None
            assert abs(started_at.timestamp() - time.time()) > 4 * 3600  # or nothing would be shown here
        process.kill()
    jobs = [bench.submit(photo=b"photo %d" % number) for number in range(JOBS)]
    everything = [victim, *jobs]
    with runner_process(bench, log, offset), runner_process(bench, log, ""):
        wait_for(lambda: not bench.unfinished(), PATIENCE_S)
    found = bench.store.find([job.id for job in everything])
    assert {job.status for job in found.values()} == {Status.SUCCEEDED}
    assert [found[job.id].attempt for job in everything] == [2, *[1] * JOBS]
    begun = Counter(log.read_text().splitlines())
    assert begun == {"endless": 2} | {f"photo {number}": 1 for number in range(JOBS)}
    for number, job in enumerate(jobs):
        assert bench.store.painting(found[job.id]) == (b"photo %d" % number)[::-1]
    bench.store.sweep()
    bench.check()
