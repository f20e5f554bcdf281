"""Removing jobs in every state, expiry, and what is remembered of them."""

from collections.abc import Callable

import pytest
from jobstores import REQUEST, Bench, painting
from sqlalchemy import select

from serve_app.errors import BrokenImage, Gone, NotFinished, UnknownJob
from serve_app.jobs.table import jobs
from serve_app.jobs.words import Job, NewJob, Status

MakeBench = Callable[..., Bench]

DAY = 86_400


def queued(bench: Bench) -> Job:
    return bench.submit()


def running(bench: Bench) -> Job:
    job = bench.submit()
    bench.claim()
    return job


def succeeded(bench: Bench) -> Job:
    return bench.succeed()


def failed(bench: Bench) -> Job:
    job = bench.submit()
    bench.store.queue.fail(bench.claim(), BrokenImage("It is broken."))
    return job


def cancelled(bench: Bench) -> Job:
    return bench.store.remove(bench.submit().id)


def test_removing_a_waiting_job_cancels_it_and_its_photograph_goes(bench: Bench) -> None:
    job = queued(bench)
    assert bench.store.remove(job.id).status is Status.CANCELLED
    assert bench.store.queue.claim() is None
    assert bench.files() == set()
    bench.check()


def test_removing_a_running_job_cancels_it_and_its_worker_is_told(bench: Bench) -> None:
    job = bench.submit()
    lease = bench.claim()
    assert bench.store.remove(job.id).status is Status.CANCELLED
    assert not bench.store.queue.renew(lease)
    assert not bench.store.finish(lease, painting())
    assert bench.store.get(job.id).status is Status.CANCELLED
    assert bench.files() == set()
    bench.check()


@pytest.mark.parametrize("make", [succeeded, failed, cancelled])
def test_removing_a_finished_job_erases_it(bench: Bench, make: Callable[[Bench], Job]) -> None:
    job = make(bench)
    erased = bench.store.remove(job.id)
    assert erased == Job(
        id=job.id,
        number=job.number,
        client="",
        status=Status.EXPIRED,
        request=None,
        attempt=erased.attempt,
        created_at=job.created_at,
        started_at=erased.started_at,
        finished_at=erased.finished_at,
        expires_at=erased.expires_at,
    )
    assert bench.files() == set()
    with pytest.raises(Gone):
        bench.store.get(job.id)
    with pytest.raises(Gone):
        bench.store.remove(job.id)
    bench.check()


def test_what_is_not_there_is_told_clearly_in_every_state(bench: Bench) -> None:
    for make in (queued, running):
        job = bench.store.get(make(bench).id)
        with pytest.raises(NotFinished):
            bench.store.painting(job)
        bench.store.remove(job.id)
        with pytest.raises(Gone, match="cancelled"):
            bench.store.painting(bench.store.get(job.id))
        with pytest.raises(Gone):
            bench.store.photo(bench.store.get(job.id))
    with pytest.raises(Gone, match="failed"):
        bench.store.painting(bench.store.get(failed(bench).id))
    with pytest.raises(UnknownJob):
        bench.store.get("no such id")
    with pytest.raises(UnknownJob):
        bench.store.remove("no such id")


def test_photograph_goes_before_the_painting_and_the_id_is_forgotten_last(bench: Bench) -> None:
    job = bench.succeed()
    assert bench.store.sweep().photos == 0
    bench.pass_time(3601)
    assert bench.store.sweep().photos == 1
    assert bench.store.get(job.id).photo is None
    assert bench.store.painting(bench.store.get(job.id)) == b"painting"
    bench.pass_time(DAY)
    assert bench.store.sweep().expired == 1
    assert bench.files() == set()
    with pytest.raises(Gone):
        bench.store.get(job.id)
    bench.pass_time(7 * DAY + 1)
    assert bench.store.sweep().forgotten == 1
    with pytest.raises(UnknownJob):
        bench.store.get(job.id)
    bench.check()


@pytest.mark.parametrize("make", [succeeded, failed, cancelled])
def test_finished_job_of_every_kind_expires(bench: Bench, make: Callable[[Bench], Job]) -> None:
    job = make(bench)
    bench.pass_time(DAY - 60)
    assert bench.store.sweep().expired == 0
    bench.pass_time(61)
    assert bench.store.sweep().expired == 1
    assert bench.store.find([job.id])[job.id].status is Status.EXPIRED
    assert bench.files() == set()
    bench.check()


@pytest.mark.parametrize("make", [queued, running])
def test_unfinished_job_never_expires(bench: Bench, make: Callable[[Bench], Job]) -> None:
    job = make(bench)
    bench.pass_time(30 * DAY)
    swept = bench.store.sweep()
    assert (swept.expired, swept.photos, swept.forgotten) == (0, 0, 0)
    assert bench.store.get(job.id).status is Status.QUEUED
    assert bench.store.photo(bench.store.get(job.id)) == b"photo"


def test_nothing_is_kept_longer_when_the_clock_is_set_back(bench: Bench) -> None:
    job = bench.succeed()
    erased = bench.succeed()
    bench.store.remove(erased.id)
    bench.pass_time(-365 * DAY)
    bench.store.sweep()
    bench.pass_time(3700)
    assert bench.store.sweep().photos == 1
    bench.pass_time(DAY)
    assert bench.store.sweep().expired == 1
    bench.pass_time(7 * DAY + 1)
    assert bench.store.sweep().forgotten == 2
    assert bench.files() == set()
    with pytest.raises(UnknownJob):
        bench.store.get(job.id)


def test_shorter_times_hold_for_jobs_that_are_finished_already(make_bench: MakeBench) -> None:
    make_bench().succeed()
    bench = make_bench(keep_for_s=600, keep_photos_for_s=60)
    bench.store.sweep()
    bench.pass_time(61)
    assert bench.store.sweep().photos == 1
    bench.pass_time(600)
    assert bench.store.sweep().expired == 1


def test_sweep_of_many_takes_all_of_them(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.jobs import expiry, storage

    monkeypatch.setattr(expiry, "BATCH", 3)
    monkeypatch.setattr(storage, "DELETED_AT_A_TIME", 2)
    bench = make_bench(keep_photos_for_s=0)
    bench.store.submit("ann", [NewJob(REQUEST, bytes([n])) for n in range(10)])
    for _ in range(10):
        assert bench.store.finish(bench.claim(), painting())
    bench.pass_time(1)
    assert bench.store.sweep().photos == 10
    bench.pass_time(DAY)
    swept = bench.store.sweep()
    assert (swept.expired, swept.blobs) == (10, 10)
    bench.check()


def test_nothing_of_a_client_stays_in_the_row_of_an_erased_job(bench: Bench) -> None:
    job = bench.submit("secret client", key="secret key")
    bench.store.finish(bench.claim(), painting())
    bench.store.remove(job.id)
    with bench.database.read() as connection:
        row = connection.execute(select(jobs)).mappings().one()
    assert row["pixels"] == 0
    left = {name for name, value in row.items() if value not in (None, "") and name != "pixels"}
    assert left == {
        "number",
        "id",
        "status",
        "turn",
        "part",
        "attempt",
        "lease_ms",
        "created_at",
        "started_at",
        "finished_at",
        "expires_at",
    }
