"""Batchers before the same simulated device: ours, Ray Serve's, LitServe's and BentoML's; `scripts/bench batching`.

A batch of n pictures of one size takes 150 + 12 n ms, asleep, and batches run one at a time. Nothing but the batcher is
between a picture and the device: no HTTP, no handles, no frames. Each is driven as its framework drives it:

    ours           `serve_app.queueing.batching.Batcher` with no setting but the largest batch
    @serve.batch   in a replica of a small Serve application, which makes the pictures itself
    LitServe       its `BatchedLoop` in a process of its own as a LitServer's worker, between two multiprocessing queues
    BentoML        its `CorkDispatcher` with its default latency bound; it learns from its first pictures, which do not
                   count

None of the rivals can group by size, so what they batch is painted size by size, each with a batch's time of its own.
`@serve.batch, a method a size` is what may be done where all sizes are known beforehand: a queue for each size, and a
lock before the device.

Pictures come at a steady pace, whether or not earlier ones are painted. Latency is from the moment when a picture was
due to its answer; pictures/s is over the whole, to the last answer; the batch is the mean over runs of the device.
`late` is the 99th percentile of how long after their time pictures were sent: figures from a busy machine show there.

LitServe and BentoML are looked for in the Python of `--rival-python`; benchmarks/rivals.py says how it is made.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import random
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.reporting import print_table, write

FIXED_S, EACH_S = 0.150, 0.012
MAX_BATCH_SIZE = 8
WARM_UP = 48  # pictures; BentoML learns from its first 11 batches
WAITS_MS = [10, 50, 100, 200]  # the first is the default of `@serve.batch`
TUNED_AT_MS = 30  # between two pictures: the pace for which a rival's wait is chosen

Picture = tuple[int, int]  # number, size
Painted = tuple[int, int]  # number, how many were painted together
Submit = Callable[[Picture], Awaitable[Painted]]


@dataclass(frozen=True)
class Load:
    """Pictures of `sizes` sizes, drawn by a seed, one every `period_ms`."""

    sizes: int
    period_ms: int
    pictures: int

    def photos(self) -> list[Picture]:
        chance = random.Random(0)
        return [(number, chance.randrange(self.sizes)) for number in range(WARM_UP + self.pictures)]


@dataclass(frozen=True)
class Contestant:
    name: str
    family: str
    wait_ms: int | None = None

    def label(self) -> str:
        return self.name if self.wait_ms is None else f"{self.name}, {self.wait_ms} ms"


OURS = Contestant("ours", "ours")
SERVE = [Contestant("@serve.batch", "serve", wait) for wait in WAITS_MS]
SERVE_BY_SIZE = [Contestant("@serve.batch, a method a size", "serve-by-size", wait) for wait in WAITS_MS]
LITSERVE = [Contestant("LitServe", "litserve", wait) for wait in [0, *WAITS_MS]]
BENTOML = Contestant("BentoML", "bentoml")
CONTESTANTS = [OURS, *SERVE, *SERVE_BY_SIZE, *LITSERVE, BENTOML]
PACKAGES = {"ours": "animegan-serve", "serve": "ray", "serve-by-size": "ray", "litserve": "litserve"}
PACKAGES |= {"bentoml": "bentoml"}


# In the measured process


def batch_s(pictures: int) -> float:
    return FIXED_S + EACH_S * pictures


def by_size(pictures: Sequence[Picture]) -> Counter[int]:
    return Counter(size for _, size in pictures)


class Device:
    """Asleep while it paints; whoever comes meanwhile waits."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def paint(self, pictures: Sequence[Picture]) -> list[Painted]:
        together = by_size(pictures)
        async with self._lock:
            for count in together.values():
                await asyncio.sleep(batch_s(count))
        return [(number, together[size]) for number, size in pictures]


@dataclass(frozen=True)
class Answer:
    painted: Painted
    late_s: float
    latency_s: float


async def come(photos: list[Picture], period_s: float, submit: Submit) -> tuple[list[Answer], float]:
    """The answers, and the seconds from the first arrival to the last of them."""
    began = time.monotonic()

    async def one(picture: Picture, due: float) -> Answer:
        late_s = time.monotonic() - due
        return Answer(await submit(picture), late_s, time.monotonic() - due)

    orders = []
    for place, picture in enumerate(photos):
        due = began + place * period_s
        await asyncio.sleep(due - time.monotonic())
        orders.append(asyncio.create_task(one(picture, due)))
    answers = await asyncio.gather(*orders)
    return answers, time.monotonic() - began


async def measure_load(load: Load, submit: Submit) -> dict[str, float]:
    photos = load.photos()
    await come(photos[:WARM_UP], load.period_ms / 1000, submit)
    answers, took_s = await come(photos[WARM_UP:], load.period_ms / 1000, submit)
    if [answer.painted[0] for answer in answers] != [number for number, _ in photos[WARM_UP:]]:
        raise RuntimeError("pictures were mixed up")
    latencies_ms = [1000 * answer.latency_s for answer in answers]
    runs = sum(1 / together for _, together in (answer.painted for answer in answers))  # of the device
    return {
        "pictures/s": load.pictures / took_s,
        "p50 ms": percentile(latencies_ms, 50),
        "p99 ms": percentile(latencies_ms, 99),
        "batch": load.pictures / runs,
        "late ms": percentile([1000 * answer.late_s for answer in answers], 99),
    }


def percentile(values: list[float], percent: float) -> float:
    """The smallest of the values below or at which so many per cent of them are (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


async def measure_loads(loads: list[Load], make: Callable[[], Submit]) -> list[dict[str, float]]:
    """All loads side by side, each with a batcher and a device of its own, since everything sleeps."""
    return await asyncio.gather(*(measure_load(load, make()) for load in loads))


def measure_ours(waits_ms: list[int | None], loads: list[Load]) -> list[list[dict[str, float]]]:
    from serve_app.queueing.batching import Batcher

    def make() -> Submit:
        device = Device()

        async def run(size: int, pictures: list[Picture]) -> list[Painted | Exception]:
            return [*await device.paint(pictures)]

        batcher: Batcher[int, Picture, Painted] = Batcher(run, MAX_BATCH_SIZE)

        async def submit(picture: Picture) -> Painted:
            return (await batcher.submit(picture[1], picture)).result

        return submit

    return [asyncio.run(measure_loads(loads, make)) for _ in waits_ms]


def measure_serve(
    waits_ms: list[int | None], loads: list[Load], is_by_size: bool = False
) -> list[list[dict[str, float]]]:
    import ray
    from ray import serve

    def make(wait_ms: int) -> Submit:
        device = Device()

        def method() -> Submit:
            @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=wait_ms / 1000)
            async def paint(pictures: list[Picture]) -> list[Painted]:
                return await device.paint(pictures)

            return paint

        if not is_by_size:
            return method()
        methods = [method() for _ in range(max(load.sizes for load in loads))]
        return lambda picture: methods[picture[1]](picture)

    @serve.deployment(max_ongoing_requests=1000)  # no bound on the batch
    class Replica:
        async def measure(self) -> list[list[dict[str, float]]]:
            return await asyncio.gather(*(measure_loads(loads, partial(make, wait_ms)) for wait_ms in waits_ms))

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(Replica.bind(), name="bench", route_prefix=None)
        return handle.measure.remote().result()
    finally:
        serve.shutdown()
        ray.shutdown()


def measure_litserve(waits_ms: list[int | None], loads: list[Load]) -> list[list[dict[str, float]]]:
    from litserve import LitAPI
    from litserve.callbacks import CallbackRunner
    from litserve.loops import inference_worker
    from litserve.loops.base import _SENTINEL_VALUE
    from litserve.transport.process_transport import MPQueueTransport
    from litserve.utils import LitAPIStatus

    class Painter(LitAPI):
        def setup(self, device: str) -> None:
            pass

        def batch(self, inputs: list[Picture]) -> list[Picture]:
            return inputs

        def predict(self, x: list[Picture]) -> list[Painted]:
            together = by_size(x)
            for count in together.values():
                time.sleep(batch_s(count))
            return [(number, together[size]) for number, size in x]

        def unbatch(self, output: list[Painted]) -> list[Painted]:
            return output

    processes = multiprocessing.get_context("fork")

    class Worker:
        def __init__(self, wait_ms: int) -> None:
            self.requests, self.responses = processes.Queue(), processes.Queue()
            api = Painter(max_batch_size=MAX_BATCH_SIZE, batch_timeout=wait_ms / 1000)
            api.request_timeout = 30  # as a LitServer sets it by default
            api.pre_setup()
            api.loop.pre_setup(api)
            transport = MPQueueTransport(None, [self.responses])
            arguments = (api, "cpu", 0, self.requests, transport, {}, CallbackRunner(), False)
            self.process = processes.Process(target=inference_worker, args=arguments, daemon=True)
            self.process.start()
            self.orders: dict[int, asyncio.Future[Painted]] = {}

        async def measure(self, load: Load) -> dict[str, float]:
            threading.Thread(target=self._read, args=[asyncio.get_running_loop()], daemon=True).start()
            try:
                return await measure_load(load, self._submit)
            finally:
                self.requests.put(_SENTINEL_VALUE)

        async def _submit(self, picture: Picture) -> Painted:
            number, _ = picture
            self.orders[number] = asyncio.get_running_loop().create_future()
            self.requests.put((0, number, time.monotonic(), picture))
            return await self.orders[number]

        def _read(self, loop: asyncio.AbstractEventLoop) -> None:
            while True:
                number, (painted, status, *_) = self.responses.get()
                if status != LitAPIStatus.OK:
                    loop.call_soon_threadsafe(self.orders[number].set_exception, RuntimeError(str(painted)))
                else:
                    loop.call_soon_threadsafe(self.orders[number].set_result, painted)

    def side_by_side(wait_ms: int, some: list[Load]) -> list[dict[str, float]]:
        workers = [Worker(wait_ms) for _ in some]

        async def measure_all() -> list[dict[str, float]]:
            return await asyncio.gather(*(worker.measure(load) for worker, load in zip(workers, some, strict=True)))

        rows = asyncio.run(measure_all())
        for worker in workers:
            worker.process.join()
        return rows

    # An idle loop that waits 0 ms keeps a core busy: side by side they would take the cores from each other.
    return [
        side_by_side(wait_ms, loads) if wait_ms else [row for load in loads for row in side_by_side(0, [load])]
        for wait_ms in waits_ms
    ]


def measure_bentoml(waits_ms: list[int | None], loads: list[Load]) -> list[list[dict[str, float]]]:
    from _bentoml_sdk.method import APIMethod
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    latency_ms = APIMethod.__attrs_attrs__.max_latency_ms.default  # type: ignore[attr-defined]

    def make() -> Submit:
        dispatcher: Any = CorkDispatcher(
            latency_ms, MAX_BATCH_SIZE, fallback=lambda: None, get_batch_size=lambda picture: 1
        )
        return dispatcher(Device().paint)

    return [asyncio.run(measure_loads(loads, make)) for _ in waits_ms]


MEASURES: dict[str, Callable[..., list[list[dict[str, float]]]]] = {
    "ours": measure_ours,
    "serve": measure_serve,
    "serve-by-size": partial(measure_serve, is_by_size=True),
    "litserve": measure_litserve,
    "bentoml": measure_bentoml,
}


def measure(job: dict[str, Any]) -> None:
    """One family, at each of its waits before all loads; prints one line of JSON."""
    loads = [Load(**load) for load in job["loads"]]
    figures = MEASURES[job["family"]](job["waits_ms"], loads)
    package = PACKAGES[job["family"]]
    print(json.dumps({"version": f"{package} {version(package)}", "figures": figures}))


# In the process that asks


Figures = dict[tuple[int, int, str], dict[str, float]]  # by sizes, milliseconds between two pictures, and label


def in_fresh_process(python: Path, family: str, waits_ms: list[int | None], loads: list[Load]) -> dict[str, Any]:
    """Raises: RuntimeError: with the last line that the process wrote, where it failed."""
    job = {"family": family, "waits_ms": waits_ms, "loads": [asdict(load) for load in loads]}
    command = [str(python), "-m", "benchmarks.batching", "--measure", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["?"])[-1])
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Throughput and latency of our batcher and three others on one simulated device, at several paces and sizes."""
    figures: Figures = {}
    versions = []
    for family in MEASURES:
        contestants = [contestant for contestant in CONTESTANTS if contestant.family == family]
        sizes = [options.sizes] if family == "serve-by-size" else [1, options.sizes]
        loads = [Load(count, period, options.pictures) for count in sizes for period in options.periods_ms]
        python = options.rival_python if family in ("litserve", "bentoml") else Path(sys.executable)
        print(f"{contestants[0].name} …", file=sys.stderr, flush=True)
        try:
            result = in_fresh_process(python, family, [contestant.wait_ms for contestant in contestants], loads)
        except (RuntimeError, OSError) as error:
            print(f"  could not be measured: {error}", file=sys.stderr)
            continue
        versions.append(result["version"])
        for contestant, rows in zip(contestants, result["figures"], strict=True):
            for load, row in zip(loads, rows, strict=True):
                figures[load.sizes, load.period_ms, contestant.label()] = row
    rows = [
        {"sizes": sizes, "every ms": period, "batcher": name} | row
        for (sizes, period, name), row in sorted(figures.items(), key=lambda item: item[0][:2])
    ]
    print_table(rows)
    targets = judge(figures, options.sizes)
    print()
    print_table(targets)
    write(
        options,
        "batching",
        rows,
        targets=targets,
        versions=sorted(set(versions)),
        pictures=options.pictures,
        device=f"{1000 * FIXED_S:g} + {1000 * EACH_S:g} n ms, at most {MAX_BATCH_SIZE} together",
        command=shlex.join(["scripts/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    plot(options.out, figures)


def judge(figures: Figures, sizes: int) -> list[dict[str, Any]]:
    """What the project claims, as ratios in which 1 is a draw and more is our win; all, whoever wins."""
    verdicts: list[dict[str, Any]] = []

    def say(claim: str, ratio: float, wanted: float | None, rival: str) -> None:
        verdict = "" if wanted is None else "met" if round(ratio, 2) >= wanted else "missed"
        verdicts.append({"claim": claim, "against": rival, "ratio": ratio, "wanted": wanted or "", "": verdict})

    def faster(count: int, period: int, name: str) -> float:
        return figures[count, period, OURS.label()]["pictures/s"] / figures[count, period, name]["pictures/s"]

    def sooner(count: int, period: int, name: str) -> float:
        return figures[count, period, name]["p99 ms"] / figures[count, period, OURS.label()]["p99 ms"]

    def best(contestants: Sequence[Contestant], count: int, period: int, figure: str) -> str:
        names = [contestant.label() for contestant in contestants]
        key = {"pictures/s": max, "p99 ms": min}[figure]
        return key(names, key=lambda name: figures[count, period, name][figure])

    periods = sorted({period for _, period, _ in figures})
    for period in periods:
        pace = f"every {period} ms"
        at_home = period == TUNED_AT_MS
        default = SERVE[0].label()
        say(f"pictures/s, one size, {pace}, default wait", faster(1, period, default), 4 if at_home else None, default)
        name = best(SERVE, 1, period, "pictures/s")
        say(f"pictures/s, one size, {pace}, best wait of this pace", faster(1, period, name), 1, name)
        name = best(SERVE, sizes, period, "pictures/s")
        wanted = 2 if at_home else None
        say(f"pictures/s, {sizes} sizes, {pace}, best wait of this pace", faster(sizes, period, name), wanted, name)
    families = [SERVE, LITSERVE, [BENTOML], SERVE_BY_SIZE]
    for count in (1, sizes):
        for contestants in families:
            if (count, TUNED_AT_MS, contestants[0].label()) not in figures:
                continue
            name = best(contestants, count, TUNED_AT_MS, "p99 ms")
            for period in periods:
                say(
                    f"p99, {'one size' if count == 1 else f'{count} sizes'}, every {period} ms,"
                    f" wait tuned for every {TUNED_AT_MS} ms",
                    sooner(count, period, name),
                    None if period == TUNED_AT_MS else 2,
                    name,
                )
    return verdicts


def plot(folder: Path, figures: Figures) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    colours = {"ours": "red", "serve": "blue", "serve-by-size": "purple", "litserve": "green", "bentoml": "orange"}
    periods = sorted({period for _, period, _ in figures})
    counts = sorted({count for count, _, _ in figures})
    board, axes = plt.subplots(2, len(counts), figsize=(7 * len(counts), 9), squeeze=False)
    for column, count in enumerate(counts):
        for row, figure in enumerate(("pictures/s", "p99 ms")):
            axis = axes[row][column]
            for contestant in CONTESTANTS:
                if (count, periods[0], contestant.label()) not in figures:
                    continue
                family = [other for other in CONTESTANTS if other.family == contestant.family]
                axis.plot(
                    range(len(periods)),
                    [figures[count, period, contestant.label()][figure] for period in periods],
                    marker="o",
                    label=contestant.label(),
                    color="tab:" + colours[contestant.family],
                    alpha=(1 + family.index(contestant)) / len(family),
                    linewidth=3 if contestant == OURS else 1.2,
                    zorder=3 if contestant == OURS else 2,
                )
            axis.set_xticks(range(len(periods)), [f"{period} ms" for period in periods])
            axis.set(title=f"{count} size{'s' * (count > 1)}: {figure}", xlabel="a picture every")
            axis.set_ylim(bottom=0) if row == 0 else axis.set_yscale("log")
        axes[0][column].legend(fontsize=7)
    board.tight_layout()
    board.savefig(folder / "batching.png", dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All but `--out`."""
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--periods-ms", type=int, nargs="+", default=[15, TUNED_AT_MS, 100, 250])
    parser.add_argument("--sizes", type=int, default=4, help="of the mixed load")
    python = ROOT / "runs" / "rivals" / "bin" / "python"
    parser.add_argument("--rival-python", type=Path, default=python, help="that has LitServe and BentoML")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
    else:
        run(options)


if __name__ == "__main__":
    main()
