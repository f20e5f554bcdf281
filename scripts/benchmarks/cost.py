"""What the service costs beside its work: idle, around a picture so small that nothing else counts, and for a refusal.

    scripts/bench cost
    scripts/bench cost --against ../older --pairs 7

All figures are CPU time, of all processes of `animegan run` with the shipped configs/local.yaml. With `--against`, the
service of another checkout is measured in turn with this one's, and the command fails if a cost of this one has grown
by more than a tenth. Both run with the packages of this checkout.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import requests
import yaml

from benchmarks.load import run_load
from benchmarks.monitor import CpuMeter
from benchmarks.paths import ROOT, STYLIZE_PATH
from benchmarks.photographs import photograph
from benchmarks.reporting import Row, collect, print_table, write_json
from benchmarks.scaling import cpu_by_kind
from benchmarks.servers import ANIMEGAN, free_port, running
from serve_app.frames import Size

SMALL_SIDE = 64  # pixels: painting it is all fixed cost
LARGE_SIDE = 1024  # pixels: painted for seconds, while everything else is refused
REFUSALS_A_SECOND = 30
SETTLE_S = 12.0  # before idling is measured: memory is given back 10 s after the last picture
MOST_GROWTH = 1.1
STYLIZER = "Stylizer"
COSTS = {  # figures that are compared, and what they are
    "idle ms/s": "CPU of the idle service, a second",
    "beside ms": "CPU beside the Stylizer for a 64 x 64 picture, over idle",
    "Stylizer ms": "CPU of the Stylizer for it",
    "refusal ms": "CPU beside the Stylizer for a 429, over idle",
}


@contextmanager
def running_checkout(checkout: Path, scratch: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Runs a checkout's service with room for one picture; yields the URL to post to, and the process."""
    config = yaml.safe_load((checkout / "configs" / "local.yaml").read_text())
    ingress = next(part for part in config["applications"][0]["deployments"] if part["name"] == "Ingress")
    ingress["user_config"] |= {"queue_most_pictures": 1, "queue_least_pictures": 1}
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    path = scratch / "cost.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [*ANIMEGAN, "run", str(path)]
    # Data of its own: what an earlier run has painted is not painted again.
    with (
        TemporaryDirectory() as data,
        running(command, port, scratch / "cost.log", PYTHONPATH=str(checkout), ANIMEGAN_DATA_DIR=data) as server,
    ):
        yield f"http://127.0.0.1:{port}{STYLIZE_PATH}", server


def measure(checkout: Path, options: argparse.Namespace) -> Row:
    """Starts a checkout's service, and returns its costs."""
    with running_checkout(checkout, options.scratch) as (url, server):
        run_load(url, SMALL_SIDE, 60, 40, clients=1, seed=10**6)
        time.sleep(SETTLE_S)
        meter = CpuMeter(server)
        time.sleep(options.idle_seconds)
        idle = {kind: seconds / options.idle_seconds for kind, seconds in cpu_by_kind(meter).items()}
        small = measure_small(url, server, idle, options.pictures)
        refusal_ms = measure_refusals(url, server, idle, options.refusal_seconds)
    return {
        "checkout": checkout.name,
        "idle ms/s": 1000 * sum(idle.values()),
        "beside ms": sum(ms for kind, ms in small.items() if kind != STYLIZER),
        "Stylizer ms": small[STYLIZER],
        "refusal ms": refusal_ms,
        **{f"{kind} ms": ms for kind, ms in small.items() if kind != STYLIZER},
        **{f"{kind} idle ms/s": 1000 * share for kind, share in idle.items()},
    }


def measure_small(url: str, server: psutil.Process, idle: dict[str, float], pictures: int) -> dict[str, float]:
    """Returns the CPU milliseconds of one small picture, over idle, by kind of process."""
    meter, began = CpuMeter(server), time.monotonic()
    load = run_load(url, SMALL_SIDE, 300, pictures, clients=1)
    seconds = time.monotonic() - began
    if load["statuses"] != {"200": pictures}:
        raise SystemExit(f"not all of {pictures} small pictures were painted: {load['statuses']}")
    return {kind: 1000 * (used - idle[kind] * seconds) / pictures for kind, used in cpu_by_kind(meter).items()}


def measure_refusals(url: str, server: psutil.Process, idle: dict[str, float], seconds: float) -> float:
    """Returns the CPU milliseconds beside the Stylizer of one refusal, over idle.

    A large picture holds the only place. Refusals are counted in the middle of its painting, over several such times,
    since between two large pictures a small one may get the place.
    """
    seeds = count()

    def hold_the_place() -> float:
        large = photograph(next(seeds), Size(LARGE_SIDE, LARGE_SIDE), "JPEG")
        began = time.monotonic()
        requests.post(url, data=large, timeout=300).raise_for_status()
        return time.monotonic() - began

    painting_s = min(hold_the_place() for _ in range(2))
    used_s, lasted_s, refused, sent = 0.0, 0.0, 0, 0
    with ThreadPoolExecutor(1) as holder:
        while lasted_s < seconds:
            held = holder.submit(hold_the_place)
            time.sleep(painting_s / 5)  # by then it is being painted
            meter, began = CpuMeter(server), time.monotonic()
            load = run_load(url, SMALL_SIDE, painting_s / 2, 1000, rate=REFUSALS_A_SECOND, arrivals="fixed")
            used, took_s = cpu_by_kind(meter), time.monotonic() - began
            held.result()
            used_s += sum(used[kind] - idle[kind] * took_s for kind in used if kind != STYLIZER)
            lasted_s += took_s
            refused += load["statuses"].get("429", 0)
            sent += load["sent"]
    if refused < 0.9 * sent:
        raise SystemExit(f"too few requests were refused: {refused} of {sent}")
    return 1000 * used_s / refused


def spread(values: list[float]) -> str:
    """Returns the median, and the least and the largest value."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(ours: list[Row], theirs: list[Row]) -> list[Row]:
    """Returns a row for each cost: both checkouts' figures, and the ratio in each pair of runs."""
    rows = []
    for name, meaning in COSTS.items():
        pairs = [(one[name], other[name]) for one, other in zip(ours, theirs, strict=True)]
        ratios = [one / other for one, other in pairs]
        rows.append(
            {
                "cost": meaning,
                "this": spread([one for one, _ in pairs]),
                "other": spread([other for _, other in pairs]),
                "ratio": spread(ratios),
                "grown": median(ratios) > MOST_GROWTH,
            }
        )
    return rows


def run(options: argparse.Namespace) -> None:
    """CPU time of the service idle, around a small picture, and for a refusal; against another checkout's."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.scratch = options.scratch.resolve()
    checkouts = [ROOT] if options.against is None else [ROOT, options.against.resolve()]
    rows = collect(measure(checkout, options) for _ in range(options.pairs) for checkout in checkouts)
    print_table(rows)
    ours, theirs = rows[:: len(checkouts)], rows[1 :: len(checkouts)]
    if options.against is None:
        print_table([{"cost": meaning, "this": spread([row[name] for row in ours])} for name, meaning in COSTS.items()])
        write_json(options.out, "cost", rows)
        return
    compared = compare(ours, theirs)
    print_table(compared)
    write_json(options.out, "cost", rows, compared=compared)
    if any(row["grown"] for row in compared):
        sys.exit("a cost has grown by more than a tenth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench cost`."""
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of the project")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each checkout, in turn")
    parser.add_argument("--pictures", type=int, default=150, help="small ones in each run")
    parser.add_argument("--idle-seconds", type=float, default=15)
    parser.add_argument("--refusal-seconds", type=float, default=8)
