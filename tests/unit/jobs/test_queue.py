"""The life of a job: claims, leases, ends, and whose turn it is."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobstores import RECEIPT, REQUEST, Bench, painting
from sqlalchemy import select

from serve_app.errors import BrokenImage, Gone, KeyReused, OutOfMemory, TooBusy, UnknownJob
from serve_app.jobs.positions import Positions
from serve_app.jobs.table import jobs
from serve_app.jobs.words import NewJob, Status, Tally

MakeBench = Callable[..., Bench]


def test_a_job_waits_runs_and_succeeds(bench: Bench) -> None:
    job = bench.submit(photo=b"holiday")
    assert (job.status, job.request, job.attempt, job.client) == (Status.QUEUED, REQUEST, 0, "ann")
    lease = bench.claim()
    assert (lease.job.id, lease.job.status, lease.job.attempt) == (job.id, Status.RUNNING, 1)
    assert bench.store.photo(lease.job) == b"holiday"
    assert bench.store.finish(lease, painting(b"painted"))
    done = bench.store.get(job.id)
    assert (done.status, done.receipt, done.media_type, done.problem) == (Status.SUCCEEDED, RECEIPT, "image/png", None)
    assert bench.store.painting(done) == b"painted"
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.created_at <= done.started_at <= done.finished_at
    bench.check()


def test_a_tally_has_every_status_with_its_oldest_job_and_its_most_attempts(bench: Bench) -> None:
    assert bench.store.tally() == Tally({}, {}, {}, 0)
    bench.succeed("ann", b"1", b"12345")
    bench.submit("ann", b"22")
    lease = bench.claim()
    assert bench.store.queue.retry(lease, OutOfMemory("again"))
    bench.pass_time(60)
    bench.submit("bob", b"333")
    tally = bench.store.tally()
    assert tally.jobs == {Status.SUCCEEDED: 1, Status.QUEUED: 2}
    assert 60 <= tally.oldest_s[Status.QUEUED] < 120
    assert tally.attempts == {Status.SUCCEEDED: 1, Status.QUEUED: 1}
    assert tally.stored_bytes == 1 + 5 + 2 + 3


def test_ids_are_long_and_random_and_say_nothing_of_the_order(bench: Bench) -> None:
    ids = [bench.submit().id for _ in range(5)]
    assert len(set(ids)) == 5
    # Hexadecimal, so that none looks like an option ("-x…") to a command line.
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


def test_nothing_is_claimed_where_nothing_waits(bench: Bench) -> None:
    assert bench.store.queue.claim() is None
    bench.submit()
    bench.claim()
    assert bench.store.queue.claim() is None


def test_threads_never_claim_the_same_job(bench: Bench) -> None:
    for _ in range(40):
        bench.submit()

    def claim_all(_: int) -> list[int]:
        found = []
        while lease := bench.store.queue.claim():
            found.append(lease.job.number)
        return found

    with ThreadPoolExecutor(4) as pool:
        claimed = [number for numbers in pool.map(claim_all, range(4)) for number in numbers]
    assert len(claimed) == len(set(claimed)) == 40


def test_a_lease_that_ran_out_goes_to_another_worker_and_its_old_token_is_void(bench: Bench) -> None:
    job = bench.submit()
    lost = bench.claim()
    bench.pass_time(bench.settings.lease_s + 1)
    assert bench.store.queue.reap().queued == (job.id,)
    again = bench.claim()
    assert (again.job.id, again.job.attempt) == (job.id, 2)
    assert not bench.store.queue.renew(lost)
    assert not bench.store.finish(lost, painting(b"late"))
    assert not bench.store.queue.fail(lost, BrokenImage("late"))
    assert not bench.store.queue.retry(lost, OutOfMemory("late"))
    assert not bench.store.queue.release(lost)
    assert bench.store.finish(again, painting(b"in time"))
    assert bench.store.painting(bench.store.get(job.id)) == b"in time"
    bench.check()
    assert len([name for name in bench.files() if name.startswith("paintings/")]) == 1


def test_a_lease_that_is_renewed_lasts(bench: Bench) -> None:
    bench.submit()
    lease = bench.claim()
    for _ in range(4):
        bench.pass_time(bench.settings.lease_s * 0.6)
        assert bench.store.queue.reap().queued == ()
        assert bench.store.queue.renew(lease)
    assert bench.store.finish(lease, painting())


def test_a_lease_that_ran_out_unnoticed_may_still_finish(bench: Bench) -> None:
    bench.submit()
    lease = bench.claim()
    bench.pass_time(bench.settings.lease_s + 1)
    assert bench.store.finish(lease, painting())


def test_a_photo_whose_workers_die_fails_after_its_last_attempt_with_a_reason(bench: Bench) -> None:
    job = bench.submit()
    for _ in range(2):
        bench.claim()
        bench.pass_time(bench.settings.lease_s + 1)
        assert bench.store.queue.reap().queued == (job.id,)
    bench.claim()
    bench.pass_time(bench.settings.lease_s + 1)
    assert bench.store.queue.reap().failed == (job.id,)
    failed = bench.store.get(job.id)
    assert failed.status is Status.FAILED
    assert failed.problem is not None
    assert (failed.problem["code"], failed.attempt) == ("lost", 3)
    assert "3 times" in failed.problem["detail"]
    assert bench.store.queue.claim() is None
    bench.check()


def test_a_broken_photo_fails_at_once_and_a_passing_failure_is_tried_again(bench: Bench) -> None:
    broken = bench.submit()
    assert bench.store.queue.fail(bench.claim(), BrokenImage("The file ends early."))
    problem = bench.store.get(broken.id).problem
    assert problem is not None
    assert (problem["code"], problem["status"], problem["detail"]) == ("broken-image", 422, "The file ends early.")

    unlucky = bench.submit()
    for attempt in (1, 2, 3):
        lease = bench.claim()
        assert lease.job.attempt == attempt
        assert bench.store.queue.retry(lease, OutOfMemory("No memory now."))
    problem = bench.store.get(unlucky.id).problem
    assert problem is not None
    assert problem["code"] == "out-of-memory"
    bench.check()


def test_an_attempt_that_a_stopping_worker_gives_back_does_not_count(bench: Bench) -> None:
    bench.submit()
    for _ in range(5):
        lease = bench.claim()
        assert lease.job.attempt == 1
        assert bench.store.queue.release(lease)
    bench.check()


def test_a_repeated_finish_whose_answer_was_lost_is_a_success(bench: Bench) -> None:
    job = bench.submit()
    lease = bench.claim()
    assert bench.store.finish(lease, painting())
    done = bench.store.get(job.id)
    assert done.painting is not None
    assert bench.store.queue.finish(lease, done.painting, "image/png", RECEIPT)
    assert not bench.store.queue.finish(lease, "paintings/another", "image/png", RECEIPT)
    bench.check()


def test_clock_that_is_set_back_neither_holds_a_dead_workers_job_nor_takes_a_living_ones(bench: Bench) -> None:
    dead, living = bench.submit(), bench.submit()
    bench.claim()
    lease = bench.claim()
    bench.pass_time(-86_400)
    assert bench.store.queue.reap().queued == ()  # both leases end one lease from now
    bench.pass_time(bench.settings.lease_s * 0.6)
    assert bench.store.queue.renew(lease)
    bench.pass_time(bench.settings.lease_s * 0.6)
    assert bench.store.queue.reap().queued == (dead.id,)
    assert bench.store.finish(lease, painting())
    assert bench.store.get(living.id).status is Status.SUCCEEDED


def test_the_same_key_returns_the_same_jobs(bench: Bench) -> None:
    new = [NewJob(REQUEST, b"one"), NewJob(REQUEST, b"two")]
    first = bench.store.submit("ann", new, key="k")
    again = bench.store.submit("ann", new, key="k")
    assert (first.is_new, again.is_new) == (True, False)
    assert [job.id for job in first.jobs] == [job.id for job in again.jobs]
    assert len(bench.files()) == 2
    bench.check()


def test_the_same_key_with_another_payload_is_refused(bench: Bench) -> None:
    bench.submit(photo=b"one", key="k")
    with pytest.raises(KeyReused):
        bench.submit(photo=b"two", key="k")
    other = NewJob(REQUEST.__class__(**{**REQUEST.__dict__, "quality": 5}), b"one")
    with pytest.raises(KeyReused):
        bench.store.submit("ann", [other], key="k")
    with pytest.raises(KeyReused):
        bench.store.submit("ann", [NewJob(REQUEST, b"one"), NewJob(REQUEST, b"one")], key="k")


def test_a_key_belongs_to_its_client(bench: Bench) -> None:
    assert bench.submit("ann", key="k").id != bench.submit("bob", key="k").id


def test_a_key_is_free_again_when_the_first_of_its_jobs_is_gone(bench: Bench) -> None:
    new = [NewJob(REQUEST, b"one"), NewJob(REQUEST, b"two")]
    first = bench.store.submit("ann", new, key="k")
    bench.store.remove(first.jobs[0].id)
    assert not bench.store.submit("ann", new, key="k").is_new  # cancelled is not gone
    bench.store.remove(first.jobs[0].id)
    assert bench.store.submit("ann", new, key="k").is_new
    bench.check()


def test_the_same_key_at_the_same_time_makes_one_job(bench: Bench) -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: bench.submit(key="k").id, range(8)))
    assert len(ids) == 1
    assert len(bench.files()) == 1
    bench.check()


def test_an_earlier_photo_can_be_painted_again_and_stays_as_long_as_one_job_needs_it(bench: Bench) -> None:
    source = bench.submit(photo=b"once")
    (again,) = bench.store.submit("bob", [NewJob(REQUEST, source=source.id)]).jobs
    assert again.photo == source.photo
    bench.store.remove(source.id)
    assert bench.store.photo(bench.store.get(again.id)) == b"once"
    bench.check()
    bench.store.remove(again.id)
    assert bench.files() == set()
    with pytest.raises(Gone):
        bench.store.submit("bob", [NewJob(REQUEST, source=source.id)])
    with pytest.raises(UnknownJob):
        bench.store.submit("bob", [NewJob(REQUEST, source="no such id")])
    bench.check()


def test_a_submission_that_fails_in_part_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(UnknownJob):
        bench.store.submit("ann", [NewJob(REQUEST, b"one"), NewJob(REQUEST, source="no such id")])
    assert bench.files() == set()
    assert bench.store.queue.claim() is None
    bench.check()


def order(bench: Bench) -> list[str]:
    clients = []
    while lease := bench.store.queue.claim():
        clients.append(lease.job.client)
    return clients


def test_clients_take_turns(bench: Bench) -> None:
    for client, count in (("ann", 4), ("bob", 2), ("cat", 1)):
        for _ in range(count):
            bench.submit(client)
    assert order(bench) == ["ann", "ann", "bob", "cat", "ann", "bob", "ann"]


def test_a_client_with_many_jobs_is_not_starved_by_ever_new_ones(bench: Bench) -> None:
    for _ in range(5):
        bench.submit("ann")
    claimed = []
    for number in range(20):
        bench.submit(f"new {number}")
        bench.submit(f"newer {number}")
        claimed.append(bench.claim().job.client)
    assert claimed.count("ann") >= 4


def test_a_job_that_is_tried_again_goes_to_the_head(bench: Bench) -> None:
    first = bench.submit("ann")
    lease = bench.claim()
    for client in ("bob", "ann", "cat"):
        bench.submit(client)
    bench.store.queue.release(lease)
    assert bench.claim().job.id == first.id


def test_the_queue_and_each_clients_share_of_it_are_bounded(make_bench: MakeBench) -> None:
    bench = make_bench(max_queued=10)
    for _ in range(8):
        bench.submit("ann")
    with pytest.raises(TooBusy) as caught:
        bench.submit("ann")
    assert caught.value.position == 8
    bench.submit("bob")
    bench.submit("cat")
    with pytest.raises(TooBusy) as caught:
        bench.submit("dan")
    assert (caught.value.limit, caught.value.actual, caught.value.position) == (10, 11, 10)
    assert len(bench.files()) == 10
    bench.claim()
    bench.submit("dan")
    bench.check()


def test_one_client_may_fill_it_all_where_the_settings_say_so(make_bench: MakeBench) -> None:
    bench = make_bench(max_queued=5, client_share=1)
    bench.store.submit("ann", [NewJob(REQUEST, b"photo")] * 5)
    with pytest.raises(TooBusy):
        bench.submit("ann")


def exact(positions: Positions, job_id: str) -> int | None:
    outlook = positions.outlook_now(job_id)
    return None if outlook is None else outlook.position


def recent(bench: Bench, positions: Positions, *job_ids: str) -> dict[str, int]:
    outlooks = positions.outlooks(list(bench.store.find(job_ids).values()))
    return {job_id: outlook.position for job_id, outlook in outlooks.items()}


def test_position_counts_what_is_ahead(bench: Bench) -> None:
    ann = [bench.submit("ann").id for _ in range(3)]
    bob = bench.submit("bob").id
    positions = bench.store.positions
    assert [exact(positions, job) for job in (*ann, bob)] == [0, 1, 3, 2]
    assert recent(bench, positions, *ann, bob) == {ann[0]: 0, ann[1]: 1, ann[2]: 3, bob: 2}
    lease = bench.claim()
    assert [exact(positions, job) for job in (*ann, bob)] == [0, 1, 3, 2]  # the running one is still ahead
    bench.store.finish(lease, painting())
    assert [exact(positions, job) for job in (*ann, bob)] == [None, 0, 2, 1]
    assert exact(positions, "no such id") is None


def test_recent_positions_are_read_again_after_a_second(bench: Bench) -> None:
    now = 0.0
    positions = Positions(bench.database, lambda: now)
    first, second = bench.submit().id, bench.submit().id
    assert recent(bench, positions, second) == {second: 1}
    bench.store.remove(first)
    now = 0.9
    assert recent(bench, positions, second) == {second: 1}
    now = 2.0
    assert recent(bench, positions, first, second) == {second: 0}


def test_claim_and_a_look_at_leases_read_indexes_and_sort_nothing(bench: Bench) -> None:
    """So that 100,000 rows cost no more than a few."""
    bench.submit()
    with bench.database.write() as connection:
        row = dict(connection.execute(select(jobs)).mappings().one())
        many = [{**row, "number": 10 + n, "id": f"{n}", "turn": n, "photo": None} for n in range(3000)]
        connection.execute(jobs.insert(), many)
        if not bench.database.is_sqlite:
            connection.exec_driver_sql("ANALYZE jobs")
    plans = []
    from sqlalchemy import event

    @event.listens_for(bench.store._database.engine, "before_cursor_execute")
    def explain(connection, cursor, statement, parameters, context, executemany):  # type: ignore[no-untyped-def]
        if statement.startswith(("UPDATE", "SELECT")):
            prefix = "EXPLAIN QUERY PLAN " if bench.database.is_sqlite else "EXPLAIN "
            cursor.execute(prefix + statement, parameters)
            plans.append("\n".join(str(row) for row in cursor.fetchall()))

    bench.claim()
    bench.store.queue.leases()
    waiting, claim, leases = plans
    assert "jobs_queue" in waiting
    assert "jobs_queue" in claim
    assert "jobs_leases" in leases
    for plan in plans:
        assert "Seq Scan" not in plan
        assert "SCAN jobs" not in plan.replace("SCAN jobs USING", "").replace("SCAN waiting USING", "")
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan
