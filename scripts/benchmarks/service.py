"""The real service under load, beside the same work in a bare loop and behind LitServe and BentoML.

    scripts/bench service
    scripts/bench service --sides 512 --seconds 20 --rivals

For each side a fresh service: closed loops of a few clients find its peak, then open loops offer multiples of that.
The bare loop runs before and after, so that a change of the machine's speed shows. Each rival is driven to its own
peak, and then offered twice that. A server's memory is the PSS of all its processes, Ray's included, sampled every
five seconds.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import plots
from benchmarks.load import run_load
from benchmarks.monitor import OTHERS, ProcessMonitor
from benchmarks.paths import LOCAL_CONFIG, RIVALS_PYTHON, STYLIZE_PATH
from benchmarks.processes import run_module
from benchmarks.reporting import MB, Row, print_table, write_json
from benchmarks.servers import ANIMEGAN, free_port, paint_everything, running

OUR_SERVER = "Ray Serve, ours"
RIVAL_NAMES = {"litserve": "LitServe", "bentoml": "BentoML"}
ENGINE_NAMES = {"plain": "plain model", "ours": "our engine"}
# How OpenMP's threads wait for each other. Spinning suits cores that nothing else uses; on two busy ones a team of two
# took thirty times as long for a 64 x 64 image.
WAIT_POLICIES: dict[str, dict[str, str]] = {"spinning": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
LEAST_PICTURES = 4  # admitted on however slow a machine; local.yaml admits a whole folder
OPEN_LOADS = [0.5, 1, 2, 5]  # multiples of the peak
RIVAL_LOAD = 2
MIXED_CLIENTS = 6
MIXED_SPREAD = 0.2  # of the sides: no two photographs share a size

BareRates = dict[int, list[dict[str, float]]]  # by side, of each run: images a second by wait policy


# Servers


@contextmanager
def running_service(options: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """Runs `animegan run` on the config, at a free port, with the queue of a public service; yields URL and process."""
    config = yaml.safe_load(options.config.read_text())
    ingress = next(part for part in config["applications"][0]["deployments"] if part["name"] == "Ingress")
    ingress["user_config"] |= {"queue_time_s": options.queue_time_s, "queue_least_pictures": LEAST_PICTURES}
    paint_everything(config)
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    path = options.scratch / "service.yaml"
    path.write_text(yaml.safe_dump(config))
    with running([*ANIMEGAN, "run", str(path)], port, options.scratch / "service.log") as server:
        yield f"http://127.0.0.1:{port}{STYLIZE_PATH}", server


@contextmanager
def running_rival(options: argparse.Namespace, name: str, engine: str) -> Iterator[tuple[str, psutil.Process]]:
    """Runs a rival at a free port; yields URL and process."""
    port = free_port()
    command = [str(options.rival_python), "-m", "benchmarks.rivals", name, engine]
    command += ["--port", str(port), "--threads", str(options.threads), "--batch", str(options.rival_batch)]
    log = options.scratch / f"{name}-{engine}.log"
    variables = stylizer_environment(options) | WAIT_POLICIES[options.rival_wait]
    with running(command, port, log, **variables) as server:
        yield f"http://127.0.0.1:{port}{STYLIZE_PATH}", server


def stylizer_environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment variables of a Stylizer: the allocator that the service paints with."""
    deployments = yaml.safe_load(options.config.read_text())["applications"][0]["deployments"]
    stylizer = next(deployment for deployment in deployments if deployment["name"] == "Stylizer")
    environment: dict[str, str] = stylizer["ray_actor_options"]["runtime_env"]["env_vars"]
    return environment


# The bare loop


def bare_rates(options: argparse.Namespace, side: int, seconds: float) -> dict[str, float]:
    """Measures the images a second of one process that decodes, paints and encodes; each wait policy for its part."""
    flags = ["--side", side, "--seconds", seconds / len(WAIT_POLICIES), "--threads", options.threads]
    rates = {}
    for policy, variables in WAIT_POLICIES.items():
        environment = stylizer_environment(options) | variables
        rates[policy] = float(run_module("benchmarks.rivals", "bare", "ours", *flags, variables=environment)["per_s"])
    print(
        f"  {side} bare loop: " + ", ".join(f"{rate:.3f} a second {policy}" for policy, rate in rates.items()),
        flush=True,
    )
    return rates


def bare_rate(runs: list[dict[str, float]]) -> float:
    """Returns the mean of the runs, each at its better wait policy."""
    return sum(max(rates.values()) for rates in runs) / len(runs)


# Loads


class ServerBenchmark:
    """Loads on one server with photographs of one side.

    Args:
        server: its name in the tables.
        url: where photographs are posted.
        process: of the server.
        side: pixels of the photographs.
        seconds: of each load.
        guess: images a second that the server may paint, so that enough photographs are made.

    Attributes:
        rows: figures, one row a load.
    """

    def __init__(self, server: str, url: str, process: psutil.Process, side: int, seconds: float, guess: float) -> None:
        self.server = server
        self.url = url
        self.process = process
        self.side = side
        self.seconds = seconds
        self.rows: list[Row] = []
        self._guess = guess
        self._seed = 0

    def warm_up(self, images: int, clients: int) -> None:
        """Sends so many photographs and forgets the figures."""
        self._send(math.inf, images, clients=clients)

    def closed(self, clients: int) -> float:
        """Runs a closed loop; returns the images a second."""
        count = math.ceil(2 * self._guess * self.seconds) + 2 * clients
        rate = float(self._measure(f"closed, {clients} clients", None, count, clients=clients)["throughput"])
        self._guess = max(self._guess, rate)
        return rate

    def mixed(self) -> None:
        """Runs a closed loop of photographs that all have different sizes around the side."""
        count = math.ceil(2 * self._guess * self.seconds) + 2 * MIXED_CLIENTS
        self._measure(f"mixed sizes, {MIXED_CLIENTS} clients", None, count, clients=MIXED_CLIENTS, spread=MIXED_SPREAD)

    def open(self, times: float, peak: float) -> None:
        """Runs an open loop at so many times the peak."""
        rate = times * peak
        count = math.ceil(2 * rate * self.seconds) + 100
        self._measure(open_load(times), rate, count, rate=rate, arrivals="poisson")

    def _measure(self, load: str, offered: float | None, count: int, **options: Any) -> Row:
        with ProcessMonitor(self.process) as monitor:
            result = self._send(self.seconds, count, **options)
        row = {"side": self.side, "server": self.server, "load": load, "offered": offered} | result
        row |= {"peak_pss": monitor.peak_pss, "stylizer_rss": monitor.stylizer_rss, "cpu_by_role_s": monitor.cpu_s}
        self.rows.append(row)
        print(
            f"  {self.side} {self.server}, {load}: {result['throughput']:.3f} a second, {result['statuses']}",
            flush=True,
        )
        return row

    def _send(self, seconds: float, count: int, **options: Any) -> Row:
        self._seed += 100_000  # no photograph is sent twice
        return run_load(self.url, self.side, min(seconds, 600), count, seed=self._seed, **options)


def open_load(times: float) -> str:
    """Returns the name of an open loop at so many times the peak."""
    return f"open, {times:g} x peak"


def measure_service(options: argparse.Namespace, side: int, seconds: float, guess: float) -> list[Row]:
    """Runs all loads on a fresh service; returns their rows."""
    with running_service(options) as (url, process):
        benchmark = ServerBenchmark(OUR_SERVER, url, process, side, seconds, guess)
        benchmark.warm_up(options.warm_up, 2)
        peak = max(benchmark.closed(clients) for clients in options.clients)
        for times in options.loads:
            benchmark.open(times, peak)
        benchmark.mixed()
    return benchmark.rows


def measure_rival(options: argparse.Namespace, name: str, engine: str, seconds: float, guess: float) -> list[Row]:
    """Runs a closed and an open loop on a fresh rival; returns their rows."""
    title = f"{RIVAL_NAMES[name]}, {ENGINE_NAMES[engine]}"
    with running_rival(options, name, engine) as (url, process):
        benchmark = ServerBenchmark(title, url, process, options.rival_side, seconds, guess)
        clients = 2 * options.rival_batch  # a batch waits while one is painted
        # BentoML measures its first batches to learn how long to wait.
        benchmark.warm_up(4 * options.rival_batch, clients)
        benchmark.open(RIVAL_LOAD, benchmark.closed(clients))
    return benchmark.rows


# Verdicts and tables


def verdict(name: str, side: int, value: float | None, least: float = -math.inf, most: float = math.inf) -> Row:
    """Returns a row that holds a figure against its bounds."""
    bounds = {">=": least, "<=": most}
    wanted = " ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if math.isfinite(bound))
    met = value is not None and least <= value <= most
    return {"target": name, "side": side, "measured": value, "wanted": wanted, "met": met}


def targets(rows: list[Row], bare: BareRates, options: argparse.Namespace) -> list[Row]:
    """Returns what the service was built to reach, beside what it reached."""
    found = []
    for side, runs in bare.items():
        ours = {row["load"]: row for row in select(rows, side, is_service=True)}
        found += service_targets(ours, side, bare_rate(runs), options)
        for rival in (f"{name}, {ENGINE_NAMES['ours']}" for name in RIVAL_NAMES.values()):
            theirs = {row["load"]: row for row in rows if row["side"] == side and row["server"] == rival}
            if theirs and open_load(RIVAL_LOAD) in ours:
                found += rival_targets(ours, theirs, side, rival)
    return found


def closed_peak(ours: dict[str, Row]) -> float:
    """Returns the most images a second that any closed loop reached."""
    return max(float(row["throughput"]) for load, row in ours.items() if load.startswith("closed"))


def service_targets(ours: dict[str, Row], side: int, bare: float, options: argparse.Namespace) -> list[Row]:
    """Compares the service's rows, by load, with the bare loop and with its own peak."""
    peak = closed_peak(ours)
    times = max(options.loads)
    overload = ours[open_load(times)]
    one_batch_s = options.threads / peak  # an image for each thread
    promised_s = round(options.queue_time_s + one_batch_s, 1)
    refusals = [row["refusal_p99_s"] for row in ours.values() if row["refusal_p99_s"] is not None]
    faults = sum(row["faults"] + row["unanswered"] for row in ours.values())
    return [
        verdict("peak / bare loop", side, peak / bare, least=0.95),
        verdict(f"accepted at {times:g} x peak / peak", side, overload["throughput"] / peak, least=0.9),
        verdict(f"p99 of accepted at {times:g} x peak, s", side, overload["p99_s"], most=promised_s),
        verdict("p99 of refusals, ms", side, 1000 * max(refusals) if refusals else None, most=250),
        verdict("5xx and unanswered", side, faults, most=0),
    ]


def rival_targets(ours: dict[str, Row], theirs: dict[str, Row], side: int, rival: str) -> list[Row]:
    """Compares the service's rows with a rival's, by load."""
    their_peak = next(row for load, row in theirs.items() if load.startswith("closed"))
    # One run against one run: the best of several would flatter the service.
    same_load = ours.get(their_peak["load"], {"throughput": closed_peak(ours)})
    twice = open_load(RIVAL_LOAD)
    p99s = ours[twice]["p99_s"], theirs[twice]["p99_s"]
    ratio = same_load["throughput"] / their_peak["throughput"]
    return [
        verdict(f"painted, {their_peak['load']} / {rival}", side, ratio, least=1.0),
        verdict(f"p99 at 2 x / {rival}", side, p99s[0] / p99s[1] if None not in p99s else None, most=0.5),
    ]


def load_row(row: Row) -> Row:
    """Returns a load's figures as the table shows them; what was not measured is empty."""

    def number(value: float | None, times: float = 1, digits: int = 2) -> str:
        return "" if value is None else f"{times * value:,.{digits}f}"

    return {
        "side": row["side"],
        "server": row["server"],
        "load": row["load"],
        "offered a s": number(row["offered"], digits=3),
        "painted a s": number(row["throughput"], digits=3),
        "p50 s": number(row["p50_s"]),
        "p95 s": number(row["p95_s"]),
        "p99 s": number(row["p99_s"]),
        "painted": row["statuses"].get("200", 0),
        "refused": row["statuses"].get("429", 0),
        "refusal p50 ms": number(row["refusal_p50_s"], 1000, 0),
        "refusal p99 ms": number(row["refusal_p99_s"], 1000, 0),
        "other 4xx": sum(count for status, count in row["statuses"].items() if status[0] == "4" and status != "429"),
        "5xx": row["faults"],
        "no answer": row["unanswered"],
        "peak PSS MB": number(row["peak_pss"], 1 / MB, 0),
        "Stylizer RSS MB": " → ".join(number(rss, 1 / MB, 0) for rss in row["stylizer_rss"]),
        "cores busy": number(sum(row["cpu_by_role_s"].values()) / row["seconds"]),
        "load's CPU s": number(row["cpu_s"]),
    }


def cpu_row(row: Row) -> Row:
    """Returns the busy cores by role of the process, and the CPU-seconds of an image in the process that paints."""
    used_s = row["cpu_by_role_s"]
    painter = "Stylizer" if "Stylizer" in used_s else OTHERS
    per_image_s = used_s[painter] / max(row["statuses"].get("200", 0), 1)
    cores = {name: f"{seconds / row['seconds']:.3f}" for name, seconds in sorted(used_s.items())}
    return {"server": row["server"], "load": row["load"]} | cores | {"painter's CPU s an image": f"{per_image_s:.2f}"}


def select(rows: list[Row], side: int, is_service: bool) -> list[Row]:
    """Returns the rows of one side, either the service's or the rivals'."""
    return [row for row in rows if row["side"] == side and (row["server"] == OUR_SERVER) == is_service]


def plot(options: argparse.Namespace, rows: list[Row], bare: BareRates) -> None:
    """Plots the service at each side, and the rivals."""
    columns = [(side, True) for side in bare] + [(options.rival_side, False)]
    groups = [
        (
            f"{side} x {side}, {'the service' if is_service else 'rivals'}",
            is_service,
            bare_rate(bare[side]) if side in bare else None,
            group,
        )
        for side, is_service in columns
        if (group := select(rows, side, is_service))
    ]
    plots.service(options.out, groups)


# The command


def missing_packages(python: Path, rivals: list[str]) -> list[str]:
    """Returns the rivals that a Python cannot import."""
    check = f"import importlib.util as u; print(*[n for n in {rivals!r} if u.find_spec(n) is None])"
    return subprocess.run([python, "-c", check], stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def run(options: argparse.Namespace) -> None:
    """Throughput, latency, refusals and memory of the service at and beyond its peak, and of rivals beside it."""
    if options.rivals and (missing := missing_packages(options.rival_python, options.rivals)):
        raise SystemExit(
            f"{options.rival_python} has no {' or '.join(missing)}; see the top of scripts/benchmarks/rivals.py"
        )
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.scratch = options.scratch.resolve()
    options.rival_python = options.rival_python.absolute()  # not resolved: a link is what makes it an environment
    rows: list[Row] = []
    bare: BareRates = {}
    for side in options.sides:
        seconds = options.seconds or (40 if side <= 512 else 60)
        bare[side] = [bare_rates(options, side, seconds)]
        guess = bare_rate(bare[side])
        rows += measure_service(options, side, seconds, guess)
        for name in options.rivals if side == options.rival_side else ():
            for engine in ENGINE_NAMES:
                rows += measure_rival(options, name, engine, seconds, guess)
        bare[side].append(bare_rates(options, side, seconds))
    for side, is_service in [(side, is_service) for side in options.sides for is_service in (True, False)]:
        if group := select(rows, side, is_service):
            print_table([load_row(row) for row in group])
            print_table([cpu_row(row) for row in group])
    reached = targets(rows, bare, options)
    print_table(reached)
    rows = [{key: value for key, value in row.items() if key != "requests"} for row in rows]
    write_json(options.out, "service", rows, bare_loop=bare, targets=reached)
    plot(options, rows, bare)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench service`."""
    parser.add_argument("--config", type=Path, default=LOCAL_CONFIG, help="of the service; default configs/local.yaml")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--queue-time-s", type=float, default=8, help="the service's setting")
    parser.add_argument("--seconds", type=float, help="of each load; default 40 up to 512, else 60")
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 4, 8], help="of the closed loops")
    parser.add_argument("--loads", type=float, nargs="+", default=OPEN_LOADS, help="of the open loops, times the peak")
    parser.add_argument("--warm-up", type=int, default=4, help="images before anything is measured")
    parser.add_argument("--rivals", nargs="*", default=list(RIVAL_NAMES), choices=RIVAL_NAMES)
    parser.add_argument("--rival-side", type=int, default=512)
    parser.add_argument("--rival-batch", type=int, default=4, help="images that a rival paints together, at most")
    parser.add_argument("--rival-wait", default="passive", choices=WAIT_POLICIES, help="of a rival's OpenMP threads")
    python = RIVALS_PYTHON if RIVALS_PYTHON.exists() else Path(sys.executable)
    parser.add_argument("--rival-python", type=Path, default=python, help="a Python with LitServe and BentoML")
