"""The service's metrics, by the process that counts them; docs/metrics.md explains each.

What is counted for every request is little, and costs some microseconds each. Gauges, and what else can wait, are
published every `PUBLISH_S`. Gauges say how those of several processes are added up: `livesum`, `livemax`, or not at all
(`liveall`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol

import psutil
from prometheus_client import Counter, Gauge, Histogram

from serve_app.deployments import exposition
from serve_app.deployments.autoscaling import WorkReport
from serve_app.errors import RequestError
from serve_app.frames import Size
from serve_app.jobs.words import Status, Tally
from serve_app.queueing.admission import AdmissionController
from serve_app.queueing.batching import Batcher
from serve_app.settings import IngressSettings, JobRunnerSettings, JobsSettings
from serve_app.web.guard import Guard
from serve_app.web.traffic import OUTCOMES, Answered

PUBLISH_S = 5.0  # between two updates of the gauges
COUNT_JOBS_S = 15.0  # between two looks at the table of jobs
STYLIZE = "/v1/stylize"
STEPS = ("decode", "queue", "paint", "encode")
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
JOB_OUTCOMES = ("succeeded", "failed", "retried", "released", "void")  # of `jobs.runner.Observer`
WEBHOOK_OUTCOMES = ("delivered", "postponed", "given-up", "dropped")  # of `jobs.courier.Observer`
CODES = {RequestError.code, "not-found", "method-not-allowed", *(each.code for each in RequestError.__subclasses__())}
UNFINISHED = (Status.QUEUED, Status.RUNNING)

Work = Literal["request", "job"]
Mode = Literal["livesum", "livemax", "liveall"]

logger = logging.getLogger("ray.serve")


def counter(name: str, text: str, *labels: str) -> Counter:
    """Returns a counter; Prometheus sees it with `_total` at its end."""
    return Counter(f"animegan_{name}", text, labels, registry=None)


def gauge(name: str, text: str, *labels: str, mode: Mode = "livesum") -> Gauge:
    """Returns a gauge, of which `mode` says how those of several processes are added up."""
    return Gauge(f"animegan_{name}", text, labels, registry=None, multiprocess_mode=mode)


def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
    """Returns a histogram, of seconds by default."""
    return Histogram(f"animegan_{name}", text, labels, registry=None, buckets=buckets)


def known(code: str) -> str:
    """Returns the code of a refusal, as a label: whatever a framework may make up is `other`."""
    return code if code in CODES else "other"


class Interval:
    """Calls a function every few seconds, in an event loop.

    Args:
        publish: is called; what it raises is logged, and it is called again.
        every_s: seconds between two calls.
    """

    def __init__(self, publish: Callable[[], None], every_s: float = PUBLISH_S) -> None:
        self._publish = publish
        self._every_s = every_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins in the running event loop, unless it has begun."""
        if self._timer is None:
            self._call()

    def _call(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._call)
        try:
            self._publish()
        except Exception:
            logger.exception("metrics could not be published")


class ProcessMetrics:
    """What a process takes of the machine.

    Args:
        process: its kind: the name of its deployment, or `Proxy`.
    """

    def __init__(self, process: str) -> None:
        exposition.join()
        text = "Memory in RAM, shared pages included, of a process, or of all Decoders of a Codec."
        self._resident = gauge("resident_memory_bytes", text, "process", mode="liveall")
        self._kind = process
        text = "Open file descriptors of a process."
        self._descriptors = gauge("open_descriptors", text, "process", mode="liveall")
        self._process = psutil.Process()

    def publish_process(self) -> None:
        """Publishes what the process takes now."""
        self._resident.labels(self._kind).set(self._process.memory_info().rss)
        self._descriptors.labels(self._kind).set(self._process.num_fds())


class GuardMetrics(ProcessMetrics):
    """What the guard of one HTTP proxy holds and refuses; see `web.guard.GuardObserver`."""

    def __init__(self) -> None:
        super().__init__("Proxy")
        self._refusals = counter("guard_refusals", "Requests refused by the guard, by code.", "code")
        for code in ("lost", "too-busy"):
            self._refusals.labels(code)
        self._uploads = gauge("guard_uploads", "Bodies that a proxy holds.")
        self._uploads_limit = gauge("guard_uploads_limit", "Bodies that a proxy holds at most.")
        self._memory = gauge("guard_memory_bytes", "Bodies in memory.")
        self._disk = gauge("guard_disk_bytes", "Bodies in temporary files.")
        self._disk_limit = gauge("guard_disk_limit_bytes", "Bodies in temporary files, at most.")
        self._waiting = gauge("guard_waiting", "Bodies that have arrived and wait for their turn.")
        self._forwarded = gauge("guard_forwarded", "Requests with a body that a proxy has in the service.")
        self._streams = gauge("guard_streams", "Streams of events that a proxy serves.")
        self._guard: Guard | None = None
        self._interval = Interval(self.publish)

    def refused(self, code: str) -> None:
        """Counts a refusal."""
        self._refusals.labels(known(code)).inc()

    def holds(self, guard: Guard) -> None:
        """Begins to publish what a guard holds: only now is there an event loop to do it in."""
        self._guard = guard
        self._interval.start()

    def publish(self) -> None:
        """Publishes what the guard holds now."""
        guard = self._guard
        assert guard is not None  # that of `holds`
        settings, intake = guard.settings, guard.intake
        for each, value in (
            (self._uploads, intake.uploads.total()),
            (self._uploads_limit, settings.max_uploads),
            (self._memory, intake.memory_bytes),
            (self._disk, intake.disk.total()),
            (self._disk_limit, settings.disk_bytes),
            (self._waiting, guard.gate.waiting),
            (self._forwarded, guard.gate.inside),
            (self._streams, 0 if guard.streams is None else guard.streams.open.total()),
        ):
            each.set(value)


class StepMetrics:
    """How long the steps of painting a picture took.

    Args:
        work: for whom it was painted.
    """

    def __init__(self, work: Work) -> None:
        text = "Time of a picture in a step; in `queue` it waits for any of the others."
        seconds = histogram("step_seconds", text, "step", "work")
        self._steps = {step: seconds.labels(step, work) for step in STEPS}

    def observe(self, timings_ms: Mapping[str, float]) -> None:
        """Counts one picture by the times in its receipt, in milliseconds."""
        for step, took_ms in timings_ms.items():
            self._steps[step].observe(took_ms / 1000)


class Inside:
    """Pictures that an Ingress has admitted and not yet answered.

    Args:
        clock: seconds, monotonic.

    Attributes:
        admitted: number of all pictures that were admitted.
        ended: number of those that were answered, whatever the answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.admitted = 0
        self.ended = 0
        self._clock = clock
        self._since: dict[int, float] = {}  # by number, in the order of admission

    @property
    def oldest_s(self) -> float:
        """Seconds since the oldest of them was admitted; 0 if there is none."""
        return self._clock() - next(iter(self._since.values())) if self._since else 0.0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one more inside the block."""
        self.admitted += 1
        number = self.admitted
        self._since[number] = self._clock()
        try:
            yield
        finally:
            del self._since[number]
            self.ended += 1


class IngressMetrics(ProcessMetrics):
    """What an Ingress admits, answers and refuses; see `web.traffic.Observer`.

    Attributes:
        inside: what it has admitted.
        steps: of the pictures of requests.
    """

    def __init__(self) -> None:
        super().__init__("Ingress")
        self.inside = Inside()
        self.steps = StepMetrics("request")
        self._settings = IngressSettings()
        self._requests = counter("requests", "Requests answered.", "route", "style", "outcome")
        self._refusals = counter("refusals", "Requests refused, by code.", "code")
        for code in ("deadline-exceeded", "lost", "out-of-memory", "too-busy"):
            self._refusals.labels(code)
        text = "From the arrival of a photograph to its painting, of requests that got one."
        self._seconds = histogram("answer_seconds", text)
        text = "Requests for a painting that got one, or did not in time: whether it took no longer than queue_time_s."
        answers = counter("answers", text, "in_time")
        self._in_time, self._late = answers.labels("yes"), answers.labels("no")
        self._admitted = counter("admitted_pictures", "Pictures admitted.")
        self._ended = counter("ended_pictures", "Admitted pictures that were answered, whatever the answer.")
        self._counted = (0, 0)  # of `inside`, that were published
        self._pictures = gauge("inside_pictures", "Pictures admitted and not yet answered.")
        self._pictures_limit = gauge("inside_pictures_limit", "Pictures that are admitted at a time, at most.")
        self._pixels = gauge("inside_pixels", "Pixels of pictures admitted and not yet answered, as they are painted.")
        text = "Age of the oldest picture that was admitted and not yet answered."
        self._oldest = gauge("inside_oldest_seconds", text, mode="livemax")
        text = "Time that a picture may take from admission to the answer."
        self._timeout = gauge("timeout_seconds", text, mode="livemax")
        text = "Time in which all that is admitted should be painted: queue_time_s."
        self._queue_time = gauge("queue_time_limit_seconds", text, mode="livemax")
        text = "Pixels painted per second of work lately, by which admission decides."
        self._rate = gauge("pixels_per_second", text)

    def use(self, settings: IngressSettings) -> None:
        """Takes new settings."""
        self._settings = settings
        for outcome in OUTCOMES:  # so that they count from zero
            self._requests.labels(STYLIZE, settings.default_style, outcome)

    def answered(self, answer: Answered) -> None:
        """Counts an answer."""
        self._requests.labels(answer.route, answer.style, answer.outcome).inc()
        if answer.code is not None:
            self._refusals.labels(known(answer.code)).inc()
        if answer.route != STYLIZE:
            return
        if answer.outcome == "ok":
            self._seconds.observe(answer.seconds)
        if answer.outcome in ("ok", "late"):
            is_in_time = answer.outcome == "ok" and answer.seconds <= self._settings.queue_time_s
            (self._in_time if is_in_time else self._late).inc()

    def publish(self, admission: AdmissionController) -> None:
        """Publishes what is admitted now, and what was.

        The counters are published with the gauge: as long as the process lives, what was admitted and has not ended is
        inside. If it dies, what was inside shows as a difference.
        """
        self.publish_process()
        counted, self._counted = self._counted, (self.inside.admitted, self.inside.ended)
        for total, before, after in zip((self._admitted, self._ended), counted, self._counted, strict=True):
            total.inc(after - before)
        self._pictures.set(self.inside.admitted - self.inside.ended)
        self._pixels.set(admission.occupancy.pixels)
        self._rate.set(admission.pixels_per_second)
        self._oldest.set(self.inside.oldest_s)
        self._pictures_limit.set(self._settings.queue_most_pictures)
        self._timeout.set(self._settings.timeout_s)
        self._queue_time.set(self._settings.queue_time_s)


class RetiringMetrics(ProcessMetrics):
    """What a replica that may retire takes of the machine, and that it retires."""

    def __init__(self, deployment: str) -> None:
        super().__init__(deployment)
        self._retired_replicas = counter("retired_replicas", "Replicas that have left to be replaced.", "deployment")
        self._deployment = deployment
        self._retired_replicas.labels(deployment)  # so that it counts from zero

    def retires(self) -> None:
        """Counts that this replica leaves."""
        self._retired_replicas.labels(self._deployment).inc()


class CodecMetrics(RetiringMetrics):
    """What a Codec and its decoders take of the machine."""

    def __init__(self) -> None:
        super().__init__("Codec")
        self._decoders = self._resident.labels("Decoders")

    def publish(self, fork_server: int) -> None:
        """Publishes what they take now.

        Args:
            fork_server: id of the process that forks decoders.
        """
        self.publish_process()
        with suppress(psutil.NoSuchProcess):  # it is being replaced
            server = psutil.Process(fork_server)
            self._decoders.set(sum(map(resident_bytes, [server, *server.children()])))


def resident_bytes(process: psutil.Process) -> int:
    """Returns the memory of a process in RAM; 0 if it has ended."""
    with suppress(psutil.NoSuchProcess):
        resident: int = process.memory_info().rss
        return resident
    return 0


class Memory(Protocol):
    """Memory that painting takes; `engine.usage.MemoryUse` is one, and imports torch."""

    @property
    def peak_bytes(self) -> int:
        """Most that painting has added to the idle process."""

    predicted_bytes: int

    def card(self) -> tuple[int, int, int]:
        """Returns the bytes of tensors on the card, those that the allocator holds, and those that it may hold."""


class StylizerMetrics(RetiringMetrics):
    """Metrics of batches, and the figures for autoscaling; see `queueing.batching.Observer`."""

    def __init__(self) -> None:
        super().__init__("Stylizer")
        self.work = WorkReport()
        self._batch_size = histogram("batch_pictures", "Pictures in a batch.", buckets=BATCH_SIZES)
        self._wait_s = histogram("batch_wait_seconds", "From the arrival of a request's picture to its batch.")
        self._batch_s = histogram("batch_seconds", "Time of a batch on the device.")
        self._pixels = counter("painted_pixels", "Pixels painted.", "style", "work")
        self._busy_s = counter("device_busy_seconds", "Time in which a device was in use, by Stylizers together.")
        self._waiting_pictures = gauge("waiting_pictures", "Pictures that wait for the device.")
        self._waiting_pixels = gauge("waiting_pixels", "Pixels that wait for the device.", "work")
        self._styles = gauge("styles_loaded", "Styles that a Stylizer can paint in.", mode="liveall")
        text = "Most memory that painting has added to an idle Stylizer since it started."
        self._peak = gauge("painting_peak_bytes", text, mode="liveall")
        text = "Most memory that painting was predicted to add to an idle Stylizer since it started."
        self._predicted = gauge("painting_predicted_peak_bytes", text, mode="liveall")
        text = "Memory of tensors on the card; 0 on a CPU."
        self._allocated = gauge("cuda_allocated_bytes", text, mode="liveall")
        text = "Memory of the card that the allocator holds; 0 on a CPU."
        self._reserved = gauge("cuda_reserved_bytes", text, mode="liveall")
        text = "Memory of the card that the allocator may hold; 0 on a CPU."
        self._share = gauge("cuda_share_bytes", text, mode="liveall")

    def on_batch(
        self,
        key: tuple[str, Size],
        size: int,
        pixels: int,
        background_pixels: int,
        waits_s: list[float],
        ran_s: float,
        busy_s: float,
    ) -> None:
        """Records a batch that has ended."""
        self.work.add_batch(size, pixels, busy_s, background_pixels)
        self._batch_size.observe(size)
        self._batch_s.observe(ran_s)
        self._busy_s.inc(busy_s)
        for wait_s in waits_s:
            self._wait_s.observe(wait_s)
        for work, painted in (("request", pixels - background_pixels), ("job", background_pixels)):
            if painted:
                self._pixels.labels(key[0], work).inc(painted)

    def publish(self, batcher: Batcher[tuple[str, Size], Any, Any], styles: int, memory: Memory) -> None:
        """Publishes what waits now, and what painting takes.

        Args:
            batcher: in which pictures wait.
            styles: number of styles that were loaded.
            memory: of painting.
        """
        self.publish_process()
        self._waiting_pictures.set(batcher.waiting)
        self._waiting_pixels.labels("request").set(batcher.waiting_pixels - batcher.background_pixels)
        self._waiting_pixels.labels("job").set(batcher.background_pixels)
        self._styles.set(styles)
        self._peak.set(memory.peak_bytes)
        self._predicted.set(memory.predicted_bytes)
        for each, value in zip((self._allocated, self._reserved, self._share), memory.card(), strict=True):
            each.set(value)


class JobMetrics(ProcessMetrics):
    """Metrics of jobs and webhooks; see `jobs.courier.Observer`.

    Attributes:
        steps: of the pictures of jobs.
    """

    def __init__(self, settings: JobsSettings) -> None:
        super().__init__("JobRunner")
        self.steps = StepMetrics("job")
        self._ends = counter("job_ends", "Attempts at jobs, by how they ended.", "outcome")
        self._webhooks = counter("webhooks", "Attempts at webhooks, by what came of them.", "outcome")
        for total, outcomes in ((self._ends, JOB_OUTCOMES), (self._webhooks, WEBHOOK_OUTCOMES)):
            for outcome in outcomes:
                total.labels(outcome)
        self._at_work = gauge("jobs_at_work", "Jobs that JobRunners work on.")
        # Every JobRunner says the same of the table.
        self._jobs = gauge("jobs", "Jobs in the table.", "state", mode="livemax")
        text = "Time since the oldest job of a state was submitted; 0 if there is none."
        self._oldest = gauge("jobs_oldest_seconds", text, "state", mode="livemax")
        text = "Most attempts at a job that has not ended."
        self._attempts = gauge("jobs_attempts", text, "state", mode="livemax")
        text = "Estimated pixels of jobs that wait in the database."
        self._waiting_pixels = gauge("jobs_waiting_pixels", text, mode="livemax")
        self._stored = gauge("jobs_stored_bytes", "Photographs and paintings in the store.", mode="livemax")
        text = "Photographs and paintings in the store, at most."
        self._stored_limit = gauge("jobs_stored_limit_bytes", text, mode="livemax")
        self._stored_limit.set(settings.max_stored_bytes)
        text = "Time that an attempt at a job may take."
        self._timeout = gauge("job_timeout_seconds", text, mode="livemax")

    def use(self, settings: JobRunnerSettings) -> None:
        """Takes new settings."""
        self._timeout.set(settings.timeout_s)

    def ended(self, outcome: str) -> None:
        """Counts the end of an attempt."""
        self._ends.labels(outcome).inc()

    def sent(self, outcome: str) -> None:
        """Counts an attempt at a webhook."""
        self._webhooks.labels(outcome).inc()

    def publish(self, at_work: int, waiting_pixels: int) -> None:
        """Publishes what a runner works on, and what waits for all."""
        self.publish_process()
        self._at_work.set(at_work)
        self._waiting_pixels.set(waiting_pixels)

    def publish_table(self, tally: Tally) -> None:
        """Publishes what is in the table of jobs."""
        for status in Status:
            self._jobs.labels(status.value).set(tally.jobs.get(status, 0))
        for status in UNFINISHED:
            self._oldest.labels(status.value).set(tally.oldest_s.get(status, 0))
            self._attempts.labels(status.value).set(tally.attempts.get(status, 0))
        self._stored.set(tally.stored_bytes)
