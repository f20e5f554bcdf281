"""How far the deployment graph itself scales: the real Ingress, Codec and HTTP around a model that only sleeps.

    scripts/bench scaling
    scripts/bench scaling --replicas 1 2 --seconds 5

In place of painting, a Stylizer waits 250 ms for each image, so that any number of them fit on one machine; frames and
JPEGs are real. The graph's cost shows as CPU time: of each kind of process for each image, beside what an idle service
uses. Where these milliseconds, times the images a second, reach the machine's cores, or those of the only Ingress reach
one core, the curve must bend.
"""

import argparse
import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import yaml

from benchmarks import plots
from benchmarks.load import run_load
from benchmarks.monitor import CpuMeter
from benchmarks.paths import LOCAL_CONFIG, STYLIZE_PATH
from benchmarks.reporting import Row, collect, report
from benchmarks.servers import DECODER, free_port, running
from serve_app.cli.local_cluster.environment import ray_environment

PAINT_S = 0.25
CLIENTS = 4  # for each Stylizer: one image is painted, the others are decoded or encoded, or wait
STYLIZER_CPUS = 0.05  # so that all fit on two cores
QUEUE_KEYS = ("max_ongoing_requests", "max_queued_requests")
IDLE_S = 5.0
KINDS = {  # by role
    "ProxyActor": "proxy",
    "Ingress": "Ingress",
    "Codec": "Codec",
    DECODER: "Codec",
    "Stylizer": "Stylizer",
}
KIND_NAMES = list(dict.fromkeys(KINDS.values()))
REST = "Ray itself"
LOAD = "load"  # the load generator


# In the process that serves


def application(replicas: int, paint_s: float) -> Any:
    """Returns the application of `serve_app.app.build`, with local.yaml's deployments and Stylizers that sleep."""
    from ray import serve

    from serve_app.deployments.codec import Codec
    from serve_app.deployments.ingress import Ingress
    from serve_app.deployments.steps import Handed, Painted, fetch_async, hand_over
    from serve_app.frames import Frame
    from serve_app.queueing.batching import Batcher, SerialDevice
    from serve_app.settings import Settings

    class SimulatedStylizer:
        def __init__(self) -> None:
            self.batcher: Batcher[str, Frame, Frame] = Batcher(SerialDevice(self._paint), 1)

        async def paint(self, handed: Handed, style: str, expires_s: float | None = None) -> AsyncIterator[Painted]:
            done = await self.batcher.submit(style, await fetch_async(handed))
            yield Painted(hand_over(done.result), 1000 * done.ran_s)

        async def _paint(self, style: str, frames: list[Frame]) -> list[Frame | Exception]:
            await asyncio.sleep(paint_s * len(frames))
            return list(frames)

    configured = yaml.safe_load(LOCAL_CONFIG.read_text())["applications"][0]["deployments"]
    options = {deployment["name"]: deployment for deployment in configured}
    queues = {key: value for key, value in options["Stylizer"].items() if key in QUEUE_KEYS}
    stylizer = serve.deployment(
        name="Stylizer", num_replicas=replicas, ray_actor_options={"num_cpus": STYLIZER_CPUS}, **queues
    )(SimulatedStylizer)
    # Serve's decorator makes Deployments of these classes, and types them as if it did not.
    ingress, codec = (cast("serve.Deployment", part) for part in (Ingress, Codec))
    codec = codec.options(**options["Codec"])
    return ingress.options(**options["Ingress"]).bind(Settings(device="cpu"), codec.bind(stylizer.bind()))


def run_server(replicas: int, port: int, paint_s: float) -> None:
    """Serves until SIGTERM."""
    import ray
    from ray import serve

    ended = threading.Event()
    ray.init(address="local", log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after Ray, which sets its own
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 300})
        serve.run(application(replicas, paint_s), name="animegan", route_prefix="/")
        ended.wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


# In the process that measures


def measure(options: argparse.Namespace, replicas: int) -> Row:
    """Loads a graph of so many Stylizers, and returns its rates, latencies and CPU time."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.scaling", "--replicas", str(replicas), "--port", str(port)]
    command += ["--paint-seconds", str(options.paint_seconds)]
    variables = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", **ray_environment(dashboard=False)}
    clients = options.clients * replicas
    ideal = replicas / options.paint_seconds  # images a second
    with running(command, port, options.scratch / f"scaling-{replicas}.log", **variables) as server:
        url = f"http://127.0.0.1:{port}{STYLIZE_PATH}"
        run_load(url, options.side, 60, 4 * clients, clients=clients, addresses=clients, seed=10**6)
        idle = CpuMeter(server)
        time.sleep(IDLE_S)
        idle_cores = sum(idle.by_role().values()) / IDLE_S
        meter = CpuMeter(server)
        count = int(ideal * options.seconds) + clients
        load = run_load(url, options.side, options.seconds, count, clients=clients, addresses=clients)
        used, machine = cpu_by_kind(meter), meter.machine_share()
    painted = load["statuses"].get("200", 0) or 1
    over_idle_s = sum(used.values()) - idle_cores * load["seconds"]
    used[LOAD] = load["cpu_s"]
    return {
        "Stylizers": replicas,
        "clients": clients,
        "a second": load["throughput"],
        "efficiency": load["throughput"] / ideal,
        "p50 s": load["p50_s"],
        "p99 s": load["p99_s"],
        "not painted": load["sent"] - load["statuses"].get("200", 0),
        **{f"{kind} ms": 1000 * seconds / painted for kind, seconds in used.items()},
        "in all ms": 1000 * sum(used.values()) / painted,
        "over idle ms": 1000 * over_idle_s / painted,
        "idle cores": idle_cores,
        "cores busy": sum(used.values()) / load["seconds"],
        "machine busy": machine,
        **{f"{step} ms, median": ms for step, ms in load["steps_ms"].items()},
    }


def cpu_by_kind(meter: CpuMeter) -> dict[str, float]:
    """Returns CPU-seconds by kind of process, 0 for a kind that has none."""
    used = dict.fromkeys([*KIND_NAMES, REST], 0.0)
    for role, seconds in meter.by_role().items():
        used[KINDS.get(role, REST)] += seconds
    return used


def run(options: argparse.Namespace) -> None:
    """Images a second of 1 to 8 Stylizers that only sleep, and the CPU time that the graph around them takes."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.scratch = options.scratch.resolve()
    rows = collect(measure(options, replicas) for replicas in options.replicas)
    report(options.out, "scaling", rows, paint_seconds=options.paint_seconds, side=options.side)
    plots.scaling(options.out, rows, options.paint_seconds, [*KIND_NAMES, REST, LOAD])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench scaling`."""
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8], help="of the Stylizer")
    parser.add_argument("--side", type=int, default=512, help="pixels of the square photographs")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the closed loop, for each Stylizer")
    parser.add_argument("--paint-seconds", type=float, default=PAINT_S, help="that a Stylizer waits for each image")


def main() -> None:
    """Serves the graph in this process, for `measure`."""
    parser = argparse.ArgumentParser(description="Serves the graph with Stylizers that sleep, until SIGTERM.")
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--paint-seconds", type=float, required=True)
    options = parser.parse_args()
    run_server(options.replicas, options.port, options.paint_seconds)


if __name__ == "__main__":
    main()
