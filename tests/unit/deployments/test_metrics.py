"""What the processes count, and when they say it, without Ray."""

import asyncio
import logging
import os
import subprocess
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import Counter, Gauge, Histogram

from serve_app.deployments.metrics import (
    CodecMetrics,
    GuardMetrics,
    IngressMetrics,
    Inside,
    Interval,
    JobMetrics,
    ProcessMetrics,
    StepMetrics,
    StylizerMetrics,
)
from serve_app.frames import Client, Size
from serve_app.jobs.words import Status, Tally
from serve_app.queueing.admission import AdmissionController, Limits
from serve_app.settings import GuardSettings, IngressSettings, JobRunnerSettings, JobsSettings
from serve_app.web.guard import Guard
from serve_app.web.traffic import Answered, Outcome

LIMITS = Limits(10, 8, 64, 128_000_000)


def said(metric: Counter | Gauge | Histogram) -> dict[tuple[str, ...], float]:
    """The samples of a metric by the values of its labels; of a histogram how many there were."""
    (family,) = metric.collect()
    kind = {"counter": "_total", "gauge": "", "histogram": "_count"}[family.type]
    return {
        tuple(sample.labels.values()): sample.value
        for sample in family.samples
        if sample.name == f"{family.name}{kind}"
    }


def one(metric: Counter | Gauge | Histogram) -> float:
    (value,) = said(metric).values()
    return value


def answered(outcome: Outcome, seconds: float = 1.0, route: str = "/v1/stylize", code: str | None = None) -> Answered:
    return Answered(route, "toon", outcome, code, seconds)


def counts(metrics: IngressMetrics, answers: Iterable[Answered]) -> dict[str, float]:
    for each in answers:
        metrics.answered(each)
    return {"in time": metrics._in_time._value.get(), "late": metrics._late._value.get()}


def test_paintings_count_by_whether_they_were_there_in_time() -> None:
    metrics = IngressMetrics()
    metrics.use(IngressSettings(queue_time_s=4, default_style="toon"))
    answers = [answered("ok", 3.9), answered("ok", 4.1), answered("late", 55), answered("refused"), answered("busy")]
    assert counts(metrics, [*answers, answered("ok", route="/livez")]) == {"in time": 1, "late": 2}
    assert one(metrics._seconds) == 2
    requests = said(metrics._requests)
    assert requests["/v1/stylize", "toon", "ok"] == 2
    assert requests["/livez", "toon", "ok"] == 1
    assert requests["/v1/stylize", "toon", "failed"] == 0  # it counts from zero, so that its first one shows


def test_codes_of_refusals_are_those_that_are_documented() -> None:
    metrics = IngressMetrics()
    for code in ("too-busy", "not-found", "made-up-1", "made-up-2"):
        metrics.answered(answered("refused", code=code))
    refusals = {code: count for (code,), count in said(metrics._refusals).items() if count}
    assert refusals == {"too-busy": 1, "not-found": 1, "other": 2}


def test_what_was_admitted_and_has_not_ended_is_inside_whenever_it_is_published() -> None:
    now = 100.0
    metrics, admission = IngressMetrics(), AdmissionController(LIMITS)
    metrics.inside = Inside(lambda: now)
    with metrics.inside.one(), admission.admit(Client("ann"), 1000):
        now += 7
        with metrics.inside.one():
            now += 2
            assert said(metrics._admitted) == {(): 0}  # nothing is published in between
            metrics.publish(admission)
            assert (one(metrics._admitted), one(metrics._ended), one(metrics._pictures)) == (2, 0, 2)
            assert (one(metrics._oldest), one(metrics._pixels)) == (9, 1000)
        with pytest.raises(ValueError, match="broken"), metrics.inside.one():
            raise ValueError("broken")
    metrics.publish(admission)
    assert (one(metrics._admitted), one(metrics._ended), one(metrics._pictures)) == (3, 3, 0)
    assert one(metrics._oldest) == 0


def test_steps_are_counted_for_whom_they_were_taken() -> None:
    steps = StepMetrics("job")
    steps.observe({"decode": 10.0, "queue": 0.0, "paint": 2000.0, "encode": 5.0})
    seconds = steps._steps["paint"]
    assert seconds._sum.get() == 2


def test_pixels_of_jobs_in_a_batch_are_told_apart() -> None:
    metrics = StylizerMetrics()
    metrics.on_batch(("toon", Size(10, 10)), 4, 400, 100, [0.1, 0.2, 0.3], 2.0, 1.5)
    metrics.on_batch(("ink", Size(10, 10)), 1, 100, 0, [0.0], 0.5, 0.5)
    assert said(metrics._pixels) == {("toon", "request"): 300, ("toon", "job"): 100, ("ink", "request"): 100}
    assert (one(metrics._wait_s), one(metrics._batch_s), one(metrics._busy_s)) == (4, 2, 2)


def test_stylizer_says_what_waits_and_what_painting_takes() -> None:
    metrics = StylizerMetrics()
    batcher: Any = SimpleNamespace(waiting=3, waiting_pixels=700, background_pixels=200)
    memory: Any = SimpleNamespace(peak_bytes=5, predicted_bytes=6, card=lambda: (1, 2, 3))
    metrics.publish(batcher, 2, memory)
    assert said(metrics._waiting_pixels) == {("request",): 500, ("job",): 200}
    assert [one(each) for each in (metrics._waiting_pictures, metrics._styles, metrics._peak)] == [3, 2, 5]
    assert [one(each) for each in (metrics._predicted, metrics._allocated, metrics._share)] == [6, 1, 3]


def test_retired_replicas_count_from_zero() -> None:
    for metrics, name in ((StylizerMetrics(), "Stylizer"), (CodecMetrics(), "Codec")):
        before = said(metrics._retired_replicas)[name,]
        metrics.retires()
        assert said(metrics._retired_replicas)[name,] == before + 1


def test_codec_says_what_its_decoders_take_and_goes_on_when_they_have_died() -> None:
    metrics = CodecMetrics()
    with subprocess.Popen(["sleep", "60"]) as server:
        metrics.publish(server.pid)
        before = said(metrics._resident)
        assert before["Codec",] > before["Decoders",] > 0
        server.kill()
    metrics.publish(server.pid)
    assert said(metrics._resident)["Decoders",] == before["Decoders",]
    assert one(metrics._descriptors) >= 3


def test_jobs_of_every_state_are_said_even_where_there_are_none() -> None:
    metrics = JobMetrics(JobsSettings())
    metrics.use(JobRunnerSettings(timeout_s=77))
    metrics.publish_table(Tally({Status.QUEUED: 4}, {Status.QUEUED: 90.0}, {Status.QUEUED: 2}, 1234))
    metrics.publish_table(Tally({Status.FAILED: 1}, {Status.FAILED: 10.0}, {Status.FAILED: 3}, 99))
    assert said(metrics._jobs) == {(status.value,): float(status is Status.FAILED) for status in Status}
    assert said(metrics._oldest) == {("queued",): 0, ("running",): 0}
    assert (one(metrics._stored), one(metrics._timeout)) == (99, 77)


def test_guard_says_what_it_holds_from_its_first_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = GuardMetrics()
    guard = Guard(cast("Any", None), GuardSettings(max_uploads=9), observer=metrics)

    async def scene() -> None:
        with guard.intake.place("ann", 10):
            metrics.holds(guard)
            assert (one(metrics._uploads), one(metrics._uploads_limit)) == (1, 9)

    asyncio.run(scene())


def test_interval_goes_on_after_a_fault(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])
    calls = 0

    def publish() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("a fault")

    async def scene() -> None:
        interval = Interval(publish, every_s=0.01)
        interval.start()
        interval.start()  # it has begun
        assert calls == 1
        async with asyncio.timeout(20):
            while calls < 4:
                await asyncio.sleep(0.01)

    asyncio.run(scene())
    assert "metrics could not be published" in caplog.text


@pytest.mark.parametrize(
    ("metrics", "kind"),
    [
        (GuardMetrics(), "Proxy"),
        (IngressMetrics(), "Ingress"),
        (CodecMetrics(), "Codec"),
        (StylizerMetrics(), "Stylizer"),
        (JobMetrics(JobsSettings()), "JobRunner"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_process_of_any_kind_says_what_it_takes(metrics: ProcessMetrics, kind: str) -> None:
    metrics.publish_process()
    assert said(metrics._resident)[kind,] > 10_000_000
    assert 3 <= said(metrics._descriptors)[kind,] <= len(os.listdir("/proc/self/fd")) + 1
