"""What clients notice of Stylizers that retire: `scripts/bench chaos --retirement`.

Clients send photographs, each the next when the last has been answered, until there have been enough and some
Stylizers have been replaced: with two of them, and with one, whose successor the photographs have to wait for.
"""

import argparse
import asyncio
import sys
import time
from typing import Any

from benchmarks.chaos.ledger import JobLedger, RequestLedger, Verdict
from benchmarks.chaos.load import ChaosLoad
from benchmarks.chaos.service import ChaosService, chaos_service
from benchmarks.load import Clock
from benchmarks.reporting import Row, percentile, print_table, write_json

RETIRE_AFTER_S = 20.0
HEALTH_CHECK_S = 2.0
CLIENTS = 4
MOST_S = 600.0
RETIREMENTS = {2: 3, 1: 1}  # to wait for, by Stylizers; a single one waits for two minutes before it goes
LOOK_S = 1.0


def run(options: argparse.Namespace) -> None:
    """Counts the answers to closed loops while Stylizers retire; fails if one is neither a picture nor honest."""
    rows, problems = [], []
    for stylizers in RETIREMENTS:

        def change(config: dict[str, Any], stylizers: int = stylizers) -> None:
            retire_soon(config, stylizers)

        with chaos_service(options.scratch.resolve() / "chaos", change) as service:
            requests = RequestLedger([], options.allow_broken)
            replaced, seconds = asyncio.run(measure(service, options, stylizers, requests))
        rows.append(row_of(stylizers, replaced, seconds, requests))
        problems += verdicts(rows[-1]) + [f"{each}" for each in requests.problems]
    print_table(rows)
    write_json(options.out, "chaos-retirement", rows, failed=problems)
    if problems:
        sys.exit("\n".join(problems))


def retire_soon(config: dict[str, Any], stylizers: int) -> None:
    """Changes a config so that it has so many Stylizers, each of which retires soon."""
    stylizer = next(each for each in config["applications"][0]["deployments"] if each["name"] == "Stylizer")
    stylizer |= {"num_replicas": stylizers, "health_check_period_s": HEALTH_CHECK_S}
    stylizer["ray_actor_options"]["num_cpus"] = 1 / stylizers
    stylizer["user_config"]["retire_after_s"] = RETIRE_AFTER_S


async def measure(
    service: ChaosService, options: argparse.Namespace, stylizers: int, requests: RequestLedger
) -> tuple[int, float]:
    """Sends photographs until there have been enough retirements; returns how many there were, and the seconds."""
    clock = Clock()
    load = ChaosLoad(service.address, options.side, clock, requests, JobLedger())
    sending = asyncio.create_task(load.run_closed(options.style, CLIENTS))
    seen: set[int] = set()
    end = time.monotonic() + MOST_S
    while not sending.done() and time.monotonic() < end:
        seen |= {process.pid for process in await asyncio.to_thread(service.processes, "Stylizer")}
        is_ready = await asyncio.to_thread(service.is_ready)  # the last one must have been replaced
        if is_ready and len(seen) - stylizers >= RETIREMENTS[stylizers] and len(requests.entries) >= options.requests:
            break
        await asyncio.sleep(LOOK_S)
    load.stop()
    await sending
    return max(0, len(seen) - stylizers), clock.now()


def row_of(stylizers: int, replaced: int, seconds: float, requests: RequestLedger) -> Row:
    """Returns what became of the requests."""
    latencies = [answer.latency_s for answer, verdict in requests.entries if verdict is Verdict.DONE]
    counts = {str(verdict): sum(found is verdict for _, found in requests.entries) for verdict in Verdict}
    return {
        "Stylizers": stylizers,
        "replaced": replaced,
        "s": seconds,
        "requests": len(requests.entries),
        "painted": counts[Verdict.DONE],
        "refused": counts[Verdict.REFUSED],
        "other": counts[Verdict.OTHER] + counts[Verdict.BROKEN],
        "p50 s": percentile(latencies, 50) if latencies else "",
        "longest s": max(latencies, default=""),
    }


def verdicts(row: Row) -> list[str]:
    """Returns what failed, a sentence each."""
    stylizers, failed = row["Stylizers"], []
    if row["replaced"] < RETIREMENTS[stylizers]:
        failed.append(f"of {stylizers}: {row['replaced']} were replaced within {MOST_S:.0f} s, too few to tell")
    if row["other"]:
        failed.append(f"of {stylizers}: {row['other']} requests were answered dishonestly")
    if stylizers > 1 and row["refused"]:
        failed.append(f"of {stylizers}: {row['refused']} requests were refused, though another Stylizer ran")
    return failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench chaos --retirement`."""
    parser.add_argument("--requests", type=int, default=500, help="with --retirement: of all clients, at least")
