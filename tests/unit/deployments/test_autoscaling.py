"""How many Stylizers pixels ask for, from what they report."""

import pytest
import yaml
from shared import ROOT

from serve_app.deployments.autoscaling import STATS, PixelBacklog, Work


class Now:
    """Serve's context, as far as the policy reads it."""

    def __init__(self, target: int, queued: float = 0, **stats: list[float]) -> None:
        self.current_num_replicas = self.target_num_replicas = target
        self.total_queued_requests: float | None = queued
        self.aggregated_metrics = {name: dict(enumerate(values)) for name, values in stats.items()}


def replicas(now: Now, **options: float) -> float:
    wanted, state = PixelBacklog(**options)(now)
    assert state == {}
    return wanted


def idle(count: int) -> dict[str, list[float]]:
    return {
        "busy": [0.0] * count,
        "waiting_pixels": [0.0] * count,
        "pixels_per_second": [1e6] * count,
        "pixels_per_picture": [250_000.0] * count,
    }


def test_before_anything_was_painted_nothing_changes() -> None:
    assert replicas(Now(3, queued=100)) == 3
    assert replicas(Now(3, queued=100, **idle(3) | {"pixels_per_second": [0.0] * 3})) == 3


def test_idle_replicas_ask_for_none() -> None:
    assert replicas(Now(4, **idle(4))) == 0


def test_as_many_are_kept_as_are_busy() -> None:
    assert replicas(Now(4, **idle(4) | {"busy": [1.0, 1.0, 0.9, 0.5]}), busy=0.85) == pytest.approx(4)


def test_what_waits_is_to_be_painted_in_time() -> None:
    waiting = idle(2) | {"waiting_pixels": [3e6, 5e6]}
    assert replicas(Now(2, **waiting), drain_s=4) == pytest.approx(2)
    assert replicas(Now(2, **waiting), drain_s=2) == pytest.approx(4)


def test_requests_that_wait_at_handles_count_by_the_mean_picture() -> None:
    assert replicas(Now(1, queued=32, **idle(1)), drain_s=4) == pytest.approx(2)
    large = idle(1) | {"pixels_per_picture": [1e6]}
    assert replicas(Now(1, queued=32, **large), drain_s=4) == pytest.approx(8)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_report_tells_the_busy_part_of_the_time_since_the_last_one() -> None:
    clock = Clock()
    work = Work(clock)
    clock.now = 10
    work.painted(2, 500_000, 4)
    assert work.report(123, 0) == {
        "busy": pytest.approx(0.4),
        "waiting_pixels": 123,
        "pixels_per_second": pytest.approx(125_000),
        "pixels_per_picture": pytest.approx(250_000),
    }
    clock.now = 20
    report = work.report(0, 0)
    assert (report["busy"], report["pixels_per_second"]) == (0, pytest.approx(125_000))


def test_batch_that_still_runs_counts_as_busy() -> None:
    clock = Clock()
    work = Work(clock)
    clock.now = 10
    assert work.report(0, running_for_s=5)["busy"] == pytest.approx(0.5)
    clock.now = 20
    assert work.report(0, running_for_s=15)["busy"] == 1
    assert work.report(0, running_for_s=15)["busy"] == 0  # no time has passed


def test_rate_follows_the_latest_batches() -> None:
    work = Work(Clock())
    work.painted(1, 1_000_000, 10)
    for _ in range(30):
        work.painted(1, 1_000_000, 1)
    assert work.report(0, 0)["pixels_per_second"] == pytest.approx(1e6, rel=0.02)


def test_report_has_the_figures_that_the_policy_reads() -> None:
    assert tuple(Work(Clock()).report(0, 0)) == STATS


def test_prod_names_the_policy() -> None:
    config = yaml.safe_load((ROOT / "configs" / "prod.yaml").read_text())
    (stylizer,) = (d for d in config["applications"][0]["deployments"] if d["name"] == "Stylizer")
    policy = stylizer["autoscaling_config"]["policy"]
    assert policy["policy_function"] == "serve_app.deployments.autoscaling:PixelBacklog"
    PixelBacklog(**policy["policy_kwargs"])
