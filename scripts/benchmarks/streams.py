"""What clients that wait for events cost, and how soon they hear of an end: `scripts/bench streams`.

The service of configs/local.yaml runs with jobs that its runner never takes. Small photographs are painted one after
another, alone and then beside clients that wait for their jobs in streams, while jobs end at a steady pace. The clients
are in a process of their own, on the same cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests
import yaml

from benchmarks.monitor import CpuMeter
from benchmarks.paths import LOCAL_CONFIG, STYLIZE_PATH
from benchmarks.photographs import photograph
from benchmarks.processes import child_environment
from benchmarks.reporting import Row, percentile, report
from benchmarks.scaling import cpu_by_kind
from benchmarks.servers import ANIMEGAN, free_port, process_tree, role, running
from serve_app.frames import EncodedImage, Receipt, Size, StylizeRequest
from serve_app.jobs.store import JobStore, open_store
from serve_app.jobs.words import NewJob
from serve_app.settings import JobsSettings

SIDE = 64  # pixels of the photographs that are painted
REQUEST = StylizeRequest("toon", SIDE, 4, "jpeg")
PAINTING = EncodedImage(b"a painting", "image/jpeg", Receipt("toon", Size(1, 1), Size(1, 1)))
NEVER_S = 3600.0  # until the runner looks for jobs again
ALBUM = 100
SETTLE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=5, help="of each client")
    parser.add_argument("--ends", type=float, default=10, help="of jobs, a second")
    parser.add_argument("--seconds", type=float, default=30, help="of each part")


def run(options: argparse.Namespace) -> None:
    """Clients that wait for events: their memory and CPU, and what photographs beside them notice."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        settings = JobsSettings(enabled=True, data_dir=folder / "data", max_queued=10**6, client_share=1)
        config, port = yaml.safe_load(LOCAL_CONFIG.read_text()), free_port()
        config["http_options"] |= {"host": "127.0.0.1", "port": port}
        application = config["applications"][0]
        application["args"]["jobs"] = settings.model_dump(mode="json", include={"enabled", "data_dir", "max_queued"})
        runner = next(part for part in application["deployments"] if part["name"] == "JobRunner")
        runner["user_config"] = {**runner.get("user_config", {}), "poll_s": NEVER_S}
        path = folder / "service.yaml"
        path.write_text(yaml.safe_dump(config))
        with running([*ANIMEGAN, "run", str(path)], port, folder / "service.log") as server:
            store = open_store(settings)
            parts = list(rows(options, server, port, store, folder))
            columns = {name: "" for part in parts for name in part}
            report(options.out, "streams", [columns | part for part in parts])
            store.close()


def rows(
    options: argparse.Namespace, server: psutil.Process, port: int, store: JobStore, folder: Path
) -> Iterator[Row]:
    """Yields the figures of photographs alone, then beside clients that wait, then alone again."""
    photo = photograph(0, Size(SIDE, SIDE), "JPEG")
    new = [NewJob(REQUEST, photo)] * ALBUM
    ids = [job.id for _ in range(options.clients * options.jobs // ALBUM) for job in store.submit("ann", new).jobs]
    (proxy,) = [process for process in process_tree(server) if role(process) == "ProxyActor"]
    paint(port, photo, SETTLE_S)
    idle = proxy.memory_full_info().uss
    with ending(store, options.ends):
        yield {"clients": 0, **measured(options, server, port, photo)}
    own = [ids[number :: options.clients] for number in range(options.clients)]
    (folder / "ids.json").write_text(json.dumps(own))
    command = [sys.executable, "-m", "benchmarks.watchers", str(port), str(folder / "ids.json")]
    watchers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment())
    time.sleep(SETTLE_S)
    with ending(store, options.ends):
        beside = measured(options, server, port, photo)
        grown = proxy.memory_full_info().uss - idle
    heard = json.loads(watchers.communicate(b"", timeout=60)[0])
    late = heard["late_s"]
    yield {
        "clients": options.clients,
        **beside,
        "proxy grown by MB": grown / 1e6,
        "ends": len(late),
        "heard after s, median": percentile(late, 50),
        "99 %": percentile(late, 99),
        "most": max(late),
        "twice": heard["twice"],
        "refused": heard["refused"],
    }
    with ending(store, options.ends):
        yield {"clients": 0, **measured(options, server, port, photo)}


def measured(options: argparse.Namespace, server: psutil.Process, port: int, photo: bytes) -> Row:
    """Paints photographs one after another, and returns how long they took and what the service needed."""
    meter = CpuMeter(server)
    took = paint(port, photo, options.seconds)
    cpu = cpu_by_kind(meter)
    ingresses = sum(role(process) == "Ingress" for process in process_tree(server))
    return {
        "painted": len(took),
        "median ms": 1000 * percentile(took, 50),
        "proxy ms/s": 1000 * cpu.get("proxy", 0.0) / options.seconds,
        "Ingresses": ingresses,
    }


def paint(port: int, photo: bytes, seconds: float) -> list[float]:
    """Paints a photograph again and again; returns the seconds that each time took."""
    took, end = [], time.monotonic() + seconds
    url = f"http://127.0.0.1:{port}{STYLIZE_PATH}?max_side={SIDE}"
    with requests.Session() as session:
        while time.monotonic() < end:
            began = time.monotonic()
            session.post(url, data=photo, timeout=60).raise_for_status()
            took.append(time.monotonic() - began)
    return took


@contextmanager
def ending(store: JobStore, a_second: float) -> Iterator[None]:
    """Ends jobs at a steady pace during a block."""
    is_over = threading.Event()

    def end() -> None:
        while not is_over.wait(1 / a_second):
            lease = store.queue.claim()
            if lease is None or not store.finish(lease, PAINTING):
                raise SystemExit("there are not enough jobs")

    thread = threading.Thread(target=end)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
