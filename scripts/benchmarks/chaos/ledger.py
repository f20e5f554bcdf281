"""What became of every request and job of `scripts/bench chaos`, and what of it was dishonest.

All times are seconds since the load began.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from benchmarks.reporting import Row, percentile

MINUTE_S = 60.0
NOTICE_S = 2.0  # a client may notice so much later that its connection has broken
HONEST_REFUSALS = (429, 503)  # with Retry-After
STORE_FULL = (507, "store-full")  # what a submission is told while the disk is full
UNKNOWN_STYLE = (404, "unknown-style")  # what requests for a damaged style are told
ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})


class Verdict(StrEnum):
    """What an answer was: a picture or an accepted job, an honest refusal, a loss that is allowed, or our fault."""

    DONE = "done"
    REFUSED = "refused"
    BROKEN = "broken, allowed"
    OTHER = "other"


@dataclass
class Injection:
    """A fault as it was injected.

    Attributes:
        fault: its name.
        minute: of the run.
        began_s: just before it was injected.
        recovered_s: when the service had recovered; None until then.
        breaks_connections: whether connections may break until then.
        damaged_style: whose requests may be refused until then; None for all other faults.
        error: why the service did not recover, or the fault could not be injected.
    """

    fault: str
    minute: int
    began_s: float
    recovered_s: float | None = None
    breaks_connections: bool = False
    damaged_style: str | None = None
    error: str | None = None

    def is_on(self, at_s: float, most_s: float = float("inf")) -> bool:
        """Returns whether the service was under this fault, or recovering from it, for at most `most_s`."""
        until_s = self.began_s + most_s
        if self.recovered_s is not None:
            until_s = min(until_s, self.recovered_s)
        return self.began_s <= at_s <= until_s + NOTICE_S


@dataclass(frozen=True)
class Answer:
    """How a request for a picture, or the submission of a job, was answered.

    Attributes:
        due_s: when it was due.
        ended_s: when it was answered, or its connection broke.
        status: of HTTP; 0 if there was no answer.
        code: of the problem document; without an answer, the kind of failure.
        retry_after_s: from the header; None without it.
        style: that was asked for.
        is_good: whether a 200 brought a whole picture, or a 202 a job.
        is_submission: whether it was the submission of a job.
        is_broken: whether the connection broke or was refused; false if the client gave up waiting.
    """

    due_s: float
    ended_s: float
    status: int
    code: str = ""
    retry_after_s: float | None = None
    style: str = ""
    is_good: bool = False
    is_submission: bool = False
    is_broken: bool = False

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due until it was answered."""
        return self.ended_s - self.due_s


def classify(answer: Answer, injections: Iterable[Injection], allow_broken_s: float) -> Verdict:
    """Returns what an answer was.

    Args:
        answer: to a request.
        injections: all of the run so far.
        allow_broken_s: seconds from the death of an Ingress, a proxy or a node, within which connections may break;
            less if the service recovers sooner.
    """
    if answer.is_good:
        return Verdict.DONE
    if answer.status in HONEST_REFUSALS and answer.retry_after_s is not None:
        return Verdict.REFUSED
    if answer.is_submission and (answer.status, answer.code) == STORE_FULL and answer.retry_after_s is not None:
        return Verdict.REFUSED
    on = [each for each in injections if each.is_on(answer.ended_s)]
    if (answer.status, answer.code) == UNKNOWN_STYLE and any(each.damaged_style == answer.style for each in on):
        return Verdict.REFUSED
    if answer.is_broken and any(each.breaks_connections and each.is_on(answer.ended_s, allow_broken_s) for each in on):
        return Verdict.BROKEN
    return Verdict.OTHER


def fault_at(injections: Sequence[Injection], at_s: float) -> str:
    """Returns the name of the fault that was on, or of the last one before with how long it had been over."""
    begun = [each for each in injections if each.began_s <= at_s]
    if not begun:
        return "none"
    last = begun[-1]
    if last.is_on(at_s) or last.recovered_s is None:
        return last.fault
    return f"{last.fault}, {at_s - last.recovered_s:.0f} s over"


class RequestLedger:
    """Every answer, and its verdict.

    Args:
        injections: the list that faults are added to during the run.
        allow_broken_s: see `classify`.

    Attributes:
        entries: answers with their verdicts.
        problems: answers that were a fault of ours.
    """

    def __init__(self, injections: list[Injection], allow_broken_s: float) -> None:
        self.entries: list[tuple[Answer, Verdict]] = []
        self.problems: list[Row] = []
        self._injections = injections
        self._allow_broken_s = allow_broken_s

    def add(self, answer: Answer) -> Verdict:
        """Takes note of an answer, and returns what it was."""
        verdict = classify(answer, self._injections, self._allow_broken_s)
        self.entries.append((answer, verdict))
        if verdict is Verdict.OTHER:
            problem = {
                "s": round(answer.ended_s, 1),
                "what": "submission" if answer.is_submission else "request",
                "status": answer.status,
                "code": answer.code or "no Retry-After",
                "fault": fault_at(self._injections, answer.ended_s),
            }
            self.problems.append(problem)
        return verdict

    def count(self, verdict: Verdict, minute: int, *, is_submission: bool = False) -> int:
        """Returns how many of the requests that were due in a minute had this verdict."""
        return sum(
            found is verdict and answer.is_submission is is_submission and int(answer.due_s // MINUTE_S) == minute
            for answer, found in self.entries
        )

    def by_answer(self) -> list[Row]:
        """Returns how often there was each kind of answer, with its verdict."""
        counts = Counter(
            ("submission" if answer.is_submission else "request", str(verdict), answer.status, answer.code)
            for answer, verdict in self.entries
        )
        return [
            dict(zip(("what", "verdict", "status", "code", "count"), (*kind, counts[kind]), strict=True))
            for kind in sorted(counts)
        ]

    def unanswered_submissions(self) -> int:
        """Returns how many submissions were never accepted, however often they were repeated."""
        submissions = [entry for entry in self.entries if entry[0].is_submission]
        accepted = {answer.due_s for answer, verdict in submissions if verdict is Verdict.DONE}
        return len({answer.due_s for answer, _ in submissions} - accepted)

    def p95_s(self, minute: int) -> float | None:
        """Returns the 95th percentile of the latencies of pictures that were due in a minute; None without any."""
        latencies = [
            answer.latency_s
            for answer, verdict in self.entries
            if verdict is Verdict.DONE and not answer.is_submission and int(answer.due_s // MINUTE_S) == minute
        ]
        return percentile(latencies, 95) if latencies else None


@dataclass
class TrackedJob:
    """A job that was accepted.

    Attributes:
        id: of the job.
        accepted_s: when its client was told so.
        status: that was seen last.
        finished_at: as the service tells it.
        ended_s: when its end was seen; None until then.
        code: why it failed, if it did.
    """

    id: str
    accepted_s: float
    status: str = "queued"
    finished_at: str | None = None
    ended_s: float | None = None
    code: str = ""


@dataclass
class JobLedger:
    """Every job that was accepted, and how it ended.

    Attributes:
        jobs: by id.
        ids: by idempotency key.
        problems: what should not have happened to a job.
    """

    jobs: dict[str, TrackedJob] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    problems: list[Row] = field(default_factory=list)
    _missed: set[str] = field(default_factory=set)

    def accept(self, key: str, job_id: str, at_s: float) -> None:
        """Takes note that a submission was accepted, or answered again: the same key must always give the same job."""
        if (known := self.ids.setdefault(key, job_id)) != job_id:
            self._add_problem(at_s, known, f"its key gave another job, {job_id}")
        self.jobs.setdefault(job_id, TrackedJob(job_id, at_s))

    def see(self, report: dict[str, Any], at_s: float) -> None:
        """Takes note of a job as the service shows it. One that has ended must stay as it is, until it expires."""
        job, status, finished_at = self.jobs[report["id"]], report["status"], report["finished_at"]
        if job.ended_s is not None:
            if status != "expired" and (status, finished_at) != (job.status, job.finished_at):
                was, now = f"{job.status} at {job.finished_at}", f"{status} at {finished_at}"
                self._add_problem(at_s, job.id, f"it had ended, {was}, and is now {now}")
            return
        job.status, job.finished_at = status, finished_at
        if status not in ENDED:
            return
        job.ended_s = at_s
        if status == "failed":
            job.code = (report.get("error") or {}).get("code", "")
            if not job.code:
                self._add_problem(at_s, job.id, "it failed without a reason")
        elif status == "cancelled":
            self._add_problem(at_s, job.id, "it was cancelled, and nobody had asked for that")

    def miss(self, job_id: str, at_s: float) -> None:
        """Takes note that the service does not know a job that it had accepted; the first time is a problem."""
        if job_id in self._missed:
            return
        self._missed.add(job_id)
        self._add_problem(at_s, job_id, "it was accepted, and is unknown")

    def unfinished(self) -> list[str]:
        """Returns the ids of jobs whose end was not seen yet, in the order in which they were accepted."""
        return [job.id for job in self.jobs.values() if job.ended_s is None]

    def count_accepted(self, minute: int) -> int:
        """Returns how many jobs were accepted in a minute."""
        return sum(int(job.accepted_s // MINUTE_S) == minute for job in self.jobs.values())

    def count_ended(self, minute: int) -> int:
        """Returns how many jobs were seen to end in a minute."""
        return sum(job.ended_s is not None and int(job.ended_s // MINUTE_S) == minute for job in self.jobs.values())

    def summary(self, not_ended: str = "lost") -> Row:
        """Returns how many jobs there were by how they ended; those that did not are `lost`, or as it is said."""
        counts: dict[str, int] = {}
        for job in self.jobs.values():
            if job.ended_s is not None:
                outcome = f"failed, {job.code}" if job.status == "failed" else job.status
                counts[outcome] = counts.get(outcome, 0) + 1
        return {"accepted": len(self.jobs), **dict(sorted(counts.items())), not_ended: len(self.unfinished())}

    def _add_problem(self, at_s: float, job_id: str, text: str) -> None:
        self.problems.append({"s": round(at_s, 1), "job": job_id, "problem": text})


def minute_rows(minutes: int, injections: Sequence[Injection], requests: RequestLedger, jobs: JobLedger) -> list[Row]:
    """Returns a row for each minute of the load, and one for jobs that were accepted or ended after it."""
    rows = []
    for minute in range(minutes):
        injection = next((each for each in injections if each.minute == minute), None)
        counts = {verdict: requests.count(verdict, minute) for verdict in Verdict}
        recovered_s = None if injection is None else injection.recovered_s
        p95_s = requests.p95_s(minute)
        rows.append(
            {
                "minute": minute,
                "fault": "(recovering)" if injection is None else injection.fault,
                "over after s": "" if injection is None or recovered_s is None else recovered_s - injection.began_s,
                "offered": sum(counts.values()),
                "painted": counts[Verdict.DONE],
                "refused": counts[Verdict.REFUSED],
                "broken, allowed": counts[Verdict.BROKEN],
                "other": counts[Verdict.OTHER] + requests.count(Verdict.OTHER, minute, is_submission=True),
                "jobs accepted": jobs.count_accepted(minute),
                "jobs ended": jobs.count_ended(minute),
                "p95 s": "" if p95_s is None else p95_s,
            }
        )
    accepted = [job.accepted_s for job in jobs.jobs.values()]
    ended = [job.ended_s for job in jobs.jobs.values() if job.ended_s is not None]
    last: Row = {"minute": "after", "fault": "none"} | dict.fromkeys(list(rows[0])[2:], "")
    over_s = minutes * MINUTE_S
    last |= {"jobs accepted": sum(at >= over_s for at in accepted), "jobs ended": sum(at >= over_s for at in ended)}
    return [*rows, last]
