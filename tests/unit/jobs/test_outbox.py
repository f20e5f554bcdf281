"""The outbox of webhooks: every end of a job is announced once, in the transaction that makes it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobstores import RECEIPT, Bench, painting
from sqlalchemy import event, text
from sqlalchemy.exc import ProgrammingError

from serve_app.errors import BrokenImage, KeyReused, OutOfMemory, StoreUnavailable
from serve_app.jobs import outbox
from serve_app.jobs.outbox import LONGEST_MS, PAUSES_S
from serve_app.jobs.words import Job, Status

MakeBench = Callable[..., Bench]
URL = "https://hooks.example.org/anime?token=secret"
LEASE_S = 30.0


def finish(bench: Bench, job: Job) -> None:
    assert bench.store.finish(bench.claim(), painting())


def fail(bench: Bench, job: Job) -> None:
    assert bench.store.queue.fail(bench.claim(), BrokenImage("It is broken."))


def fail_last_attempt(bench: Bench, job: Job) -> None:
    for _ in range(bench.settings.max_attempts):
        assert bench.store.queue.retry(bench.claim(), OutOfMemory("It is full."))


def lose_workers(bench: Bench, job: Job) -> None:
    for _ in range(bench.settings.max_attempts):
        bench.claim()
        bench.pass_time(bench.settings.lease_s + 1)
        bench.store.queue.reap()


def lose_silent_workers(bench: Bench, job: Job) -> None:
    for _ in range(bench.settings.max_attempts):
        bench.claim()
        bench.store.queue.reap(bench.store.queue.leases())


def cancel(bench: Bench, job: Job) -> None:
    assert bench.store.cancel(job.id) is not None


def cancel_at_work(bench: Bench, job: Job) -> None:
    bench.claim()
    assert bench.store.cancel(job.id) is not None


def delete(bench: Bench, job: Job) -> None:
    assert bench.store.remove(job.id).status is Status.CANCELLED


ENDS = [finish, fail, fail_last_attempt, lose_workers, lose_silent_workers, cancel, cancel_at_work, delete]
End = Callable[[Bench, Job], None]


@pytest.mark.parametrize("end", ENDS)
def test_every_way_in_which_a_job_ends_is_announced_once(bench: Bench, end: End) -> None:
    job = bench.submit(callback_url=URL)
    assert bench.messages() == []
    end(bench, job)
    (message,) = bench.messages()
    assert not bench.store.get(job.id).status.is_unfinished
    assert (message.job, message.url, message.host, message.attempt) == (job.id, URL, "hooks.example.org", 0)
    assert message.id.startswith("msg_")
    bench.store.sweep()
    assert bench.store.cancel(job.id) is None
    assert [each.id for each in bench.messages()] == [message.id]
    bench.check()


@pytest.mark.parametrize("end", ENDS)
def test_jobs_without_a_url_cost_no_statement(bench: Bench, end: End) -> None:
    statements: list[str] = []
    job = bench.submit()
    event.listen(
        bench.store.queue._database.engine,
        "before_cursor_execute",
        lambda _, cursor, statement, *rest: statements.append(statement),
    )
    end(bench, job)
    bench.store.queue.requeue(job.id)
    bench.store.remove(job.id)
    assert statements
    assert not [statement for statement in statements if "webhooks" in statement]
    assert bench.messages() == []


def test_what_does_not_end_a_job_is_not_announced(bench: Bench) -> None:
    bench.submit(callback_url=URL)
    lease = bench.claim()
    assert bench.store.queue.renew(lease)
    assert bench.store.queue.release(lease)
    assert bench.store.queue.retry(bench.claim(), OutOfMemory("It is full."))
    bench.claim()
    bench.pass_time(bench.settings.lease_s + 1)
    assert len(bench.store.queue.reap().queued) == 1
    assert bench.messages() == []


def test_only_the_end_that_counts_is_announced(bench: Bench) -> None:
    job = bench.submit(callback_url=URL)
    lease = bench.claim()
    assert bench.store.cancel(job.id) is not None
    assert not bench.store.finish(lease, painting())
    assert not bench.store.queue.fail(lease, BrokenImage("late"))
    assert len(bench.messages()) == 1


def test_repeating_a_finish_announces_nothing_more(bench: Bench) -> None:
    job = bench.submit(callback_url=URL)
    lease = bench.claim()
    assert bench.store.finish(lease, painting())
    name = bench.store.get(job.id).painting
    assert name is not None
    assert bench.store.queue.finish(lease, name, "image/png", RECEIPT)
    assert len(bench.messages()) == 1


def test_a_message_that_cannot_be_written_keeps_the_job_from_ending(bench: Bench) -> None:
    job = bench.submit(callback_url=URL)
    lease = bench.claim()
    with bench.database.write() as connection:
        connection.execute(text("ALTER TABLE webhooks RENAME TO elsewhere"))
    with pytest.raises((StoreUnavailable, ProgrammingError)):
        bench.store.finish(lease, painting())
    with bench.database.write() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO webhooks"))
    assert bench.store.get(job.id).status is Status.RUNNING
    assert bench.store.finish(lease, painting())
    assert len(bench.messages()) == 1


def test_a_job_that_waits_again_announces_its_next_end_with_a_new_message(bench: Bench) -> None:
    job = bench.submit(callback_url=URL)
    fail(bench, job)
    (first,) = bench.messages()
    assert bench.store.queue.requeue(job.id) is not None
    assert bench.messages() == []  # the job is not what it says any more
    finish(bench, job)
    (second,) = bench.messages()
    assert second.id != first.id


@pytest.mark.parametrize("way", ["erase", "expire", "purge"])
def test_the_message_of_a_job_that_is_gone_goes_too(bench: Bench, way: str) -> None:
    other = bench.submit(photo=b"other", callback_url=URL)
    cancel(bench, other)
    bench.pass_time(bench.settings.keep_for_s / 2)
    job = bench.submit(callback_url=URL)
    finish(bench, job)
    if way == "erase":
        bench.store.remove(job.id)
    elif way == "purge":
        bench.store.erase_finished()
    else:
        bench.pass_time(bench.settings.keep_for_s + 1)
        bench.store.sweep()
    left = [other.id] if way == "erase" else []
    assert [message.job for message in bench.messages()] == left
    assert bench.store.find([job.id])[job.id].callback_url is None
    bench.check()


def test_a_message_is_claimed_by_one_and_due_again_when_its_lease_has_run_out(bench: Bench) -> None:
    cancel(bench, bench.submit(callback_url=URL))
    box = bench.store.outbox
    first = box.claim(LEASE_S)
    assert first is not None
    assert (first.attempt, first.url) == (1, URL)
    assert box.claim(LEASE_S) is None
    bench.pass_time(LEASE_S + 1)
    again = box.claim(LEASE_S)
    assert again is not None
    assert (again.id, again.attempt) == (first.id, 2)
    box.postpone(first, 0)  # whose lease is lost: it changes nothing
    box.hand_back(first)
    assert box.claim(LEASE_S) is None
    box.hand_back(again)
    third = box.claim(LEASE_S)
    assert third is not None
    assert third.attempt == 2
    box.postpone(third, 60)
    assert box.claim(LEASE_S) is None
    bench.pass_time(61)
    last = box.claim(LEASE_S)
    assert last is not None
    box.remove(last)
    assert bench.messages() == []


def test_many_who_claim_never_get_the_same_message(bench: Bench) -> None:
    for _ in range(30):
        cancel(bench, bench.submit(callback_url=URL))

    def claim_all(_: int) -> list[str]:
        found = []
        while message := bench.store.outbox.claim(LEASE_S):
            found.append(message.id)
        return found

    with ThreadPoolExecutor(4) as pool:
        claimed = [each for found in pool.map(claim_all, range(4)) for each in found]
    assert len(claimed) == len(set(claimed)) == 30


def test_messages_of_full_hosts_are_left_and_the_longest_due_goes_first(bench: Bench) -> None:
    for url in ("https://slow.example.org/1", "https://b.example.org/2", "https://a.example.org/3"):
        cancel(bench, bench.submit(callback_url=url))
        bench.pass_time(1)
    claimed = []
    while message := bench.store.outbox.claim(LEASE_S, ["slow.example.org"]):
        claimed.append(message.url)
    assert claimed == ["https://b.example.org/2", "https://a.example.org/3"]


def test_a_clock_that_was_set_back_does_not_keep_messages_for_longer_than_the_longest_pause(bench: Bench) -> None:
    cancel(bench, bench.submit(callback_url=URL))
    message = bench.store.outbox.claim(LEASE_S)
    assert message is not None
    bench.store.outbox.postpone(message, max(PAUSES_S))
    bench.store.sweep()
    assert bench.store.outbox.claim(LEASE_S) is None
    bench.pass_time(-LONGEST_MS / 1000)
    bench.store.sweep()
    assert bench.store.outbox.claim(LEASE_S) is not None


def test_a_url_is_part_of_what_an_idempotency_key_stands_for(bench: Bench) -> None:
    plain = bench.submit(key="k1")
    assert bench.submit(key="k1").id == plain.id
    told = bench.submit(key="k2", callback_url=URL)
    assert told.callback_url == URL
    assert bench.submit(key="k2", callback_url=URL).id == told.id
    for key, url in (("k1", URL), ("k2", None), ("k2", URL + "2")):
        with pytest.raises(KeyReused):
            bench.submit(key=key, callback_url=url)


def test_the_words_for_logs_show_no_url_and_no_job(bench: Bench) -> None:
    job = bench.submit(callback_url=URL)
    cancel(bench, job)
    message = bench.store.outbox.claim(LEASE_S)
    assert "secret" not in f"{job!r} {message!r}"
    assert job.id not in repr(message)


def test_jobs_that_end_together_are_announced_together(bench: Bench) -> None:
    ids = [bench.submit(callback_url=URL).id for _ in range(3)] + [bench.submit().id]
    for _ in range(bench.settings.max_attempts):
        for _ in ids:
            bench.claim()
        bench.pass_time(bench.settings.lease_s + 1)
        bench.store.queue.reap()
    assert sorted(message.job for message in bench.messages()) == sorted(ids[:3])
    assert len({message.id for message in bench.messages()}) == 3
    assert outbox.ID_BYTES >= 16
