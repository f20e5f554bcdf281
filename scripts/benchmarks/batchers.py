"""Four batchers in front of the same simulated device, measured in this process for `benchmarks.batching`.

    python -m benchmarks.batchers '{"family": "ours", "waits_ms": [null], "workloads": [...]}'

Prints one line of JSON. Nothing but the batcher is between an image and the device: no HTTP, no handles, no frames.
Each is driven as its framework drives it:

    ours           `serve_app.queueing.batching.Batcher` with no setting but the largest batch
    @serve.batch   in a replica of a small Serve application, which makes the images itself
    LitServe       its `BatchedLoop` in a process of its own as a LitServer's worker, between two multiprocessing queues
    BentoML        its `CorkDispatcher` with its default latency bound; it learns from its first images, which do not
                   count
"""

import asyncio
import json
import multiprocessing
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks.reporting import percentile

FIXED_S, EACH_S = 0.150, 0.012  # a batch of n images takes FIXED_S + n * EACH_S
MAX_BATCH_SIZE = 8
WARM_UP = 48  # images; BentoML learns from its first 11 batches
PACKAGES = {
    "ours": "animegan-serve",
    "serve": "ray",
    "serve-by-size": "ray",
    "litserve": "litserve",
    "bentoml": "bentoml",
}

SimulatedImage = tuple[int, int]  # number, size
Painted = tuple[int, int]  # number, how many were painted together
Submit = Callable[[SimulatedImage], Awaitable[Painted]]
Figures = dict[str, float]  # by name, of one batcher under one workload
Measure = Callable[["Sequence[int | None]", "Sequence[Workload]"], list[list[Figures]]]


@dataclass(frozen=True)
class Workload:
    """Images of `sizes` sizes, drawn by a seed, one every `period_ms`; `count` of them are measured."""

    sizes: int
    period_ms: int
    count: int

    def images(self) -> list[SimulatedImage]:
        """Returns the images to warm up with, and those that are measured."""
        chance = random.Random(0)
        return [(number, chance.randrange(self.sizes)) for number in range(WARM_UP + self.count)]


def batch_s(images: int) -> float:
    """Returns the seconds that the device takes for a batch of images of one size."""
    return FIXED_S + EACH_S * images


def count_by_size(images: Sequence[SimulatedImage]) -> Counter[int]:
    """Returns how many of the images have each size."""
    return Counter(size for _, size in images)


class SimulatedDevice:
    """A device that sleeps instead of painting, one batch at a time, and in a batch one size after another."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def paint(self, images: Sequence[SimulatedImage]) -> list[Painted]:
        """Waits until the device is free, and then as long as it would paint."""
        together = count_by_size(images)
        async with self._lock:
            for count in together.values():
                await asyncio.sleep(batch_s(count))
        return [(number, together[size]) for number, size in images]


# Measuring


@dataclass(frozen=True)
class Completion:
    """One image that came back: how long after it was due it was submitted, and when it was painted."""

    painted: Painted
    late_s: float
    latency_s: float


async def submit_at_intervals(
    images: Sequence[SimulatedImage], period_s: float, submit: Submit
) -> tuple[list[Completion], float]:
    """Submits an image every `period_s`, whether or not earlier ones are painted.

    Returns:
        The completions, and the seconds from the first submission to the last completion.
    """
    began = time.monotonic()

    async def one(image: SimulatedImage, due: float) -> Completion:
        late_s = time.monotonic() - due
        return Completion(await submit(image), late_s, time.monotonic() - due)

    tasks: list[asyncio.Task[Completion]] = []
    for place, image in enumerate(images):
        due = began + place * period_s
        await asyncio.sleep(due - time.monotonic())
        tasks.append(asyncio.create_task(one(image, due)))
    completions = await asyncio.gather(*tasks)
    return completions, time.monotonic() - began


async def measure_workload(workload: Workload, submit: Submit) -> Figures:
    """Returns throughput, latency, mean batch and lateness of one batcher under a workload.

    Raises:
        RuntimeError: if a submitter got another image's result.
    """
    images = workload.images()
    period_s = workload.period_ms / 1000
    await submit_at_intervals(images[:WARM_UP], period_s, submit)
    completions, took_s = await submit_at_intervals(images[WARM_UP:], period_s, submit)
    if [completion.painted[0] for completion in completions] != [number for number, _ in images[WARM_UP:]]:
        raise RuntimeError("images were mixed up")
    latencies_ms = [1000 * completion.latency_s for completion in completions]
    runs = sum(1 / together for _, together in (completion.painted for completion in completions))  # of the device
    return {
        "images/s": workload.count / took_s,
        "p50 ms": percentile(latencies_ms, 50),
        "p99 ms": percentile(latencies_ms, 99),
        "batch": workload.count / runs,
        "late ms": percentile([1000 * completion.late_s for completion in completions], 99),
    }


async def measure_workloads(workloads: Sequence[Workload], make: Callable[[], Submit]) -> list[Figures]:
    """Measures all workloads at once, each with a batcher and a device of its own, since everything sleeps."""
    return await asyncio.gather(*(measure_workload(workload, make()) for workload in workloads))


# The batchers; each function returns figures by wait and workload


def measure_ours(waits_ms: Sequence[int | None], workloads: Sequence[Workload]) -> list[list[Figures]]:
    """Measures this project's batcher, which has no wait to set."""
    from serve_app.queueing.batching import Batcher, SerialDevice

    def make() -> Submit:
        device = SimulatedDevice()

        async def run(size: int, images: list[SimulatedImage]) -> list[Painted | Exception]:
            return [*await device.paint(images)]

        batcher: Batcher[int, SimulatedImage, Painted] = Batcher(SerialDevice(run), MAX_BATCH_SIZE)

        async def submit(image: SimulatedImage) -> Painted:
            return (await batcher.submit(image[1], image)).result

        return submit

    return [asyncio.run(measure_workloads(workloads, make)) for _ in waits_ms]


def serve_batcher(wait_ms: int | None) -> Submit:
    """Returns a method with `@serve.batch` in front of a device."""
    return serve_method(SimulatedDevice(), wait_ms)


def serve_batcher_by_size(wait_ms: int | None, sizes: int) -> Submit:
    """Returns a method with `@serve.batch` for each size, in front of one device."""
    device = SimulatedDevice()
    methods = [serve_method(device, wait_ms) for _ in range(sizes)]
    return lambda image: methods[image[1]](image)


def serve_method(device: SimulatedDevice, wait_ms: int | None) -> Submit:
    """Returns a method with `@serve.batch` that paints on the device."""
    from ray import serve

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=(wait_ms or 0) / 1000)
    async def paint(images: list[SimulatedImage]) -> list[Painted]:
        return await device.paint(images)

    submit: Submit = paint
    return submit


def measure_serve(
    waits_ms: Sequence[int | None], workloads: Sequence[Workload], is_by_size: bool = False
) -> list[list[Figures]]:
    """Measures `@serve.batch` in a replica of its own."""
    import ray
    from ray import serve

    def make(wait_ms: int | None) -> Submit:
        if is_by_size:
            return serve_batcher_by_size(wait_ms, max(workload.sizes for workload in workloads))
        return serve_batcher(wait_ms)

    class Replica:
        async def measure(self) -> list[list[Figures]]:
            return await asyncio.gather(*(measure_workloads(workloads, partial(make, wait_ms)) for wait_ms in waits_ms))

    deployment = serve.deployment(max_ongoing_requests=1000)(Replica)  # no bound on the batch
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(deployment.bind(), name="bench", route_prefix=None)
        figures: list[list[Figures]] = handle.measure.remote().result()
        return figures
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def litserve_api(wait_ms: int) -> Any:
    """Returns a LitServe API that sleeps instead of painting, prepared as a LitServer prepares it."""
    from litserve import LitAPI

    class SleepingAPI(LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:
            pass

        def batch(self, inputs: list[SimulatedImage]) -> list[SimulatedImage]:
            return inputs

        def predict(self, x: list[SimulatedImage]) -> list[Painted]:
            together = count_by_size(x)
            for count in together.values():
                time.sleep(batch_s(count))
            return [(number, together[size]) for number, size in x]

        def unbatch(self, output: list[Painted]) -> list[Painted]:
            return output

    api = SleepingAPI(max_batch_size=MAX_BATCH_SIZE, batch_timeout=wait_ms / 1000)
    api.request_timeout = 30  # as a LitServer sets it by default
    api.pre_setup()
    api.loop.pre_setup(api)
    return api


class LitServeWorker:
    """A LitServer's worker in a process of its own, between a queue of requests and one of responses."""

    def __init__(self, wait_ms: int) -> None:
        from litserve.callbacks import CallbackRunner
        from litserve.loops import inference_worker
        from litserve.transport.process_transport import MPQueueTransport

        processes = multiprocessing.get_context("fork")
        self._requests: multiprocessing.Queue[Any] = processes.Queue()
        self._responses: multiprocessing.Queue[Any] = processes.Queue()
        transport = MPQueueTransport(None, [self._responses])
        arguments: tuple[Any, ...] = (litserve_api(wait_ms), "cpu", 0, self._requests, transport, {}, CallbackRunner())
        self.process = processes.Process(target=inference_worker, args=(*arguments, False), daemon=True)
        self.process.start()
        self._results: dict[int, asyncio.Future[Painted]] = {}

    async def measure(self, workload: Workload) -> Figures:
        """Measures one workload, and then ends the worker."""
        from litserve.loops.base import _SENTINEL_VALUE

        threading.Thread(target=self._read, args=[asyncio.get_running_loop()], daemon=True).start()
        try:
            return await measure_workload(workload, self._submit)
        finally:
            self._requests.put(_SENTINEL_VALUE)

    async def _submit(self, image: SimulatedImage) -> Painted:
        number, _ = image
        self._results[number] = asyncio.get_running_loop().create_future()
        self._requests.put((0, number, time.monotonic(), image))
        return await self._results[number]

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        from litserve.utils import LitAPIStatus

        while True:
            number, (painted, status, *_) = self._responses.get()
            if status != LitAPIStatus.OK:
                loop.call_soon_threadsafe(self._results[number].set_exception, RuntimeError(str(painted)))
            else:
                loop.call_soon_threadsafe(self._results[number].set_result, painted)


def measure_litserve(waits_ms: Sequence[int | None], workloads: Sequence[Workload]) -> list[list[Figures]]:
    """Measures LitServe's batching loop, each workload with a worker of its own."""

    def side_by_side(wait_ms: int, some: Sequence[Workload]) -> list[Figures]:
        workers = [LitServeWorker(wait_ms) for _ in some]

        async def measure_all() -> list[Figures]:
            pairs = zip(workers, some, strict=True)
            return await asyncio.gather(*(worker.measure(workload) for worker, workload in pairs))

        rows = asyncio.run(measure_all())
        for worker in workers:
            worker.process.join()
        return rows

    # An idle loop that waits 0 ms keeps a core busy: side by side they would take the cores from each other.
    return [
        side_by_side(wait_ms, workloads)
        if wait_ms
        else [row for workload in workloads for row in side_by_side(0, [workload])]
        for wait_ms in waits_ms
    ]


def measure_bentoml(waits_ms: Sequence[int | None], workloads: Sequence[Workload]) -> list[list[Figures]]:
    """Measures BentoML's dispatcher, which learns how long to wait."""
    from _bentoml_sdk.method import APIMethod
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    fields: Any = APIMethod.__attrs_attrs__
    latency_ms = fields.max_latency_ms.default

    def make() -> Submit:
        dispatcher: Any = CorkDispatcher(
            latency_ms, MAX_BATCH_SIZE, fallback=lambda: None, get_batch_size=lambda image: 1
        )
        submit: Submit = dispatcher(SimulatedDevice().paint)
        return submit

    return [asyncio.run(measure_workloads(workloads, make)) for _ in waits_ms]


MEASURES: dict[str, Measure] = {
    "ours": measure_ours,
    "serve": measure_serve,
    "serve-by-size": partial(measure_serve, is_by_size=True),
    "litserve": measure_litserve,
    "bentoml": measure_bentoml,
}


def main() -> None:
    """Measures one family at each of its waits, under all workloads."""
    job = json.loads(sys.argv[1])
    workloads = [Workload(**workload) for workload in job["workloads"]]
    figures = MEASURES[job["family"]](job["waits_ms"], workloads)
    package = PACKAGES[job["family"]]
    print(json.dumps({"version": f"{package} {version(package)}", "figures": figures}))


if __name__ == "__main__":
    main()
