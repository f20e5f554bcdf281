"""Jobs in a real service whose processes are killed: each that was accepted ends, once, with the right picture.

`scripts/chaos` kills every part of it, with sixty jobs in flight and requests beside them, on both databases.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from benchmarks.postgres import PostgresServer, find_binaries
from followers import Follower
from jobservice import JobService, broken_photograph, kill_everything, kill_replica, photographs
from pictures import photo_bytes
from service import CHAOS, Service, wait_for

MakeService = Callable[..., JobService]
PARTS = ("JobRunner", "Stylizer", "Ingress", "Codec", "everything")
PATIENCE_S = 240


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    """Makes services with jobs, and closes their stores."""
    made: list[JobService] = []

    def make(database_url: str | None = None, **runner: Any) -> JobService:
        made.append(JobService(tmp_path, database_url, **runner))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty database of a server of its own."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed")
    server = PostgresServer(binaries)
    yield server.new_database()
    server.remove()


def has_begun(jobs: JobService, submitted: Any) -> Callable[[], bool]:
    """Whether some have been painted, and others wait or are at work."""

    def begun() -> bool:
        found = jobs.count(submitted)
        return found["succeeded"] > 0 and found["queued"] + found["running"] > 0

    return begun


def test_jobs_outlive_their_runner_and_the_whole_service(make_service: MakeService) -> None:
    jobs = make_service()
    photos = [*photographs(11, side=160), broken_photograph()]
    with jobs.running() as service:
        expected = jobs.synchronous(photos)
        first = jobs.submit(photos)
        wait_for(has_begun(jobs, first), 60)
        killed = kill_replica(service, "JobRunner")
        jobs.wait_for_ends(first, PATIENCE_S)
        assert service.replica("JobRunner").pid != killed
        jobs.check_ends(first, expected)
        second = jobs.submit(photos)
        wait_for(has_begun(jobs, second), 60)
        kill_everything(service)
    with jobs.running():
        jobs.wait_for_ends(second, PATIENCE_S)
        jobs.check_ends([*first, *second], expected * 2)


def test_service_that_stops_hands_its_jobs_back_at_once(make_service: MakeService) -> None:
    jobs = make_service(lease_s=600)
    photos = photographs(6, side=320)
    with jobs.running():
        submitted = jobs.submit(photos)
        wait_for(lambda: jobs.count(submitted)["running"] > 0, 30)
    assert jobs.count(submitted)["running"] == 0
    assert jobs.count(submitted)["queued"] > 0
    assert all(job.attempt <= 1 for job in jobs.bench.store.find([job.id for job in submitted]).values())


@CHAOS
def test_an_album_is_followed_in_one_stream_across_a_restart(make_service: MakeService) -> None:
    jobs = make_service()
    forms = [("image", (f"{number}.jpg", photo)) for number, photo in enumerate(photographs(50, side=160))]
    with jobs.running() as service:
        answer = requests.post(f"{jobs.address}/v1/jobs", files=forms, timeout=60)
        assert answer.status_code == 202, answer.text
        ids = [job["id"] for job in answer.json()["jobs"]]
        assert len(set(ids)) == 50
        follower = Follower(jobs.address, ids)
        wait_for(lambda: follower.ends.total() >= 5, 60)
        kill_everything(service)
        assert follower.ends.total() < 50
    with jobs.running():
        follower.thread.join(PATIENCE_S)
    assert not follower.thread.is_alive()
    assert follower.ends == Counter({("done", job_id): 1 for job_id in ids})
    assert follower.statuses[-1] == 204
    assert follower.statuses.count(200) >= 2


@contextmanager
def requests_beside(service: Service) -> Iterator[Counter[int]]:
    """Two people who send one photograph after another; yields the statuses of their answers, 0 for a broken one."""
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def send(seed: int) -> None:
        while not done.wait(0.2):
            try:
                url, photo = f"{service.address}/v1/stylize", photo_bytes(96, 96, seed=seed)
                statuses[requests.post(url, data=photo, timeout=120).status_code] += 1
            except requests.RequestException:
                statuses[0] += 1

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        done.set()
        for thread in threads:
            thread.join(130)


@CHAOS
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_job_is_lost_whatever_is_killed(
    make_service: MakeService, request: pytest.FixtureRequest, database: str, part: str
) -> None:
    jobs = make_service(request.getfixturevalue("postgres_url") if database == "postgresql" else None)
    photos = [*photographs(58, side=128), broken_photograph(), b"no picture"]
    with jobs.running() as service:
        expected = jobs.synchronous(photos)
        submitted = jobs.submit(photos)
        with requests_beside(service) as statuses:
            wait_for(has_begun(jobs, submitted), 60)
            print(f"{database}: {part} is killed while there are {dict(jobs.count(submitted))}")
            if part == "everything":
                kill_everything(service)
            else:
                kill_replica(service, part)
                jobs.wait_for_ends(submitted, PATIENCE_S)
                jobs.check_ends(submitted, expected)
    if part == "everything":
        with jobs.running():
            jobs.wait_for_ends(submitted, PATIENCE_S)
            jobs.check_ends(submitted, expected)
    found = jobs.bench.store.find([job.id for job in submitted]).values()
    print(f"attempts: {dict(Counter(job.attempt for job in found))}; requests beside them: {dict(statuses)}")
