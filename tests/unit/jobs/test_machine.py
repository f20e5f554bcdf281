"""Any sequence of what clients, workers, time and sweeps do, beside a model that is too simple to be wrong."""

import shutil
import tempfile
from pathlib import Path

import pytest
from benchmarks.postgres import PostgresServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from jobstores import REQUEST, Bench, make_settings, painting

from serve_app.errors import BrokenImage, Gone, OutOfMemory, StoreFull, TooBusy, UnknownJob
from serve_app.jobs.words import FINISHED, Job, Lease, NewJob, Status

CLIENTS = st.sampled_from(["ann", "bob", "cat"])
WHICH = st.integers(0, 50)  # a job, by its place; ids are random
SIZES = st.integers(1, 400)
LIMITS = {"max_stored_bytes": 3000, "max_queued": 8, "max_attempts": 2, "client_share": 0.8}


class StoreMachine(RuleBasedStateMachine):
    """The model: what each job may be by now, and who holds its lease."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="animegan-jobs-"))
        self.bench = Bench(make_settings(self.folder, self.new_database(), **LIMITS))
        self.status: dict[str, Status] = {}
        self.holder: dict[str, str] = {}  # token by job
        self.overdue: set[str] = set()  # jobs whose lease ran out and was not reaped yet
        self.painted: dict[str, bytes] = {}
        self.keys: dict[tuple[str, str], tuple[bytes, str]] = {}

    def teardown(self) -> None:
        self.bench.close()
        shutil.rmtree(self.folder)

    def new_database(self) -> str | None:
        """The URL of an empty database, if it is not to be SQLite."""
        return None

    def accept(self, client: str, new: NewJob) -> Job | None:
        before = [job for job, status in self.status.items() if status is Status.QUEUED]
        try:
            (job,) = self.bench.store.submit(client, [new]).jobs
        except StoreFull:
            self.note_evictions()
            return None
        except TooBusy:
            assert len(before) >= 2
            return None
        self.note_evictions()
        self.status[job.id] = Status.QUEUED
        return job

    def note_evictions(self) -> None:
        """When room is short, finished jobs may expire; others may not."""
        for job_id, job in self.bench.store.find(list(self.status)).items():
            if job.status is Status.EXPIRED and self.status[job_id] is not Status.EXPIRED:
                assert self.status[job_id] is Status.SUCCEEDED
                self.status[job_id] = Status.EXPIRED

    @rule(client=CLIENTS, size=SIZES)
    def submit(self, client: str, size: int) -> None:
        self.accept(client, NewJob(REQUEST, bytes(size), callback_url="https://example.org/"))

    @rule(client=CLIENTS, key=st.sampled_from(["k", "l"]))
    def submit_with_key(self, client: str, key: str) -> None:
        try:
            submission = self.bench.store.submit(client, [NewJob(REQUEST, b"keyed")], key=key)
        except (StoreFull, TooBusy):
            self.note_evictions()
            return
        self.note_evictions()
        (job,) = submission.jobs
        assert submission.is_new == (job.id not in self.status)
        self.status.setdefault(job.id, Status.QUEUED)

    @rule(client=CLIENTS, which=WHICH)
    def submit_again(self, client: str, which: int) -> None:
        if not self.status:
            return
        source = list(self.status)[which % len(self.status)]
        has_photo = self.bench.store.find([source])[source].photo is not None if self.exists(source) else False
        try:
            self.accept(client, NewJob(REQUEST, source=source))
        except (Gone, UnknownJob):
            assert not has_photo

    def exists(self, job_id: str) -> bool:
        return job_id in self.bench.store.find([job_id])

    @rule(target=leases)
    def claim(self) -> Lease | None:
        lease = self.bench.store.queue.claim()
        queued = [job for job, status in self.status.items() if status is Status.QUEUED]
        if lease is None:
            assert not queued
            return None
        assert lease.job.id in queued
        self.status[lease.job.id] = Status.RUNNING
        self.holder[lease.job.id] = lease.token
        return lease

    def holds(self, lease: Lease | None) -> bool:
        return lease is not None and self.holder.get(lease.job.id) == lease.token

    def let_go(self, lease: Lease, status: Status) -> None:
        self.status[lease.job.id] = status
        del self.holder[lease.job.id]
        self.overdue.discard(lease.job.id)

    @rule(lease=leases)
    def renew(self, lease: Lease | None) -> None:
        if lease is not None:
            assert self.bench.store.queue.renew(lease) == self.holds(lease)
            if self.holds(lease):
                self.overdue.discard(lease.job.id)

    @rule(lease=leases, size=SIZES)
    def finish(self, lease: Lease | None, size: int) -> None:
        if lease is None:
            return
        data = b"p" * size
        try:
            is_finished = self.bench.store.finish(lease, painting(data))
        except StoreFull:
            self.note_evictions()
            return
        assert is_finished == self.holds(lease)
        self.note_evictions()
        if is_finished:
            self.let_go(lease, Status.SUCCEEDED)
            self.painted[lease.job.id] = data

    @rule(lease=leases)
    def fail(self, lease: Lease | None) -> None:
        if lease is not None:
            assert self.bench.store.queue.fail(lease, BrokenImage("broken")) == self.holds(lease)
            if self.holds(lease):
                self.let_go(lease, Status.FAILED)

    @rule(lease=leases)
    def retry(self, lease: Lease | None) -> None:
        if lease is not None:
            assert self.bench.store.queue.retry(lease, OutOfMemory("no memory")) == self.holds(lease)
            if self.holds(lease):
                is_last = lease.job.attempt >= LIMITS["max_attempts"]
                self.let_go(lease, Status.FAILED if is_last else Status.QUEUED)

    @rule(lease=leases)
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            assert self.bench.store.queue.release(lease) == self.holds(lease)
            if self.holds(lease):
                self.let_go(lease, Status.QUEUED)

    @rule(which=WHICH)
    def remove(self, which: int) -> None:
        if not self.status:
            return
        job_id = list(self.status)[which % len(self.status)]
        if self.status[job_id] is Status.EXPIRED:
            with pytest.raises((Gone, UnknownJob)):
                self.bench.store.remove(job_id)
            return
        is_unfinished = self.status[job_id].is_unfinished
        self.bench.store.remove(job_id)
        self.status[job_id] = Status.CANCELLED if is_unfinished else Status.EXPIRED
        self.holder.pop(job_id, None)
        self.overdue.discard(job_id)

    @rule()
    def a_lease_passes(self) -> None:
        self.bench.pass_time(self.bench.settings.lease_s + 1)
        self.overdue |= set(self.holder)

    @rule()
    def reap(self) -> None:
        reaped = self.bench.store.queue.reap()
        assert {*reaped.queued, *reaped.failed} == self.overdue
        for ids, status in ((reaped.queued, Status.QUEUED), (reaped.failed, Status.FAILED)):
            for job_id in ids:
                self.status[job_id] = status
                del self.holder[job_id]
        self.overdue = set()

    @rule()
    def an_hour_passes(self) -> None:
        self.bench.pass_time(3700)
        self.overdue |= set(self.holder)

    @rule()
    def a_day_passes(self) -> None:
        finished = [job_id for job_id, status in self.status.items() if not status.is_unfinished]
        self.bench.pass_time(90_000)
        self.overdue |= set(self.holder)
        self.reap()
        self.bench.store.sweep()
        self.status |= dict.fromkeys(finished, Status.EXPIRED)

    @rule()
    def clock_is_set_back(self) -> None:
        self.reap()  # else some of the overdue leases would end in the future again
        self.bench.pass_time(-10_000)
        self.bench.store.sweep()  # which finds times that lie too far ahead

    @rule()
    def sweep(self) -> None:
        self.reap()
        self.bench.store.sweep()
        self.note_evictions()

    @invariant()
    def everything_agrees(self) -> None:
        self.bench.check()
        found = self.bench.store.find(list(self.status))
        ended = [job.id for job in found.values() if job.status in FINISHED and job.callback_url]
        assert sorted(message.job for message in self.bench.messages()) == sorted(ended)
        for job_id, status in self.status.items():
            if job_id not in found:
                assert status is Status.EXPIRED
                continue
            assert found[job_id].status is status
            if status is Status.SUCCEEDED:
                assert self.bench.store.painting(found[job_id]) == self.painted[job_id]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_store_agrees_with_its_model(kind: str, request: pytest.FixtureRequest) -> None:
    class Machine(StoreMachine):
        def new_database(self) -> str | None:
            if kind == "sqlite":
                return None
            server: PostgresServer = request.getfixturevalue("postgres")
            return server.new_database()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15 if kind == "sqlite" else 5,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
