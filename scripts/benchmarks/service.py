"""The real service under load, beside the same work in a bare loop and behind LitServe and BentoML.

    scripts/bench service
    scripts/bench service --sides 512 --seconds 20 --rivals

For each side a fresh service: closed loops of a few clients find its peak, then open loops offer multiples of that.
The bare loop runs before and after, so that a machine that has changed meanwhile shows. Each rival is driven to its own
peak, and then offered twice that. A server's memory is the PSS of all its processes, Ray's included, sampled every
five seconds.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import ROOT, child_environment
from benchmarks.load import run_load
from benchmarks.reporting import MB, print_table, write
from benchmarks.rivals import PATH
from benchmarks.servers import ANIMEGAN, family, free_port, role, running

CONFIG = ROOT / "configs" / "local.yaml"
RIVALS_PYTHON = ROOT / "runs" / "rivals" / "bin" / "python"
RIVAL_NAMES = {"litserve": "LitServe", "bentoml": "BentoML"}
ENGINE_NAMES = {"plain": "plain model", "ours": "our engine"}
# How OpenMP's threads wait for each other. Spinning suits cores that nobody else wants; on two busy ones a team of two
# took thirty times as long for a 64 x 64 picture.
WAIT_POLICIES: dict[str, dict[str, str]] = {"spinning": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
LEAST_PICTURES = 4  # let in however slow the machine; local.yaml lets in a person's whole folder
OPEN_LOADS = [0.5, 1, 2, 5]  # multiples of the peak
RIVAL_LOAD = 2
MIXED_CLIENTS = 6
MIXED_SPREAD = 0.2  # of the sides: no two photographs share a size
OTHERS = "others"  # Ray's own processes; of a rival, all
SAMPLE_S = 5.0  # a sample reads the page tables of 25 processes: 0.06 CPU-seconds, which the service would pay for

Row = dict[str, Any]


class Watch(threading.Thread):
    """Memory and CPU time of a process and all its descendants, from when the block begins to its end.

    Attributes:
        peak_pss: bytes, the most that all had together.
        cpu_s: used, by role of the process; `OTHERS` are all that have none.
        stylizer_rss: bytes at the first and the last sample; none of a server that has no Stylizer.
    """

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.peak_pss = 0
        self.stylizer_rss: list[int] = []
        self.cpu_s: dict[str, float] = {}
        self._process = process
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        self._sample()
        self._used_s = cpu_seconds(self._process)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        used_s = cpu_seconds(self._process)
        self.cpu_s = {name: round(seconds - self._used_s.get(name, 0), 2) for name, seconds in used_s.items()}
        self._over.set()
        self.join()
        self._sample()

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        tree = family(self._process)
        self.peak_pss = max(self.peak_pss, sum(map(pss_bytes, tree)))
        for process in tree:
            if role(process) == "Stylizer":
                self.stylizer_rss = [*self.stylizer_rss[:1], process.memory_info().rss]


def cpu_seconds(process: psutil.Process) -> dict[str, float]:
    """What a process and its descendants have used, by role."""
    used: dict[str, float] = {}
    for each in family(process):
        name = role(each) or OTHERS
        with suppress(psutil.Error):
            used[name] = used.get(name, 0) + sum(each.cpu_times()[:2])
    return used


def pss_bytes(process: psutil.Process) -> int:
    """0 of a process that has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


@contextmanager
def running_service(options: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """`animegan run` on the config, at a free port of 127.0.0.1, with the queue of a public service."""
    config = yaml.safe_load(options.config.read_text())
    ingress = next(part for part in config["applications"][0]["deployments"] if part["name"] == "Ingress")
    ingress["user_config"] |= {"queue_time_s": options.queue_time_s, "queue_least_pictures": LEAST_PICTURES}
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    path = options.scratch / "service.yaml"
    path.write_text(yaml.safe_dump(config))
    with running([*ANIMEGAN, "run", str(path)], port, options.scratch / "service.log") as server:
        yield f"http://127.0.0.1:{port}{PATH}", server


@contextmanager
def running_rival(options: argparse.Namespace, name: str, engine: str) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [str(options.rival_python), "-m", "benchmarks.rivals", name, engine]
    command += ["--port", str(port), "--threads", str(options.threads), "--batch", str(options.rival_batch)]
    log = options.scratch / f"{name}-{engine}.log"
    variables = stylizer_environment(options) | WAIT_POLICIES[options.rival_wait]
    with running(command, port, log, **variables) as server:
        yield f"http://127.0.0.1:{port}{PATH}", server


def stylizer_environment(options: argparse.Namespace) -> dict[str, str]:
    """The allocator that the service paints with."""
    deployments = yaml.safe_load(options.config.read_text())["applications"][0]["deployments"]
    stylizer = next(deployment for deployment in deployments if deployment["name"] == "Stylizer")
    environment: dict[str, str] = stylizer["ray_actor_options"]["runtime_env"]["env_vars"]
    return environment


def bare_rates(options: argparse.Namespace, side: int, seconds: float) -> dict[str, float]:
    """Pictures a second, decoded, painted and encoded in one process, by wait policy; each runs half of `seconds`."""
    command = [sys.executable, "-m", "benchmarks.rivals", "bare", "ours", "--side", str(side)]
    command += ["--seconds", str(seconds / len(WAIT_POLICIES)), "--threads", str(options.threads)]
    rates = {}
    for policy, variables in WAIT_POLICIES.items():
        environment = child_environment() | stylizer_environment(options) | variables
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rates[policy] = float(json.loads(done.stdout)["per_s"])
    print(
        f"  {side} bare loop: " + ", ".join(f"{rate:.3f} a second {policy}" for policy, rate in rates.items()),
        flush=True,
    )
    return rates


def bare_rate(runs: list[dict[str, float]]) -> float:
    """The mean of the runs, each at its better wait policy."""
    return sum(max(rates.values()) for rates in runs) / len(runs)


class Bench:
    """Loads on one server with photographs of one side, a row for each."""

    def __init__(self, server: str, url: str, process: psutil.Process, side: int, seconds: float, guess: float) -> None:
        self.server = server
        self.url = url
        self.process = process
        self.side = side
        self.seconds = seconds
        self.rows: list[Row] = []
        self._guess = guess  # pictures a second, so that photographs enough are made
        self._seed = 0

    def warm_up(self, pictures: int, clients: int) -> None:
        self._load(math.inf, pictures, clients=clients)

    def closed(self, clients: int) -> float:
        """Pictures a second."""
        count = math.ceil(2 * self._guess * self.seconds) + 2 * clients
        rate = float(self._row(f"closed, {clients} clients", None, count, clients=clients)["throughput"])
        self._guess = max(self._guess, rate)
        return rate

    def mixed(self) -> None:
        """A closed loop of photographs that all have different sizes about the side."""
        count = math.ceil(2 * self._guess * self.seconds) + 2 * MIXED_CLIENTS
        self._row(f"mixed sizes, {MIXED_CLIENTS} clients", None, count, clients=MIXED_CLIENTS, spread=MIXED_SPREAD)

    def open(self, times: float, peak: float) -> Row:
        rate = times * peak
        count = math.ceil(2 * rate * self.seconds) + 100
        return self._row(f"open, {times:g} x peak", rate, count, rate=rate, arrivals="poisson")

    def _row(self, load: str, offered: float | None, count: int, **options: Any) -> Row:
        with Watch(self.process) as watch:
            result = self._load(self.seconds, count, **options)
        row = {"side": self.side, "server": self.server, "load": load, "offered": offered} | result
        row |= {"peak_pss": watch.peak_pss, "stylizer_rss": watch.stylizer_rss, "cpu_by_role_s": watch.cpu_s}
        self.rows.append(row)
        print(
            f"  {self.side} {self.server}, {load}: {result['throughput']:.3f} a second, {result['statuses']}",
            flush=True,
        )
        return row

    def _load(self, seconds: float, count: int, **options: Any) -> Row:
        self._seed += 100_000  # no photograph is sent twice
        return run_load(self.url, self.side, min(seconds, 600), count, seed=self._seed, **options)


def bench_own(options: argparse.Namespace, side: int, seconds: float, guess: float) -> list[Row]:
    with running_service(options) as (url, process):
        bench = Bench("Ray Serve, ours", url, process, side, seconds, guess)
        bench.warm_up(options.warm_up, 2)
        peak = max(bench.closed(clients) for clients in options.clients)
        for times in options.loads:
            bench.open(times, peak)
        bench.mixed()
    return bench.rows


def bench_rival(options: argparse.Namespace, name: str, engine: str, seconds: float, guess: float) -> list[Row]:
    title = f"{RIVAL_NAMES[name]}, {ENGINE_NAMES[engine]}"
    with running_rival(options, name, engine) as (url, process):
        bench = Bench(title, url, process, options.rival_side, seconds, guess)
        clients = 2 * options.rival_batch  # a batch waits while one is painted
        bench.warm_up(4 * options.rival_batch, clients)  # BentoML measures its first pictures to learn how long to wait
        bench.open(RIVAL_LOAD, bench.closed(clients))
    return bench.rows


def targets(rows: list[Row], bare: dict[int, list[dict[str, float]]], options: argparse.Namespace) -> list[Row]:
    """What the service was built to reach, beside what it reached."""
    found = []

    def target(
        what: str, side: int, value: float | None, least: float | None = None, most: float | None = None
    ) -> None:
        bounds = {">=": least, "<=": most}
        wanted = " ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)
        met = value is not None and (least is None or value >= least) and (most is None or value <= most)
        verdict = met if wanted else ""
        found.append({"target": what, "side": side, "measured": value, "wanted": wanted, "met": verdict})

    for side, runs in bare.items():
        own = {row["load"]: row for row in rows if row["side"] == side and row["server"].startswith("Ray Serve")}
        peak = max(row["throughput"] for load, row in own.items() if load.startswith("closed"))
        worst = own[f"open, {max(options.loads):g} x peak"]
        overload = f"at {max(options.loads):g} x peak"
        target("peak / bare loop", side, peak / bare_rate(runs), least=0.95)
        target(f"accepted {overload} / peak", side, worst["throughput"] / peak, least=0.9)
        one_batch_s = options.threads / peak  # a picture to a thread
        promised_s = round(options.queue_time_s + one_batch_s, 1)
        target(f"p99 of accepted {overload}, s", side, worst["p99_s"], most=promised_s)
        refusals = [row["refusal_p99_s"] for row in own.values() if row["refusal_p99_s"] is not None]
        target("p99 of refusals, ms", side, 1000 * max(refusals) if refusals else None, most=250)
        target("5xx and unanswered", side, sum(row["faults"] + row["unanswered"] for row in own.values()), most=0)
        for rival in (f"{name}, {ENGINE_NAMES['ours']}" for name in RIVAL_NAMES.values()):
            theirs = {row["load"]: row for row in rows if row["side"] == side and row["server"] == rival}
            twice = f"open, {RIVAL_LOAD} x peak"
            if not theirs or twice not in own:
                continue
            their_peak = next(row for load, row in theirs.items() if load.startswith("closed"))
            # One run against one run: the best of several would flatter the service.
            ours = own.get(their_peak["load"], {"throughput": peak})["throughput"]
            target(f"painted, {their_peak['load']} / {rival}", side, ours / their_peak["throughput"], least=1.0)
            tails = own[twice]["p99_s"], theirs[twice]["p99_s"]
            target(f"p99 at 2 x / {rival}", side, tails[0] / tails[1] if None not in tails else None, most=0.5)
    return found


def shown(row: Row) -> Row:
    """A row for people: what was not measured is empty."""

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


def shown_cores(row: Row) -> Row:
    """Who keeps the cores busy, and the CPU-seconds of a painting in the process that paints."""
    used_s = row["cpu_by_role_s"]
    painter = "Stylizer" if "Stylizer" in used_s else OTHERS
    per_picture_s = used_s[painter] / max(row["statuses"].get("200", 0), 1)
    cores = {name: f"{seconds / row['seconds']:.3f}" for name, seconds in sorted(used_s.items())}
    return (
        {"server": row["server"], "load": row["load"]} | cores | {"painter's CPU s a picture": f"{per_picture_s:.2f}"}
    )


def plot(options: argparse.Namespace, rows: list[Row], bare: dict[int, list[dict[str, float]]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    groups = [(side, True) for side in bare] + [(options.rival_side, False)]
    groups = [(side, own, chosen(rows, side, own)) for side, own in groups if chosen(rows, side, own)]
    figure, axes = plt.subplots(2, len(groups), figsize=(5.5 * len(groups), 8), squeeze=False)
    for (side, own, group), (upper, lower) in zip(groups, axes.T, strict=True):
        names = [row["load"] if own else f"{row['server']}\n{row['load']}" for row in group]
        places = range(len(group))
        upper.bar(places, [row["throughput"] for row in group], color="tab:red" if own else "tab:blue")
        if runs := bare.get(side):
            upper.axhline(bare_rate(runs), color="black", linewidth=0.8, linestyle="--", label="bare loop")
            upper.legend(loc="lower right")
        upper.set(title=f"{side} x {side}, {'the service' if own else 'rivals'}", ylabel="painted a second")
        for key, mark in (("p50_s", "o"), ("p99_s", "^"), ("refusal_p99_s", "x")):
            values = [math.nan if row[key] is None else row[key] for row in group]
            if not all(map(math.isnan, values)):
                lower.plot(places, values, mark, label=key.removesuffix("_s").replace("_", " "))
        lower.set(ylabel="seconds", yscale="log")
        lower.legend()
        for axis in (upper, lower):
            axis.set_xticks(places, names, rotation=40, ha="right", fontsize=7)
    figure.tight_layout()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "service.png", dpi=110)


def chosen(rows: list[Row], side: int, own: bool) -> list[Row]:
    return [row for row in rows if row["side"] == side and row["server"].startswith("Ray Serve") == own]


def missing_packages(python: Path, rivals: list[str]) -> list[str]:
    """Those that the rivals' Python cannot import."""
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
    rows: list[Row] = []
    bare: dict[int, list[dict[str, float]]] = {}
    for side in options.sides:
        seconds = options.seconds or (40 if side <= 512 else 60)
        bare[side] = [bare_rates(options, side, seconds)]
        guess = bare_rate(bare[side])
        rows += bench_own(options, side, seconds, guess)
        for name in options.rivals if side == options.rival_side else ():
            for engine in ENGINE_NAMES:
                rows += bench_rival(options, name, engine, seconds, guess)
        bare[side].append(bare_rates(options, side, seconds))
    print()
    for side, own in [(side, own) for side in options.sides for own in (True, False)]:
        if group := chosen(rows, side, own):
            for table in (shown, shown_cores):
                print_table([table(row) for row in group])
                print()
    reached = targets(rows, bare, options)
    print_table(reached)
    for row in rows:
        del row["answers"]
    write(options, "service", rows, bare_loop=bare, targets=reached)
    plot(options, rows, bare)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the service; default configs/local.yaml")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--queue-time-s", type=float, default=8, help="the service's setting")
    parser.add_argument("--seconds", type=float, help="of each load; default 40 up to 512, else 60")
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 4, 8], help="of the closed loops")
    parser.add_argument("--loads", type=float, nargs="+", default=OPEN_LOADS, help="of the open loops, in peaks")
    parser.add_argument("--warm-up", type=int, default=4, help="pictures before anything is measured")
    parser.add_argument("--rivals", nargs="*", default=list(RIVAL_NAMES), choices=RIVAL_NAMES)
    parser.add_argument("--rival-side", type=int, default=512)
    parser.add_argument("--rival-batch", type=int, default=4, help="pictures that a rival paints together, at most")
    parser.add_argument("--rival-wait", default="passive", choices=WAIT_POLICIES, help="of a rival's OpenMP threads")
    python = RIVALS_PYTHON if RIVALS_PYTHON.exists() else Path(sys.executable)
    parser.add_argument("--rival-python", type=Path, default=python, help="that has LitServe and BentoML")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the bare loop and the rivals")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "bench")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
