"""A real service with jobs: submitted through the store, killed in parts or as a whole, and looked at afterwards."""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import yaml
from jobstores import Bench
from pictures import opened, photo_bytes
from pydantic import ByteSize
from service import ANIMEGAN, LOCAL_CONFIG, Service, changed_config, running, wait_for

from serve_app.frames import StylizeRequest
from serve_app.jobs.words import Job, NewJob, Status
from serve_app.settings import JobsSettings

REQUEST = StylizeRequest(style="toon", max_side=512, multiple=4, format="png")
LEASE_S = 4.0


class JobService:
    """A config with jobs, the service that runs it, and its store.

    Args:
        folder: for the config, the log and the data.
        database_url: of an empty database; None is SQLite.
    """

    def __init__(self, folder: Path, database_url: str | None = None, lease_s: float = LEASE_S, **runner: Any) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.address = changed_config(LOCAL_CONFIG, self.config)
        self.settings = JobsSettings(
            enabled=True,
            data_dir=folder / "data",
            database_url=database_url,
            lease_s=lease_s,
            min_free_bytes=ByteSize(0),
            keep_stylized_for_s=0,
        )
        document = yaml.safe_load(self.config.read_text())
        application = document["applications"][0]
        application["args"]["jobs"] = self.settings.model_dump(
            mode="json",
            include={"enabled", "data_dir", "database_url", "lease_s", "min_free_bytes", "keep_stylized_for_s"},
        )
        for deployment in application["deployments"]:
            if deployment["name"] == "JobRunner":
                deployment["user_config"] |= {"sweep_s": 5, **runner}
        self.config.write_text(yaml.safe_dump(document))
        self.bench = Bench(self.settings)
        self.starts = 0

    @contextmanager
    def running(self) -> Iterator[Service]:
        """The service in a process of its own, until the end of the block; a new log for each start."""
        self.starts += 1
        log = self.folder / f"log-{self.starts}"
        with running([*ANIMEGAN, "run", str(self.config)], self.address, log) as service:
            yield service

    def submit(self, photos: Sequence[bytes], clients: int = 3) -> list[Job]:
        """A job for each photograph, of several clients in turn."""
        return [
            self.bench.store.submit(f"client {number % clients}", [NewJob(REQUEST, photo)]).jobs[0]
            for number, photo in enumerate(photos)
        ]

    def count(self, jobs: Sequence[Job]) -> Counter[str]:
        """Jobs by status."""
        return Counter(str(job.status) for job in self.bench.store.find([job.id for job in jobs]).values())

    def wait_for_ends(self, jobs: Sequence[Job], timeout_s: float) -> None:
        def all_ended() -> bool:
            found = self.count(jobs)
            return not found["queued"] and not found["running"]

        wait_for(all_ended, timeout_s)

    def synchronous(self, photos: Sequence[bytes]) -> list[Any]:
        """What `/v1/stylize` makes of photographs, as arrays; None where it refuses them."""
        query: dict[str, str | int] = {"max_side": REQUEST.max_side, "format": "png", "style": "toon"}
        answers = [
            requests.post(f"{self.address}/v1/stylize", data=photo, params=query, timeout=280) for photo in photos
        ]
        return [np.asarray(opened(answer.content), float) if answer.ok else None for answer in answers]

    def check_ends(self, jobs: Sequence[Job], expected: Sequence[Any]) -> None:
        """Every job has ended, every picture is the synchronous one, and nothing else is stored."""
        found = self.bench.store.find([job.id for job in jobs])
        assert len(found) == len(jobs)
        for job, picture in zip(jobs, expected, strict=True):
            ended = found[job.id]
            if picture is None:
                assert ended.status == Status.FAILED, ended
                assert ended.problem
                assert ended.problem["detail"]
                continue
            assert ended.status == Status.SUCCEEDED, ended
            painted = np.asarray(opened(self.bench.store.painting(ended)), float)
            assert np.abs(painted - picture).max() <= 1
        self.bench.pass_time(61)  # reservations of whoever died have run out
        self.bench.store.sweep()
        self.bench.check()
        succeeded = sum(picture is not None for picture in expected)
        assert len([name for name in self.bench.files() if name.startswith("paintings/")]) == succeeded

    def close(self) -> None:
        self.bench.close()


def photographs(count: int, side: int = 96) -> list[bytes]:
    """Photographs of several sizes, all different."""
    return [photo_bytes(side - 8 * (seed % 3), side + 8 * (seed % 4), "PNG", seed) for seed in range(count)]


def broken_photograph() -> bytes:
    """A file that begins like a picture."""
    return photo_bytes(64, 64, "PNG", 99)[:-200]


def kill_replica(service: Service, deployment: str) -> int:
    """Kills the only replica of a deployment at once, and returns its process id."""
    process = service.replica(deployment)
    process.kill()
    return process.pid


def kill_everything(service: Service) -> None:
    """Kills every process of the service at once: as if the power had failed, but for what the kernel still writes."""
    (serving,) = psutil.Process(service.process.pid).children()
    session = os.getsid(serving.pid)
    service.process.kill()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session:
                process.send_signal(signal.SIGKILL)
    service.process.wait(30)
