"""Transactions of several processes at once never wait for each other in a circle."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from jobstores import REQUEST, Bench

from serve_app.errors import Gone, NotFinished, UnknownJob
from serve_app.jobs import expiry, storage
from serve_app.jobs.words import Job, NewJob

MakeBench = Callable[..., Bench]
ROUNDS, CLIENTS, JOBS = 12, 4, 12


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "BATCH", 4)
    monkeypatch.setattr(storage, "DELETED_AT_A_TIME", 5)


def finished_submissions(bench: Bench, round_: int) -> Iterator[Job]:
    """Jobs of several submissions with a key each, finished in an order of their own."""
    for client in range(CLIENTS):
        photos = [NewJob(REQUEST, b"%d %d %d" % (round_, client, number)) for number in range(JOBS)]
        yield from bench.store.submit(f"client {client}", photos, key=str(round_)).jobs
    leases = [bench.claim() for _ in range(CLIENTS * JOBS)]
    random.shuffle(leases)
    for lease in leases:
        bench.store.queue.retry(lease, Gone("again")) if lease.job.number % 7 == 0 else bench.store.queue.cancel(
            lease.job.id
        )


def test_sweeps_erasures_and_jobs_of_old_photographs_do_not_block_each_other(make_bench: MakeBench) -> None:
    bench = make_bench(lease_s=2, keep_for_s=1000, keep_photos_for_s=500)

    def again(jobs: list[Job]) -> None:
        for _ in range(4):
            with suppress(Gone, UnknownJob):
                sources = random.sample(jobs, 4)
                bench.store.submit("other", [NewJob(REQUEST, source=job.id) for job in sources])

    def erase(jobs: list[Job]) -> None:
        for job in random.sample(jobs, 6):
            with suppress(Gone, UnknownJob, NotFinished):
                bench.store.remove(job.id)

    def sweep(_: list[Job]) -> None:
        bench.store.sweep(strays=False)

    with ThreadPoolExecutor(7) as pool:
        for round_ in range(ROUNDS):
            jobs = list(finished_submissions(bench, round_))
            bench.pass_time(600 if round_ % 2 else 1200)
            work = [sweep, sweep, sweep, again, again, erase, erase]
            for outcome in [pool.submit(action, jobs) for action in work]:
                outcome.result()  # a deadlock is a StoreUnavailable
            while lease := bench.store.queue.claim():
                bench.store.queue.cancel(lease.job.id)
    bench.pass_time(5000)
    bench.store.sweep()
    bench.check()
