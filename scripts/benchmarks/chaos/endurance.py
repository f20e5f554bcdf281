"""Faults in a service under load, one each minute: `scripts/bench chaos --minutes N`.

The service of configs/local.yaml runs on a small disk, with a PostgreSQL of its own, and is started again when it ends.
A closed loop measures how much it paints; then requests and jobs arrive at a part of that rate, without waiting for
each other. Every answer and every job is accounted for: the command fails if a job is lost, or a request is answered
with neither a picture nor an honest refusal. With `--uploads` it measures what hostile uploads do to other clients, and
with `--retirement` what clients notice of Stylizers that are replaced.
"""

import argparse
import asyncio
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks import plots
from benchmarks.chaos import retirement, uploads
from benchmarks.chaos.faults import FAULTS, Fault, Injector
from benchmarks.chaos.ledger import MINUTE_S, Injection, JobLedger, RequestLedger, minute_rows
from benchmarks.chaos.load import ChaosLoad, arrivals
from benchmarks.chaos.memory import MemorySampler, descriptors, memory_rows, once_a_minute, settled
from benchmarks.chaos.service import DAMAGED, ChaosService, chaos_service
from benchmarks.load import Clock, arrival_times, positive, run_load
from benchmarks.paths import STYLIZE_PATH
from benchmarks.reporting import Row, print_table, report
from benchmarks.servers import ANIMEGAN

CLIENTS = 8  # of the closed loop
MAX_ARRIVALS = 10**6
PROBLEMS_SHOWN = 40
SETTLE_S = 15.0  # after a load, before descriptors are counted: memory and connections are given back after 10 s


def run(options: argparse.Namespace) -> None:
    """A fault each minute in a service under load, and what is lost; or hostile uploads, or Stylizers that retire."""
    if options.uploads:
        uploads.run(options)
        return
    if options.retirement:
        retirement.run(options)
        return
    if options.style == DAMAGED:
        sys.exit(f"the style {DAMAGED!r} is the one that is damaged; choose another with --style")
    with chaos_service(options.scratch.resolve() / "chaos") as service:
        chosen = [fault for fault in FAULTS if fault.name in options.faults]
        left_out = {fault.name: reason for fault in chosen if (reason := fault.missing(service)) is not None}
        for name, reason in left_out.items():
            print(f"the fault {name!r} is left out: {reason}")
        rate, saturation = options.rate, None
        if rate is None:
            saturation = measure_saturation(service, options)
            rate = saturation * options.load
        time.sleep(SETTLE_S)
        before = settled(lambda: descriptors(service.tree()), SETTLE_S)
        endurance = Endurance(service, options, rate)
        endurance.run([fault for fault in chosen if fault.name not in left_out])
        after: dict[str, int] = {}
        if endurance.stopped_after_s is None:
            time.sleep(SETTLE_S)
            after = settled(lambda: descriptors(service.tree()), SETTLE_S)
        stored = stored_jobs(service)
        starts = service.supervisor.starts
    seconds = min(endurance.stopped_after_s or math.inf, options.minutes * MINUTE_S)  # the rest was draining
    rows = minute_rows(math.ceil(seconds / MINUTE_S), endurance.injections, endurance.requests, endurance.jobs)
    memory = memory_rows(endurance.samples, seconds / 2)
    print_table(memory)
    print_table([{"descriptors of": name, "before": before[name], "after": after.get(name, "")} for name in before])
    print_table(endurance.requests.by_answer())
    jobs = endurance.jobs.summary("lost" if endurance.stopped_after_s is None else "in progress") | {
        "in the database": stored
    }
    problems = endurance.problems(stored)
    print(f"\n{rate:.2f} photographs a second; starts of the service: {starts}; jobs: {jobs}")
    report(
        options.out,
        "chaos",
        rows,
        saturation=saturation,
        rate=rate,
        jobs_share=options.jobs_share,
        side=options.side,
        starts=starts,
        stopped_after_s=endurance.stopped_after_s,
        left_out=left_out,
        answers=endurance.requests.by_answer(),
        jobs=jobs,
        problems=problems,
        injections=[asdict(injection) for injection in endurance.injections],
        memory=memory,
        descriptors={"before": before, "after": after},
        memory_samples=once_a_minute(endurance.samples),
    )
    plots.chaos(options.out, rows[:-1], endurance.samples)
    if problems:
        print_problems(problems)
        sys.exit(f"{len(problems)} losses or dishonest answers")
    if endurance.stopped_after_s is not None:
        sys.exit(f"stopped before its end, after {endurance.stopped_after_s:.0f} s")


def measure_saturation(service: ChaosService, options: argparse.Namespace) -> float:
    """Returns how many photographs a second are painted when there are always more."""
    url = f"{service.address}{STYLIZE_PATH}"
    run_load(url, options.side, 60, 2 * CLIENTS, clients=CLIENTS, seed=10**5)  # warms up
    load = run_load(url, options.side, options.saturation_seconds, options.saturation_count, clients=CLIENTS)
    return float(load["throughput"])


class Endurance:
    """A load with faults, and what came of it.

    Args:
        service: under test.
        options: of the command line.
        rate: photographs a second.

    Attributes:
        injections: the faults.
        requests: all answers.
        jobs: all accepted jobs.
        samples: memory by process.
        stopped_after_s: when it was stopped; None if it came to its end.
    """

    def __init__(self, service: ChaosService, options: argparse.Namespace, rate: float) -> None:
        self.injections: list[Injection] = []
        self.requests = RequestLedger(self.injections, options.allow_broken)
        self.jobs = JobLedger()
        self.samples: list[Row] = []
        self.stopped_after_s: float | None = None
        self._service = service
        self._options = options
        self._rate = rate

    def run(self, faults: list[Fault]) -> None:
        """Runs the load and injects the faults, a minute each; returns early if the run is stopped."""
        options = self._options
        times = arrival_times(self._rate, options.minutes * MINUTE_S, "poisson", MAX_ARRIVALS, options.seed)
        due = arrivals(times, options.jobs_share, (options.style, DAMAGED), options.seed)
        clock = Clock()
        with MemorySampler(self._service.tree, clock.now) as sampler:
            try:
                asyncio.run(self._together(due, faults, clock))
            except SystemExit:  # on SIGTERM
                self.stopped_after_s = clock.now()
        self.samples = sampler.samples

    async def _together(self, due: list[Any], faults: list[Fault], clock: Clock) -> None:
        load = ChaosLoad(self._service.address, self._options.side, clock, self.requests, self.jobs)
        injector = Injector(self._service, faults, clock, self.injections)
        tasks = [load.run(due, self._options.drain)]
        if faults:
            tasks.append(injector.run(self._options.minutes))
        await asyncio.gather(*tasks)

    def problems(self, stored: int | None) -> list[Row]:
        """Returns everything that should not have happened; of a run that was stopped, what is known of that.

        Args:
            stored: jobs in the database; None if it cannot be read. More than were accepted means that a key has made
                two, or that a submission was accepted whose answer was lost, and that was not repeated to its end.
        """
        if self.stopped_after_s is not None:
            return [*self.requests.problems, *self.jobs.problems]
        accepted, unanswered = len(self.jobs.jobs), self.requests.unanswered_submissions()
        doubled = []
        if stored is None:
            doubled = [{"problem": "the jobs in the database cannot be read"}]
        elif not accepted <= stored <= accepted + unanswered:
            doubled = [{"problem": f"{accepted} jobs were accepted, and there are {stored} in the database"}]
        lost = [{"job": job_id, "problem": "it has not ended"} for job_id in self.jobs.unfinished()]
        stuck = [{"fault": each.fault, "problem": each.error} for each in self.injections if each.error is not None]
        return [*self.requests.problems, *self.jobs.problems, *lost, *doubled, *stuck]


def stored_jobs(service: ChaosService) -> int | None:
    """Returns how many jobs there are in the database, finished ones too; None if it cannot be read."""
    command = [*ANIMEGAN, "jobs", "--json", "--config", str(service.config)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    return int(sum(json.loads(done.stdout)["by_status"].values()))


def print_problems(problems: list[Row]) -> None:
    """Prints the first problems as a table; they need not have the same members. The JSON has all."""
    shown = problems[:PROBLEMS_SHOWN]
    columns = {name: "" for problem in shown for name in problem}
    print_table([columns | problem for problem in shown])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench chaos`."""
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--load", type=positive, default=0.9, help="of the measured saturation")
    parser.add_argument("--rate", type=positive, help="photographs a second, in place of --load")
    parser.add_argument("--jobs-share", type=float, default=0.2, help="of photographs that are submitted as jobs")
    parser.add_argument("--side", type=int, default=256, help="pixels of the square photographs")
    parser.add_argument("--faults", nargs="+", default=names, choices=names, help="in rotation, in the table's order")
    parser.add_argument(
        "--allow-broken",
        type=positive,
        default=90.0,
        help="seconds after the death of an Ingress, a proxy or the node, within which connections may break",
    )
    parser.add_argument("--drain", type=positive, default=300.0, help="seconds without an end; then jobs count as lost")
    parser.add_argument("--saturation-seconds", type=positive, default=30.0)
    parser.add_argument("--saturation-count", type=int, default=1000, help="photographs at most")
    parser.add_argument("--seed", type=int, default=0)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--uploads", action="store_true", help="in place of faults: hostile uploads beside others")
    kinds.add_argument("--retirement", action="store_true", help="in place of faults: Stylizers that retire")
    uploads.add_arguments(parser)
    retirement.add_arguments(parser)
