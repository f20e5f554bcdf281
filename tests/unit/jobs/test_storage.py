"""Bounds of bytes: what goes when there is no room, and who is refused."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobstores import REQUEST, Bench, painting

from serve_app.errors import Gone, RequestError, StoreFull, StoreUnavailable
from serve_app.jobs import ledger
from serve_app.jobs.blobs import LocalBlobs
from serve_app.jobs.words import NewJob, Status

MakeBench = Callable[..., Bench]


def picture(size: int = 1000) -> bytes:
    return os.urandom(size)


def used(bench: Bench) -> int:
    with bench.database.read() as connection:
        return ledger.bytes_used(connection)


def test_oldest_finished_pictures_go_first_photographs_before_paintings(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=5600, client_share=1)
    first = bench.succeed(photo=picture(), painted=picture())
    second = bench.succeed(photo=picture(), painted=picture())
    third = bench.submit(photo=picture())
    assert used(bench) == 5000

    bench.submit(photo=picture())
    assert [bench.store.get(job.id).photo is None for job in (first, second, third)] == [True, False, False]
    bench.submit(photo=picture())
    assert bench.store.get(second.id).photo is None
    assert bench.store.painting(bench.store.get(first.id))
    bench.submit(photo=picture())
    with pytest.raises(Gone):
        bench.store.get(first.id)
    assert bench.store.painting(bench.store.get(second.id))
    bench.submit(photo=picture())
    with pytest.raises(StoreFull) as caught:
        bench.submit(photo=picture())
    assert (caught.value.limit, caught.value.actual, caught.value.unit) == (5040, 6000, "bytes")
    assert used(bench) == 5000
    bench.check()


def test_client_that_fills_its_share_loses_its_own_pictures_and_nobody_elses(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=11_200, client_share=0.4)
    bob = bench.succeed("bob", picture(), picture())
    ann = bench.succeed("ann", picture(), picture())
    for _ in range(4):
        bench.submit("ann", picture())
    with pytest.raises(Gone):
        bench.store.get(ann.id)
    with pytest.raises(StoreFull, match="Your share"):
        bench.submit("ann", picture())
    assert bench.store.get(bob.id).photo is not None
    bench.submit("bob", picture())
    bench.check()


def test_photograph_larger_than_a_share_is_refused_and_nothing_goes_for_it(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=10_000)
    old = bench.succeed(photo=picture(), painted=picture())
    with pytest.raises(StoreFull):
        bench.submit(photo=picture(9000))
    assert bench.store.get(old.id).photo is not None
    bench.check()


def test_painting_that_finds_no_room_leaves_its_job_running_so_that_it_can_be_failed(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=2000, client_share=1)
    job = bench.submit(photo=picture())
    bench.submit(photo=picture(700))
    lease = bench.claim()
    with pytest.raises(StoreFull) as caught:
        bench.store.finish(lease, painting(picture()))
    assert bench.store.queue.fail(lease, caught.value)
    problem = bench.store.get(job.id).problem
    assert problem is not None
    assert problem["code"] == "store-full"
    bench.check()


def test_store_that_is_full_of_waiting_photographs_can_still_take_their_paintings(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=10_000, client_share=1)
    ids = [bench.submit(photo=picture()).id for _ in range(9)]
    with pytest.raises(StoreFull):
        bench.submit(photo=picture())
    for job_id in ids:
        assert bench.store.finish(bench.claim(), painting(picture(900)))
        assert bench.store.get(job_id).status is Status.SUCCEEDED
    assert [len(bench.store.painting(bench.store.get(job_id))) for job_id in ids] == [900] * 9
    bench.check()


def test_the_bound_holds_however_many_write_at_a_time(make_bench: MakeBench) -> None:
    bench = make_bench(max_stored_bytes=7800, client_share=1)

    def submit(_: int) -> bool:
        try:
            bench.submit(photo=picture())
        except StoreFull:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(submit, range(12))) == 7
    assert used(bench) == 7000
    bench.check()


def test_client_whose_last_picture_goes_may_store_another_at_that_moment(bench: Bench) -> None:
    """The row of its bytes is removed when they are none, and each of these removes it."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bench.store.probe(10), range(60)))
    assert used(bench) == 0
    bench.check()


def test_disk_is_left_some_room(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(min_free_bytes=10_000)
    free = 12_500
    monkeypatch.setattr(LocalBlobs, "free_bytes", lambda self: free - used(bench))
    old = bench.succeed(photo=picture(), painted=picture())
    bench.submit(photo=picture())
    assert bench.store.get(old.id).photo is None
    free = 10_000
    with pytest.raises(StoreFull):
        bench.submit(photo=picture())
    bench.check()


def test_what_a_dead_process_left_is_swept_once_its_reservation_ran_out(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.store._storage, "_abandon", lambda names: None)
        patch.setattr(bench.store.queue, "submit", dies)
        with pytest.raises(KeyboardInterrupt):
            bench.submit()
    assert len(bench.files()) == 1
    bench.store.sweep()
    assert len(bench.files()) == 1  # its process might live
    bench.pass_time(ledger.RESERVED_S + 1)
    assert bench.store.sweep().blobs == 1
    assert bench.files() == set()
    bench.check()


def test_reservation_that_ran_out_while_writing_is_refused_and_nothing_is_lost(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, other = make_bench(), make_bench()
    real = LocalBlobs.put

    def slow(self: LocalBlobs, name: str, data: bytes) -> None:
        bench.pass_time(ledger.RESERVED_S + 1)
        other.store.sweep()
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalBlobs, "put", slow)
        with pytest.raises(StoreUnavailable):
            bench.submit()
    assert bench.store.queue.claim() is None
    bench.store.sweep()
    assert bench.files() == set()
    bench.check()


def test_files_that_cannot_be_deleted_now_are_deleted_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.succeed()

    def fails(*_: object) -> None:
        raise StoreUnavailable("not now")

    with monkeypatch.context() as patch:
        patch.setattr(LocalBlobs, "delete", fails)
        assert bench.store.remove(job.id).status is Status.EXPIRED
    assert len(bench.files()) == 2
    assert bench.store.sweep().blobs == 2
    assert bench.files() == set()
    bench.check()


def test_blob_store_that_fails_makes_no_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise StoreUnavailable("not now")

    with monkeypatch.context() as patch:
        patch.setattr(LocalBlobs, "put", fails)
        with pytest.raises(RequestError):
            bench.store.submit("ann", [NewJob(REQUEST, b"a"), NewJob(REQUEST, b"b")])
    assert bench.store.queue.claim() is None
    assert used(bench) == 0
    bench.check()
