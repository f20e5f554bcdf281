"""The accounts of the chaos benchmark: what is honest, what is allowed, and what counts as a loss."""

from typing import Any

import pytest
from benchmarks.chaos.ledger import (
    NOTICE_S,
    Answer,
    Injection,
    JobLedger,
    RequestLedger,
    Verdict,
    classify,
    fault_at,
    minute_rows,
)

NODE = Injection("node", 0, began_s=5, recovered_s=25, breaks_connections=True)
STYLE = Injection("style", 1, began_s=65, recovered_s=100, damaged_style="cel")
STYLIZER = Injection("Stylizer", 2, began_s=125, recovered_s=140)
ALL = [NODE, STYLE, STYLIZER]


def answer(ended_s: float = 10, status: int = 0, **more: Any) -> Answer:
    return Answer(due_s=more.pop("due_s", ended_s - 1), ended_s=ended_s, status=status, **more)


def verdict(given: Answer, allow_broken_s: float = 60) -> Verdict:
    return classify(given, ALL, allow_broken_s)


def test_a_picture_is_done_and_a_200_without_one_is_a_fault() -> None:
    assert verdict(answer(status=200, is_good=True)) is Verdict.DONE
    assert verdict(answer(status=200)) is Verdict.OTHER


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_honest_only_with_retry_after(status: int) -> None:
    assert verdict(answer(status=status, retry_after_s=5)) is Verdict.REFUSED
    assert verdict(answer(status=status)) is Verdict.OTHER


@pytest.mark.parametrize("status", [400, 404, 408, 413, 500, 502, 504])
def test_other_statuses_are_faults_whatever_they_say(status: int) -> None:
    assert verdict(answer(status=status, retry_after_s=5)) is Verdict.OTHER


def test_a_full_store_is_an_honest_answer_to_a_submission_alone() -> None:
    full: dict[str, Any] = {"status": 507, "code": "store-full", "retry_after_s": 60.0}
    assert verdict(answer(is_submission=True, **full)) is Verdict.REFUSED
    assert verdict(answer(**full)) is Verdict.OTHER
    assert verdict(answer(status=507, code="store-full", is_submission=True)) is Verdict.OTHER


@pytest.mark.parametrize(
    ("ended_s", "allow_broken_s", "expected"),
    [
        (4.9, 60, Verdict.OTHER),  # before
        (5.1, 60, Verdict.BROKEN),
        (25 + NOTICE_S - 0.1, 60, Verdict.BROKEN),
        (25 + NOTICE_S + 0.1, 60, Verdict.OTHER),  # it had recovered
        (5 + 10 + NOTICE_S - 0.1, 10, Verdict.BROKEN),
        (5 + 10 + NOTICE_S + 0.1, 10, Verdict.OTHER),  # it should have recovered
        (130, 60, Verdict.OTHER),  # no connection ends at a Stylizer
    ],
)
def test_connections_may_break_while_what_holds_them_is_dead(
    ended_s: float, allow_broken_s: float, expected: Verdict
) -> None:
    assert verdict(answer(ended_s, is_broken=True), allow_broken_s) is expected


def test_a_client_that_waits_in_vain_is_a_fault_even_then() -> None:
    assert verdict(answer(10, code="no answer in time")) is Verdict.OTHER


def test_a_node_that_has_not_recovered_yet_may_break_connections() -> None:
    unfinished = Injection("node", 0, began_s=5, breaks_connections=True)
    assert classify(answer(60, is_broken=True), [unfinished], 90) is Verdict.BROKEN


@pytest.mark.parametrize(
    ("style", "ended_s", "expected"),
    [("cel", 80, Verdict.REFUSED), ("toon", 80, Verdict.OTHER), ("cel", 110, Verdict.OTHER)],
)
def test_only_the_damaged_style_is_refused_and_only_while_it_is_damaged(
    style: str, ended_s: float, expected: Verdict
) -> None:
    assert verdict(answer(ended_s, status=404, code="unknown-style", style=style)) is expected


def test_a_fault_is_named_while_it_is_on_and_afterwards() -> None:
    assert fault_at(ALL, 1) == "none"
    assert fault_at(ALL, 70) == "style"
    assert fault_at(ALL, 120) == "style, 20 s over"


def test_a_ledger_lists_faults_with_what_was_on() -> None:
    ledger = RequestLedger(ALL, 60)
    ledger.add(answer(130, status=500, code="internal-error"))
    ledger.add(answer(131, status=503))
    ledger.add(answer(131, status=200, is_good=True))
    assert [(each["s"], each["status"], each["code"], each["fault"]) for each in ledger.problems] == [
        (130, 500, "internal-error", "Stylizer"),
        (131, 503, "no Retry-After", "Stylizer"),
    ]


def report(job_id: str, status: str, finished_at: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": job_id, "status": status, "finished_at": finished_at, "error": None} | more


@pytest.fixture
def jobs() -> JobLedger:
    ledger = JobLedger()
    for number, job_id in enumerate(["a", "b", "c"]):
        ledger.accept(f"key {number}", job_id, 10.0 * number)
    return ledger


def test_jobs_are_lost_until_their_end_is_seen(jobs: JobLedger) -> None:
    jobs.see(report("a", "running"), 5)
    jobs.see(report("a", "succeeded", "noon"), 30)
    jobs.see(report("b", "failed", "noon", error={"code": "unknown-style"}), 31)
    assert jobs.unfinished() == ["c"]
    assert jobs.problems == []
    assert jobs.summary() == {"accepted": 3, "failed, unknown-style": 1, "succeeded": 1, "lost": 1}


def test_a_key_that_gives_another_job_is_dishonest(jobs: JobLedger) -> None:
    jobs.accept("key 0", "a", 40)
    assert jobs.problems == []
    jobs.accept("key 0", "d", 41)
    (problem,) = jobs.problems
    assert problem["job"] == "a"


@pytest.mark.parametrize(
    ("later", "is_problem"),
    [
        (report("a", "succeeded", "noon"), False),
        (report("a", "expired", "noon"), False),
        (report("a", "succeeded", "one"), True),
        (report("a", "failed", "noon", error={"code": "lost"}), True),
        (report("a", "running"), True),
    ],
)
def test_a_job_ends_once(jobs: JobLedger, later: dict[str, Any], is_problem: bool) -> None:
    jobs.see(report("a", "succeeded", "noon"), 30)
    jobs.see(later, 40)
    assert bool(jobs.problems) is is_problem
    assert jobs.jobs["a"].ended_s == 30


@pytest.mark.parametrize("end", [report("a", "failed", "noon"), report("a", "cancelled", "noon")])
def test_a_failure_without_a_reason_and_a_cancellation_are_problems(jobs: JobLedger, end: dict[str, Any]) -> None:
    jobs.see(end, 30)
    assert len(jobs.problems) == 1


def test_a_job_that_is_unknown_is_a_problem(jobs: JobLedger) -> None:
    jobs.miss("b", 30)
    jobs.miss("b", 32)  # each look finds that out anew
    assert jobs.problems == [{"s": 30, "job": "b", "problem": "it was accepted, and is unknown"}]


def test_submissions_that_were_never_accepted_are_counted_once() -> None:
    ledger = RequestLedger([], 60)
    for due_s, status in ((1, 503), (1, 202), (2, 503), (2, 0), (3, 202)):
        is_good = status == 202
        ledger.add(Answer(due_s, due_s + 1, status, retry_after_s=1, is_good=is_good, is_submission=True))
    ledger.add(Answer(4, 5, 503, retry_after_s=1))
    assert ledger.unanswered_submissions() == 1


def test_a_minute_counts_requests_by_when_they_were_due_and_jobs_by_when_they_happened() -> None:
    requests = RequestLedger(ALL, 60)
    requests.add(answer(70, status=200, is_good=True, due_s=59))
    requests.add(answer(61, status=429, retry_after_s=1, due_s=60))
    requests.add(answer(61, is_broken=True, due_s=60))
    requests.add(answer(62, status=500, is_submission=True, due_s=60))
    requests.add(answer(7, is_broken=True, due_s=6))
    jobs = JobLedger()
    jobs.accept("key", "a", 30)
    jobs.accept("other key", "b", 130)
    jobs.see(report("a", "succeeded", "noon"), 61)
    first, second, after = minute_rows(2, ALL[:1], requests, jobs)
    assert (first["fault"], first["over after s"], second["fault"]) == ("node", 20, "(recovering)")
    assert [first[name] for name in ("offered", "painted", "broken, allowed", "p95 s")] == [2, 1, 1, 11]
    assert [second[name] for name in ("offered", "painted", "refused", "other", "p95 s")] == [2, 0, 1, 2, ""]
    assert [(row["jobs accepted"], row["jobs ended"]) for row in (first, second, after)] == [(1, 0), (0, 1), (1, 0)]
    assert list(first) == list(second) == list(after)


def test_answers_are_counted_by_kind() -> None:
    ledger = RequestLedger(ALL, 60)
    for _ in range(2):
        ledger.add(answer(130, status=503, code="lost", retry_after_s=5))
    ledger.add(answer(131, status=503, code="lost"))
    assert [tuple(row.values()) for row in ledger.by_answer()] == [
        ("request", "other", 503, "lost", 1),
        ("request", "refused", 503, "lost", 2),
    ]
