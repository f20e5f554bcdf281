"""Estimates against a simulated runner, which shares a constant pace among the jobs that it runs at a time."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from jobstores import REQUEST, Bench, painting
from sqlalchemy import update

from serve_app.jobs.estimates import Pace, Run, covered, eta_of_running, eta_of_waiting, measure_pace
from serve_app.jobs.positions import MEASURED_JOBS, Positions
from serve_app.jobs.table import jobs
from serve_app.jobs.words import Job, NewJob, Outlook

STEP_S = 0.01


@dataclass
class SimulatedJob:
    pixels: int
    left: float
    eta_s: float | None
    submitted_s: float
    began_s: float = 0.0
    ended_s: float = 0.0


@dataclass
class Runner:
    """Paints in order of arrival, some jobs at a time; all that run advance alike."""

    at_once: int
    pixels_per_s: float
    now_s: float = 0.0
    waiting: list[SimulatedJob] = field(default_factory=list)
    running: list[SimulatedJob] = field(default_factory=list)
    done: list[SimulatedJob] = field(default_factory=list)

    def submit(self, pixels: int) -> None:
        self.waiting.append(SimulatedJob(pixels, pixels, self.estimate(pixels), self.now_s))

    def estimate(self, pixels: int) -> float | None:
        now = int(1000 * self.now_s)
        last = self.done[-MEASURED_JOBS:]
        painted = [Run(job.pixels, int(1000 * job.began_s), int(1000 * job.ended_s)) for job in last]
        running = [Run(job.pixels, int(1000 * job.began_s), now) for job in self.running]
        pace = measure_pace(painted, running, is_cut=len(last) == MEASURED_JOBS)
        ahead = sum(job.pixels for job in self.waiting)
        return None if pace is None else eta_of_waiting(pixels, ahead, running, pace)

    def step(self) -> None:
        while self.waiting and len(self.running) < self.at_once:
            job = self.waiting.pop(0)
            job.began_s = self.now_s
            self.running.append(job)
        self.now_s += STEP_S
        for job in list(self.running):
            job.left -= self.pixels_per_s * STEP_S / len(self.running)
            if job.left <= 0:
                job.ended_s = self.now_s
                self.running.remove(job)
                self.done.append(job)


def constant(_: random.Random) -> int:
    return 262_144


def mixed(chance: random.Random) -> int:
    return chance.choice([16_384, 262_144, 786_432])


@pytest.mark.parametrize(
    ("size", "at_once", "load"),
    [
        *itertools.product([constant], [1, 2, 4], [0.5, 0.9, 1.2]),
        *itertools.product([mixed], [1, 2], [0.5, 0.9, 1.2]),
        *itertools.product([constant, mixed], [4, 8], [1.2]),
    ],
)
def test_estimate_at_submission_holds_for_nine_of_ten_jobs_of_a_steady_load(
    size: Callable[[random.Random], int], at_once: int, load: float
) -> None:
    """Within 30 % or 2 s. Jobs arrive by chance, and nobody knows how many will soon share the pace with one.

    So it is not promised for many sizes, many at once and a queue that is mostly empty.
    """
    chance = random.Random(at_once)
    runner = Runner(at_once, 250_000)
    mean_pixels = sum(size(chance) for _ in range(999)) / 999
    next_s = 0.0
    while runner.now_s < 400:
        if runner.now_s >= next_s:
            runner.submit(size(chance))
            next_s += chance.expovariate(load * runner.pixels_per_s / mean_pixels)
        runner.step()
    steady = [job for job in runner.done if job.eta_s is not None and job.submitted_s > 20]
    assert len(steady) > 50
    errors = [abs((job.eta_s or 0) - took) for job in steady for took in [job.ended_s - job.submitted_s]]
    good = [error <= max(2.0, 0.3 * (job.ended_s - job.submitted_s)) for job, error in zip(steady, errors, strict=True)]
    assert sum(good) >= 0.9 * len(good)


def test_time_without_any_job_does_not_count() -> None:
    assert covered([(0, 10), (5, 20), (30, 40), (32, 38)]) == 30
    night_between = [Run(100, 0, 1000), Run(100, 50_000, 51_000)]
    assert measure_pace(night_between, [], is_cut=False) == Pace(100, 1)


def test_two_that_run_at_a_time_count_as_two() -> None:
    pace = measure_pace([Run(100, 0, 1000), Run(100, 0, 1000), Run(100, 1000, 2000), Run(100, 1000, 2000)], [], False)
    assert pace == Pace(200, 2)


def test_first_painted_job_tells_the_pace_of_those_that_ran_beside_it() -> None:
    running = [Run(100, 0, 1000), Run(100, 0, 1000), Run(100, 500, 1000)]
    assert measure_pace([Run(100, 0, 1000)], running, is_cut=False) == Pace(350, 3.5)


def test_nothing_is_measured_of_jobs_that_were_started_twice_or_took_no_time() -> None:
    assert measure_pace([], [], is_cut=False) is None
    assert measure_pace([Run(100, None, 1000), Run(100, 1000, 1000)], [], is_cut=False) is None


def test_jobs_that_all_ended_at_once_still_have_a_pace() -> None:
    assert measure_pace([Run(100, 0, 1000)] * 4, [], is_cut=True) == Pace(400, 4)


def test_a_running_job_has_its_rest_before_it() -> None:
    assert eta_of_running(Run(1000, 0, 1000), Pace(500, 1), 1) == 1
    assert eta_of_running(Run(1000, 0, 9000), Pace(500, 1), 1) == 0  # late
    assert eta_of_running(Run(1000, None, 9000), Pace(500, 1), 1) == 1  # of unknown start: half of it


def test_a_job_on_an_idle_runner_takes_its_own_time() -> None:
    assert eta_of_waiting(1000, 0, [], Pace(500, 1)) == 2


def test_outlooks_come_from_the_table(bench: Bench) -> None:
    store = bench.store
    now = 100.0
    positions = Positions(bench.database, lambda: now)
    ids = [store.submit("ann", [NewJob(REQUEST, b"photo", pixels=1000)]).jobs[0].id for _ in range(4)]

    def found() -> list[Job]:
        return list(store.find(ids).values())

    assert positions.outlook_now(ids[1]) == Outlook(1, None)
    assert positions.outlook_now(ids[1], rate=1000) == Outlook(1, 2)
    assert store.finish(bench.claim(), painting())
    with bench.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == ids[0]).values(started_at=jobs.c.finished_at - 4000))
    assert positions.outlooks(found(), rate=1000)[ids[2]] == Outlook(1, 2)  # a measurement of the last second
    now = 102.0
    assert positions.outlooks(found()) == {ids[1]: Outlook(0, 4), ids[2]: Outlook(1, 8), ids[3]: Outlook(2, 12)}
    assert positions.outlook_now(ids[3]) == Outlook(2, 12)
    assert positions.outlook_now(ids[0]) is None
    bench.claim()
    running = positions.outlook_now(ids[1])
    assert running is not None
    assert running.position == 0
    assert running.eta_s == pytest.approx(4, abs=3.5)


def test_a_job_without_pixels_counts_as_the_largest_that_its_max_side_allows(bench: Bench) -> None:
    job = bench.submit()
    assert bench.store.positions.outlook_now(job.id, rate=512 * 512) == Outlook(0, 1)
