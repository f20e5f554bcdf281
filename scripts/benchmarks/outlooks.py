"""How good the estimates of jobs are, on a real service with a steady load: `scripts/bench outlooks`.

First a few jobs are painted one after another, which gives the pace. Then jobs arrive by chance (Poisson) at a part of
that pace, and each answer's `eta_s` is compared with the time from its submission to its end. A good estimate is within
30 % or 2 s.
"""

import argparse
import random
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
import yaml

from benchmarks.paths import LOCAL_CONFIG
from benchmarks.photographs import photograph
from benchmarks.reporting import Row, collect, percentile, report
from benchmarks.servers import ANIMEGAN, free_port, running
from serve_app.frames import Size

LEAST_S, LEAST_PART = 2.0, 0.3  # of error that a good estimate may have
TIMEOUT_S = 900
FIRST_JOBS = 6  # that give the pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--sides", type=int, nargs="+", default=[256], help="of the photographs, drawn by chance")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.9, 1.2], help="times the pace")
    parser.add_argument("--jobs", type=int, default=60, help="of each load")


def run(options: argparse.Namespace) -> None:
    """Estimates at submission against the time that the jobs took."""
    report(options.out, "outlooks", collect(measure(options, load) for load in options.loads))


def measure(options: argparse.Namespace, load: float) -> Row:
    """Runs a service of its own and puts a load on it."""
    config = yaml.safe_load(LOCAL_CONFIG.read_text())
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    url = f"http://127.0.0.1:{port}/v1/jobs"
    options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        path = Path(folder) / "service.yaml"
        path.write_text(yaml.safe_dump(config))
        with running([*ANIMEGAN, "run", str(path)], port, Path(folder) / "service.log"):
            chance = random.Random(1)
            photographs = [photograph(side, Size(side, side), "JPEG") for side in options.sides]
            first = [submit(url, chance.choice(photographs), number) for number in range(FIRST_JOBS)]
            done = [finished(url, each["id"]) for each in first]
            pause_s = max(at(each["finished_at"]) for each in done) - min(at(each["started_at"]) for each in done)
            pause_s /= FIRST_JOBS * load
            jobs = []
            for number in range(FIRST_JOBS, FIRST_JOBS + options.jobs):
                jobs.append(submit(url, chance.choice(photographs), number))
                time.sleep(chance.expovariate(1 / pause_s))
            took = [(each["eta_s"], duration(finished(url, each["id"]))) for each in jobs]
    errors = [abs(eta - seconds) for eta, seconds in took]
    good = [error <= max(LEAST_S, LEAST_PART * seconds) for error, (_, seconds) in zip(errors, took, strict=True)]
    return {
        "sides": " ".join(map(str, options.sides)),
        "load": load,
        "jobs": len(took),
        "took, median s": percentile([seconds for _, seconds in took], 50),
        "took, longest s": max(seconds for _, seconds in took),
        "error, median s": percentile(errors, 50),
        "error, 90 % s": percentile(errors, 90),
        "within 30 % or 2 s": f"{100 * sum(good) / len(good):.0f} %",
    }


def submit(url: str, photo: bytes, number: int) -> Any:
    """Submits a photograph, each time as another file so that none is reused; returns the job as the answer has it."""
    comment = b"\xff\xfe\x00\x06%04d" % number  # after the first marker of a JPEG
    answer = requests.post(url, data=photo[:2] + comment + photo[2:], timeout=60)
    answer.raise_for_status()
    return answer.json()


def finished(url: str, job_id: str) -> Any:
    """Waits for the end of a job and returns it."""
    deadline = time.monotonic() + TIMEOUT_S
    while (job := requests.get(f"{url}/{job_id}", timeout=60).json())["status"] in ("queued", "running"):
        if time.monotonic() > deadline:
            raise SystemExit(f"a job was not finished after {TIMEOUT_S} s: {job}")
        time.sleep(0.5)
    if job["status"] != "succeeded":
        raise SystemExit(f"a job failed: {job}")
    return job


def duration(job: Any) -> float:
    """Returns the seconds from the submission of a job to its end."""
    return at(job["finished_at"]) - at(job["created_at"])


def at(moment: str) -> float:
    """Returns a time of the API in seconds."""
    return datetime.fromisoformat(moment).timestamp()
