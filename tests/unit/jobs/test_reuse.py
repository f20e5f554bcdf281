"""Paintings that are used again: by jobs, and kept of /v1/stylize."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from jobstores import RECEIPT, REQUEST, Bench
from sqlalchemy import event, select

from serve_app.errors import BrokenImage, Gone, StoreFull, TooBusy
from serve_app.frames import EncodedImage
from serve_app.jobs import expiry
from serve_app.jobs.blobs import LocalBlobs
from serve_app.jobs.reuse import last_painted
from serve_app.jobs.table import jobs
from serve_app.jobs.words import Job, NewJob, Status
from serve_app.jobs.works import painter_name, photo_digest, work_digest

MakeBench = Callable[..., Bench]
TOON = painter_name("ab" * 32, "auto")
RETRAINED = painter_name("cd" * 32, "auto")
NEW = NewJob(REQUEST, b"photo", painter=TOON)


def painted(data: bytes = b"painting", painter: str = TOON) -> EncodedImage:
    return EncodedImage(data, "image/png", replace(RECEIPT, painter=painter))


def submit(bench: Bench, new: NewJob = NEW, client: str = "ann", **options: Any) -> Job:
    (job,) = bench.store.submit(client, [new], **options).jobs
    return job


def succeed(bench: Bench, new: NewJob = NEW, client: str = "ann", painting: EncodedImage | None = None) -> Job:
    job = submit(bench, new, client)
    assert job.status is Status.QUEUED
    assert bench.store.finish(bench.claim(), painting or painted())
    return bench.store.get(job.id)


def work(photo: bytes = b"photo", painter: str = TOON) -> str:
    digest = work_digest(photo_digest(photo), painter, REQUEST)
    assert digest is not None
    return digest


def keep(bench: Bench, client: str = "ann", data: bytes = b"painting", photo: bytes = b"photo") -> bool:
    return bench.store.paintings.keep(client, work(photo), REQUEST, painted(data))


def test_what_was_painted_already_succeeds_at_once_with_the_same_painting(bench: Bench) -> None:
    first = succeed(bench, painting=painted(b"once"))
    again = submit(bench)
    assert (again.status, again.attempt, again.started_at) == (Status.SUCCEEDED, 0, None)
    assert again.id != first.id
    assert again.created_at == again.finished_at
    assert bench.store.painting(again) == b"once"
    assert bench.store.photo(again) == b"photo"
    assert (again.media_type, again.work) == ("image/png", work())
    assert again.receipt == replace(RECEIPT, painter=TOON, reused=True, timings_ms={"decode": 0.0, "paint": 0.0})
    assert first.receipt == replace(RECEIPT, painter=TOON)
    assert bench.store.queue.claim() is None
    assert len(bench.files()) == 2
    bench.check()
    assert submit(bench).status is Status.SUCCEEDED  # and so on
    bench.check()


def test_jobs_that_end_as_they_are_made_are_announced(bench: Bench) -> None:
    succeed(bench)
    url = "https://hooks.example.org/"
    painted_before = submit(bench, replace(NEW, callback_url=url))
    broken = NewJob(REQUEST, b"a song", error=BrokenImage("It is a song."), callback_url=url)
    album = bench.store.submit("ann", [broken, replace(NEW, callback_url=url)]).jobs
    assert [job.status for job in album] == [Status.FAILED, Status.SUCCEEDED]
    assert [message.job for message in bench.messages()] == [painted_before.id, *(job.id for job in album)]


def test_no_client_gets_anything_of_another(bench: Bench) -> None:
    succeed(bench, client="ann")
    assert keep(bench, "cat")
    other = submit(bench, client="bob")
    assert (other.status, other.receipt, other.painting) == (Status.QUEUED, None, None)
    assert bench.store.paintings.find("bob", work()) is None
    assert len([name for name in bench.files() if name.startswith("photos/")]) == 2
    bench.check()


@pytest.mark.parametrize(
    "other",
    [
        replace(NEW, photo=b"photo."),
        replace(NEW, painter=RETRAINED),
        replace(NEW, painter=""),
        replace(NEW, request=replace(REQUEST, max_side=500)),
        replace(NEW, request=replace(REQUEST, multiple=1)),
        replace(NEW, request=replace(REQUEST, format="webp")),
        replace(NEW, request=replace(REQUEST, quality=90)),
    ],
)
def test_any_other_work_is_painted(bench: Bench, other: NewJob) -> None:
    succeed(bench)
    assert submit(bench, other).status is Status.QUEUED


def test_a_painting_counts_for_the_painter_that_painted_it(bench: Bench) -> None:
    """The Ingress asked for the retrained style, and a Stylizer painted in the one that it had loaded."""
    old = submit(bench, replace(NEW, painter=RETRAINED))
    assert bench.store.finish(bench.claim(), painted(b"old", TOON))
    assert bench.store.get(old.id).work == work(painter=TOON)
    assert submit(bench, replace(NEW, painter=RETRAINED)).status is Status.QUEUED
    assert bench.store.finish(bench.claim(), painted(b"new", RETRAINED))
    assert bench.store.painting(submit(bench, replace(NEW, painter=RETRAINED))) == b"new"


def test_what_nobody_says_who_has_painted_is_not_reused(bench: Bench) -> None:
    job = succeed(bench, painting=painted(painter=""))
    assert job.work is None
    assert submit(bench).status is Status.QUEUED


def test_a_job_that_is_not_finished_or_failed_is_not_reused(bench: Bench) -> None:
    submit(bench)
    assert submit(bench).status is Status.QUEUED
    for lease in (bench.claim(), bench.claim()):
        bench.store.queue.fail(lease, Gone("It is."))
    assert submit(bench).status is Status.QUEUED


@pytest.mark.parametrize("first_goes", [True, False])
def test_each_job_keeps_the_pictures_when_the_other_is_erased(bench: Bench, first_goes: bool) -> None:
    first, second = succeed(bench), submit(bench)
    gone, stays = (first, second) if first_goes else (second, first)
    bench.store.remove(gone.id)
    assert bench.store.painting(bench.store.get(stays.id)) == b"painting"
    assert bench.store.photo(bench.store.get(stays.id)) == b"photo"
    bench.check()
    bench.store.remove(stays.id)
    assert not bench.files()
    assert submit(bench).status is Status.QUEUED
    bench.check()


def test_an_expired_job_keeps_no_digest_of_its_picture(bench: Bench) -> None:
    job = succeed(bench)
    bench.store.remove(job.id)
    with bench.database.read() as connection:
        assert connection.execute(select(jobs.c.work_digest)).scalars().all() == [None]


def test_a_photo_that_has_expired_is_stored_anew(bench: Bench) -> None:
    succeed(bench)
    bench.pass_time(bench.settings.keep_photos_for_s + 1)
    bench.store.sweep()
    again = submit(bench)
    assert again.status is Status.SUCCEEDED
    assert bench.store.photo(again) == b"photo"
    bench.check()


def test_an_earlier_photograph_that_is_painted_again_is_reused_too(bench: Bench) -> None:
    first = succeed(bench)
    again = submit(bench, NewJob(REQUEST, source=first.id, painter=TOON))
    assert (again.status, again.photo) == (Status.SUCCEEDED, first.photo)
    assert submit(bench, NewJob(REQUEST, source=first.id, painter=RETRAINED)).status is Status.QUEUED
    bench.check()


def test_a_submission_may_reuse_a_part(bench: Bench) -> None:
    succeed(bench)
    new = [replace(NEW, photo=b"two"), NEW, NEW, replace(NEW, photo=b"three")]
    submission = bench.store.submit("ann", new, key="k")
    queued, done = Status.QUEUED, Status.SUCCEEDED
    assert [job.status for job in submission.jobs] == [queued, done, done, queued]
    again = bench.store.submit("ann", new, key="k")
    assert (again.is_new, [job.id for job in again.jobs]) == (False, [job.id for job in submission.jobs])
    bench.check()


def test_reused_jobs_take_no_place_in_the_queue(make_bench: MakeBench) -> None:
    bench = make_bench(max_queued=1)
    succeed(bench)
    submit(bench, replace(NEW, photo=b"waits"))
    with pytest.raises(TooBusy):
        submit(bench, replace(NEW, photo=b"too many"))
    assert submit(bench).status is Status.SUCCEEDED
    with pytest.raises(TooBusy):
        bench.store.submit("ann", [NEW, replace(NEW, photo=b"too many")])
    bench.check()


def test_an_idempotency_key_returns_the_reused_job(bench: Bench) -> None:
    succeed(bench)
    assert submit(bench, key="k").id == submit(bench, key="k").id


def test_a_painting_that_is_damaged_or_missing_is_painted_anew(bench: Bench) -> None:
    job = succeed(bench)
    assert job.painting is not None
    file = bench.folder / job.painting
    for spoil in (lambda: file.write_bytes(b"damage"), file.unlink):
        spoil()
        assert bench.store.paintings.find("ann", work()) is None
        assert submit(bench).status is Status.QUEUED


@pytest.fixture
def vanishing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Actions that happen between the look for an earlier painting and the submission."""
    actions: list[Callable[[], None]] = []
    get = LocalBlobs.get

    def get_and_act(self: LocalBlobs, name: str) -> bytes:
        data = get(self, name)
        while actions:
            actions.pop()()
        return data

    monkeypatch.setattr(LocalBlobs, "get", get_and_act)
    return actions


def test_pictures_that_are_erased_meanwhile_are_painted(bench: Bench, vanishing: list[Callable[[], None]]) -> None:
    first = succeed(bench)

    def erase() -> None:
        bench.store.remove(first.id)

    vanishing.append(erase)
    again = submit(bench)
    assert again.status is Status.QUEUED
    assert bench.store.photo(again) == b"photo"
    bench.check()


def test_a_photograph_that_is_let_go_meanwhile_is_not_needed(bench: Bench, vanishing: list[Callable[[], None]]) -> None:
    first = succeed(bench)

    def drop() -> None:
        with bench.database.write() as connection:
            expiry.drop_photos(connection, [first.number])

    vanishing.append(drop)
    again = submit(bench)
    assert (again.status, again.photo) == (Status.SUCCEEDED, None)
    assert bench.store.painting(again) == b"painting"
    bench.check()


def test_reuse_erasure_and_eviction_at_the_same_time_leave_every_count_right(make_bench: MakeBench) -> None:
    bench = make_bench()
    photos = [b"photo %d" % number for number in range(4)]

    def act(number: int) -> None:
        new = replace(NEW, photo=photos[number % 4])
        other = replace(NEW, photo=photos[(number + 1) % 4])
        made = bench.store.submit("ann", [other, new] if number % 2 else [new, other]).jobs
        while lease := bench.store.queue.claim():
            bench.store.finish(lease, painted(b"of %d" % number))
        if number % 3 == 0:
            bench.store.remove(made[0].id)
        if number % 5 == 0:
            with bench.database.write() as connection:
                expiry.evict(connection, "ann", 1)
        keep(bench, data=b"kept %d" % number, photo=photos[number % 4])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(act, range(60)))
    while lease := bench.store.queue.claim():
        bench.store.finish(lease, painted())
    bench.store.sweep()
    bench.check()
    bench.store.erase_finished()
    assert not bench.files()
    bench.check()


class TestKept:
    """Paintings of /v1/stylize."""

    def test_one_is_found_for_a_while_and_leaves_no_trace(self, bench: Bench) -> None:
        assert keep(bench)
        found = bench.store.paintings.find("ann", work())
        assert found is not None
        assert (found.data, found.media_type) == (b"painting", "image/png")
        assert found.receipt == replace(RECEIPT, painter=TOON, reused=True, timings_ms={"decode": 0.0, "paint": 0.0})
        bench.check()
        bench.pass_time(bench.settings.keep_stylized_for_s + 1)
        bench.store.sweep()
        assert bench.store.paintings.find("ann", work()) is None
        assert not bench.files()
        with bench.database.read() as connection:
            assert connection.execute(select(jobs.c.id)).first() is None

    def test_it_is_kept_once_and_no_longer_than_a_job(self, make_bench: MakeBench) -> None:
        bench = make_bench(keep_for_s=60)
        assert keep(bench)
        assert not keep(bench)
        assert len(bench.files()) == 1
        bench.pass_time(61)
        bench.store.sweep()
        assert bench.store.paintings.find("ann", work()) is None

    def test_a_job_may_reuse_it_and_outlives_it(self, bench: Bench) -> None:
        keep(bench)
        job = submit(bench)
        assert job.status is Status.SUCCEEDED
        bench.pass_time(bench.settings.keep_stylized_for_s + 1)
        bench.store.sweep()
        assert bench.store.painting(bench.store.get(job.id)) == b"painting"
        bench.check()

    def test_nothing_goes_for_it(self, make_bench: MakeBench) -> None:
        bench = make_bench(max_stored_bytes=1000)
        job = succeed(bench, painting=painted(bytes(600)))
        with pytest.raises(StoreFull):
            keep(bench, "bob", bytes(400), b"other")
        with pytest.raises(StoreFull):
            keep(bench, "ann", bytes(200), b"other")  # her share
        assert bench.store.painting(bench.store.get(job.id)) == bytes(600)
        bench.check()

    def test_it_goes_for_a_job(self, make_bench: MakeBench) -> None:
        bench = make_bench(max_stored_bytes=1000)
        old = succeed(bench, replace(NEW, photo=b"1"), "bob", painted(bytes(200)))
        assert keep(bench, "ann", bytes(600))
        succeed(bench, replace(NEW, photo=b"2"), "bob", painted(bytes(400)))
        assert bench.store.get(old.id).status is Status.SUCCEEDED
        assert bench.store.paintings.find("ann", work()) is None
        bench.check()

    def test_a_full_disk_keeps_none(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        spare = bench.with_settings(min_free_bytes=1000)
        monkeypatch.setattr(LocalBlobs, "free_bytes", lambda self: 900)
        with pytest.raises(StoreFull):
            keep(spare)
        spare.close()

    def test_it_is_no_job_that_is_counted(self, bench: Bench) -> None:
        keep(bench)
        assert bench.store.census().jobs == {}
        assert bench.store.tally().jobs == {}
        submit(bench)
        assert bench.store.census().jobs == {"ann": {Status.SUCCEEDED: 1}}


def test_the_pace_is_that_of_jobs_that_were_painted(bench: Bench) -> None:
    job = succeed(bench)
    with bench.database.write() as connection:  # it took 10 s
        connection.execute(jobs.update().values(started_at=jobs.c.finished_at - 10_000, pixels=1000))
    for number in range(60):  # more than are measured
        submit(bench)
        keep(bench, photo=b"%d" % number)
    waits = submit(bench, NewJob(REQUEST, b"other", pixels=2000))
    outlook = bench.store.positions.outlook_now(waits.id)
    assert outlook is not None
    assert outlook.position == 0
    assert outlook.eta_s == pytest.approx(20)
    assert bench.store.get(job.id).started_at is not None


def test_the_look_reads_an_index(bench: Bench) -> None:
    keep(bench)
    with bench.database.write() as connection:
        row = dict(connection.execute(select(jobs)).mappings().one())
        many = [{**row, "number": 10 + n, "id": f"{n}", "work_digest": f"{n}", "painting": "x"} for n in range(3000)]
        connection.execute(jobs.insert(), many)
        if not bench.database.is_sqlite:
            connection.exec_driver_sql("ANALYZE jobs")
    plans = []

    @event.listens_for(bench.database.engine, "before_cursor_execute")
    def explain(connection, cursor, statement, parameters, context, executemany):  # type: ignore[no-untyped-def]
        if statement.startswith("SELECT"):
            cursor.execute(("EXPLAIN QUERY PLAN " if bench.database.is_sqlite else "EXPLAIN ") + statement, parameters)
            plans.append("\n".join(str(row) for row in cursor.fetchall()))

    with bench.database.read() as connection:
        last_painted(connection, "ann", "7")
    assert "jobs_works" in plans[-1]
    with bench.database.write() as connection:
        connection.execute(jobs.delete().where(jobs.c.painting == "x"))
