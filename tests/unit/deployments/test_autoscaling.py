"""The numbers of replicas that the policies ask for, and the figures that they decide by."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from shared import ROOT

from serve_app.deployments.autoscaling import RETIRING, STATS, WORKING, Occupancy, PixelBacklog, Work, WorkReport


class Now:
    """The part of Serve's context that the policy reads."""

    def __init__(self, target: int, stats: Mapping[str, list[float]] | None = None, queued: float = 0) -> None:
        self.current_num_replicas = self.target_num_replicas = target
        self.total_queued_requests: float | None = queued
        self.aggregated_metrics: Mapping[str, Mapping[Any, float]] | None = {
            name: dict(enumerate(values)) for name, values in (stats or {}).items()
        }


def replicas(now: Now, **options: float) -> float:
    wanted, state = PixelBacklog(**options)(now)
    assert state == {}
    return wanted


def idle(count: int) -> dict[str, list[float]]:
    return {
        "busy": [0.0] * count,
        "waiting_pixels": [0.0] * count,
        "jobs_here": [0.0] * count,
        "jobs_queued": [0.0] * count,
        "pixels_per_second": [1e6] * count,
        "pixels_per_picture": [250_000.0] * count,
    }


def test_before_anything_was_painted_nothing_changes() -> None:
    assert replicas(Now(3, queued=100)) == 3
    assert replicas(Now(3, idle(3) | {"pixels_per_second": [0.0] * 3}, queued=100)) == 3


def test_idle_replicas_ask_for_none() -> None:
    assert replicas(Now(4, idle(4))) == 0


def test_busy_replicas_are_kept() -> None:
    assert replicas(Now(4, idle(4) | {"busy": [1.0, 1.0, 0.9, 0.5]}), busy=0.85) == pytest.approx(4)


def test_waiting_pixels_ask_for_enough_replicas_to_paint_them_in_time() -> None:
    waiting = idle(2) | {"waiting_pixels": [3e6, 5e6]}
    assert replicas(Now(2, waiting), drain_s=4) == pytest.approx(2)
    assert replicas(Now(2, waiting), drain_s=2) == pytest.approx(4)


def test_requests_that_wait_at_handles_count_as_images_of_the_mean_size() -> None:
    assert replicas(Now(1, idle(1), queued=32), drain_s=4) == pytest.approx(2)
    large = idle(1) | {"pixels_per_picture": [1e6]}
    assert replicas(Now(1, large, queued=32), drain_s=4) == pytest.approx(8)


def test_jobs_count_once_however_many_stylizers_have_heard_of_them() -> None:
    jobs = idle(3) | {"jobs_here": [1e6, 2e6, 0.0], "jobs_queued": [57e6, 0.0, 57e6]}
    assert replicas(Now(3, jobs), jobs_drain_s=60) == pytest.approx(1)
    assert replicas(Now(3, jobs), jobs_drain_s=30) == pytest.approx(2)
    assert replicas(Now(3, jobs | {"waiting_pixels": [4e6, 0.0, 0.0]}), drain_s=4) == pytest.approx(2)


def test_jobs_are_forgotten_when_nobody_tells_of_them_any_more() -> None:
    clock = Clock()
    work = WorkReport(clock)
    assert work.report(0, 0)["jobs_queued"] == 0
    work.hear_of_jobs(5_000_000)
    clock.now = 15
    assert work.report(0, 0, job_pixels=7)["jobs_queued"] == 5_000_000
    work.hear_of_jobs(1_000_000)
    assert work.report(0, 0, job_pixels=7) | {"busy": 0.0} == {
        "busy": 0,
        "waiting_pixels": 0,
        "jobs_here": 7,
        "jobs_queued": 1_000_000,
        "pixels_per_second": 0,
        "pixels_per_picture": 0,
    }
    clock.now = 30.1
    assert work.report(0, 0)["jobs_queued"] == 0


def test_painting_of_jobs_keeps_no_replica_busy_and_counts_for_the_rate() -> None:
    clock = Clock()
    work = WorkReport(clock)
    clock.now = 10
    work.add_batch(1, 1_000_000, 4, background_pixels=1_000_000)
    work.add_batch(4, 1_000_000, 4, background_pixels=750_000)
    report = work.report(0, 0)
    assert report["busy"] == pytest.approx(0.1)
    assert report["pixels_per_second"] == pytest.approx(250_000, rel=0.01)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_report_states_the_busy_part_of_the_time_since_the_last_one() -> None:
    clock = Clock()
    work = WorkReport(clock)
    clock.now = 10
    work.add_batch(2, 500_000, 4)
    assert work.report(123, 0) == {
        "busy": pytest.approx(0.4),
        "waiting_pixels": 123,
        "jobs_here": 0,
        "jobs_queued": 0,
        "pixels_per_second": pytest.approx(125_000),
        "pixels_per_picture": pytest.approx(250_000),
    }
    clock.now = 20
    report = work.report(0, 0)
    assert report["busy"] == 0
    assert report["pixels_per_second"] == pytest.approx(125_000)


def test_batch_that_still_runs_counts_as_busy() -> None:
    clock = Clock()
    work = WorkReport(clock)
    clock.now = 10
    assert work.report(0, running_for_s=5)["busy"] == pytest.approx(0.5)
    clock.now = 20
    assert work.report(0, running_for_s=15)["busy"] == 1
    assert work.report(0, running_for_s=15)["busy"] == 0  # no time has passed


def test_rate_and_mean_size_follow_the_latest_batches() -> None:
    work = WorkReport(Clock())
    work.add_batch(1, 4_000_000, 40)
    report = work.report(0, 0)
    assert report["pixels_per_second"] == pytest.approx(1e5)
    assert report["pixels_per_picture"] == pytest.approx(4e6)
    for _ in range(300):
        work.add_batch(2, 1_000_000, 1)
    report = work.report(0, 0)
    assert report["pixels_per_second"] == pytest.approx(1e6, rel=0.02)
    assert report["pixels_per_picture"] == pytest.approx(500_000, rel=0.02)


def test_one_small_batch_changes_the_rate_little() -> None:
    work = WorkReport(Clock())
    for _ in range(60):
        work.add_batch(1, 1_000_000, 1)
    work.add_batch(1, 4096, 0.3)
    assert work.report(0, 0)["pixels_per_second"] == pytest.approx(1e6, rel=0.02)


def test_rate_is_not_reduced_while_a_batch_runs_or_the_device_is_idle() -> None:
    clock = Clock()
    work = WorkReport(clock)
    work.add_batch(1, 1_000_000, 1)
    clock.now += 3600
    assert work.report(0, running_for_s=600)["pixels_per_second"] == pytest.approx(1e6)


def test_batch_that_took_no_time_on_the_clock_is_no_division_by_zero() -> None:
    work = WorkReport(Clock())
    work.add_batch(1, 1_000_000, 0)
    assert work.report(0, 0) == dict.fromkeys(STATS, 0.0)


def test_report_holds_the_figures_that_the_policy_reads() -> None:
    assert tuple(WorkReport(Clock()).report(0, 0)) == STATS


def test_codecs_are_counted_by_what_they_work_on() -> None:
    now = Now(1, {WORKING: [3.0, 1.5]}, queued=9)  # a queue before the Codecs says that the Stylizers are behind
    assert Work(target=2)(now) == (2.25, {})
    assert Work()(Now(3)) == (3, {})


def test_occupancy_is_the_average_of_its_period() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    clock.now = 1
    with occupancy.one():
        clock.now = 2
        with occupancy.one():
            clock.now = 4
    clock.now = 10
    assert occupancy.report() == {WORKING: (1 + 2 * 2) / 10}
    with occupancy.one():
        clock.now = 20
        assert occupancy.report() == {WORKING: 1.0}
        assert occupancy.report() == {WORKING: 1.0}  # no time has passed
    clock.now = 30
    assert occupancy.report() == {WORKING: 0.0}


def test_occupancy_ends_with_an_error() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    with pytest.raises(ValueError, match="broken"), occupancy.one():
        raise ValueError("broken")
    clock.now = 5
    assert occupancy.report() == {WORKING: 0.0}


@pytest.mark.parametrize(("name", "policy_class"), [("Stylizer", PixelBacklog), ("Codec", Work)])
def test_prod_names_the_policies(name: str, policy_class: type) -> None:
    config = yaml.safe_load((ROOT / "configs" / "prod.yaml").read_text())
    (deployment,) = (d for d in config["applications"][0]["deployments"] if d["name"] == name)
    policy = deployment["autoscaling_config"]["policy"]
    assert policy["policy_function"] == f"serve_app.deployments.autoscaling:{policy_class.__name__}"
    policy_class(**policy["policy_kwargs"])


@pytest.mark.parametrize("policy", [PixelBacklog(), Work()])
def test_a_replica_that_is_to_be_replaced_is_not_the_only_one(policy: PixelBacklog | Work) -> None:
    stats = idle(1) | {WORKING: [0.0], RETIRING: [1.0]}
    assert policy(Now(1, stats)) == (2, {})
    assert policy(Now(1, stats | {RETIRING: [0.0]})) == (0, {})
    busy = stats | {"busy": [0.85] * 5, WORKING: [2.0] * 5, RETIRING: [1.0, 0, 0, 0, 0]}
    assert policy(Now(5, busy))[0] == pytest.approx(5)  # the others work on meanwhile
    assert policy(Now(1, {RETIRING: [1.0]}))[0] == (2 if isinstance(policy, PixelBacklog) else 1)
