"""How the graph itself scales: the real Ingress, Codec and HTTP around a model that only sleeps.

    scripts/bench scaling
    scripts/bench scaling --replicas 1 2 --seconds 5

Painting is replaced by a wait of 250 ms a picture, so that any number of Stylizers fit on one machine; frames and JPEGs
are real. What the graph costs shows as CPU: of each kind of process for each picture, beside what is used when nobody
asks. Where those milliseconds, times the pictures a second, reach the machine's cores, or those of the one Ingress a
whole core, the curve must bend.
"""

import argparse
import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import ROOT
from benchmarks.load import run_load
from benchmarks.reporting import print_table, write
from benchmarks.rivals import PATH
from benchmarks.servers import family, free_port, role, running

CONFIG = ROOT / "configs" / "local.yaml"
PAINT_S = 0.25
CLIENTS = 4  # for each Stylizer: one is painted, others decoded, encoded and waiting
STYLIZER_CPUS = 0.05  # so that all fit on two cores
QUEUE_KEYS = ("max_ongoing_requests", "max_queued_requests")
IDLE_S = 5.0
KINDS = {"ProxyActor": "proxy", "Ingress": "Ingress", "Codec": "Codec", "Stylizer": "Stylizer"}
REST = "Ray itself"


# In the process that serves


def application(replicas: int, paint_s: float) -> Any:
    """`serve_app.app.build`, with the shipped config's deployments, and Stylizers that sleep."""
    from ray import serve

    from serve_app.app import Codec, Ingress
    from serve_app.errors import RequestError
    from serve_app.frames import Frame, Photo
    from serve_app.queueing.batching import Batcher
    from serve_app.settings import Settings

    class SimulatedStylizer:
        def __init__(self) -> None:
            self.batcher: Batcher[str, Frame, Frame] = Batcher(self._paint, 1)

        async def paint(self, decoded: list[Any], expires_s: float | None = None) -> Photo | RequestError:
            photo: Photo | RequestError = await decoded[0]
            if isinstance(photo, RequestError):
                return photo
            done = await self.batcher.submit(photo.receipt.style, photo.frame)
            receipt = photo.receipt.timed(queue=1000 * done.queued_s, paint=1000 * done.ran_s)
            return replace(photo, frame=done.result, receipt=receipt)

        async def _paint(self, style: str, frames: list[Frame]) -> list[Frame | Exception]:
            await asyncio.sleep(paint_s * len(frames))
            return list(frames)

    configured = yaml.safe_load(CONFIG.read_text())["applications"][0]["deployments"]
    options = {deployment["name"]: deployment for deployment in configured}
    queues = {key: value for key, value in options["Stylizer"].items() if key in QUEUE_KEYS}
    stylizer = serve.deployment(
        name="Stylizer", num_replicas=replicas, ray_actor_options={"num_cpus": STYLIZER_CPUS}, **queues
    )(SimulatedStylizer)
    codec = Codec.options(**options["Codec"])
    return Ingress.options(**options["Ingress"]).bind(Settings(device="cpu"), codec.bind(), stylizer.bind())


def run_server(options: argparse.Namespace) -> None:
    """Serves until SIGTERM."""
    import ray
    from ray import serve

    ended = threading.Event()
    ray.init(address="local", log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after Ray, which sets its own
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": options.port, "request_timeout_s": 300})
        serve.run(application(options.replicas[0], options.paint_seconds), name="animegan", route_prefix="/")
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


# In the process that asks


class CpuMeter:
    """CPU seconds that each kind of process of a tree has used since the meter was made."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._machine = psutil.cpu_times()
        self._before = self._read()

    def by_kind(self) -> dict[str, float]:
        used: Counter[str] = Counter(dict.fromkeys([*KINDS.values(), REST], 0.0))
        for process, seconds in self._read().items():
            kind = REST
            with suppress(psutil.Error):
                kind = KINDS.get(role(process) or "", REST)
            used[kind] += seconds - self._before.get(process, 0.0)
        return dict(used)

    def machine_share(self) -> float:
        """Of all cores' time, what was not idle, other people's processes included."""
        now = psutil.cpu_times()
        idle = now.idle + now.iowait - self._machine.idle - self._machine.iowait
        return 1 - idle / (sum(now) - sum(self._machine))

    def _read(self) -> dict[psutil.Process, float]:
        seconds = {}
        for process in family(self._process):
            with suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process] = times.user + times.system
        return seconds


def measure(options: argparse.Namespace, replicas: int) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.scaling", "--serve", "--replicas", str(replicas), "--port", str(port)]
    command += ["--paint-seconds", str(options.paint_seconds)]
    variables = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    clients = options.clients * replicas
    most = replicas / options.paint_seconds  # pictures a second
    with running(command, port, options.scratch / f"scaling-{replicas}.log", **variables) as server:
        url = f"http://127.0.0.1:{port}{PATH}"
        run_load(url, options.side, 60, 4 * clients, clients=clients, addresses=clients, seed=10**6)
        idle = CpuMeter(server)
        time.sleep(IDLE_S)
        idle_cores = sum(idle.by_kind().values()) / IDLE_S
        meter = CpuMeter(server)
        count = int(most * options.seconds) + clients
        load = run_load(url, options.side, options.seconds, count, clients=clients, addresses=clients)
        used, machine = meter.by_kind(), meter.machine_share()
    painted = load["statuses"].get("200", 0) or 1
    more_s = sum(used.values()) - idle_cores * load["seconds"]  # than when nobody asks
    used["load"] = load["cpu_s"]
    return {
        "Stylizers": replicas,
        "clients": clients,
        "a second": load["throughput"],
        "efficiency": load["throughput"] / most,
        "p50 s": load["p50_s"],
        "p99 s": load["p99_s"],
        "not painted": load["sent"] - load["statuses"].get("200", 0),
        **{f"{kind} ms": 1000 * seconds / painted for kind, seconds in used.items()},
        "in all ms": 1000 * sum(used.values()) / painted,
        "over idle ms": 1000 * more_s / painted,
        "idle cores": idle_cores,
        "cores busy": sum(used.values()) / load["seconds"],
        "machine busy": machine,
        **{f"{step} ms, median": ms for step, ms in load["steps_ms"].items()},
    }


def plot(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    replicas = [row["Stylizers"] for row in rows]
    left.plot(replicas, [count / options.paint_seconds for count in replicas], "--", color="grey", label="ideal")
    left.plot(replicas, [row["a second"] for row in rows], "o-", color="tab:red", label="measured")
    left.set(xlabel="Stylizers", ylabel="pictures a second", ylim=(0, None))
    left.legend()
    bottom = [0.0] * len(rows)
    for kind in [*KINDS.values(), REST, "load"]:
        cores = [row[f"{kind} ms"] * row["cores busy"] / row["in all ms"] for row in rows]
        right.bar(range(len(rows)), cores, bottom=bottom, label=kind)
        bottom = [below + more for below, more in zip(bottom, cores, strict=True)]
    right.axhline(os.cpu_count() or 1, color="black", linewidth=0.8, linestyle="--", label="cores there are")
    right.set_xticks(range(len(rows)), replicas)
    right.set(xlabel="Stylizers", ylabel="cores busy")
    right.legend()
    figure.tight_layout()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "scaling.png", dpi=110)


def run(options: argparse.Namespace) -> None:
    """Pictures a second of 1 to 8 Stylizers that only sleep, and the CPU that the graph around them takes."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.scratch = options.scratch.resolve()
    rows = []
    for replicas in options.replicas:
        rows.append(measure(options, replicas))
        print(f"  {rows[-1]}", flush=True)
    print()
    print_table(rows)
    write(options, "scaling", rows, paint_seconds=options.paint_seconds, side=options.side)
    plot(options, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8], help="of the Stylizer")
    parser.add_argument("--side", type=int, default=512, help="pixels of the square photographs")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the closed loop, for each Stylizer")
    parser.add_argument("--paint-seconds", type=float, default=PAINT_S, help="that painting a picture is said to take")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_server(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
