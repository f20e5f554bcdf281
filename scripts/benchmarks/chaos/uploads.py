"""What hostile uploads do to other clients: `scripts/bench chaos --uploads`.

Ordinary clients send photographs, alone and then beside each kind of hostile client. After each part it is counted
whether a descriptor, a place in the guard or the Ingress, or memory was lost.
"""

import argparse
import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.chaos.bad_clients import chunked, converse, drip, request_head
from benchmarks.chaos.faults import UPLOAD_BYTES, abort
from benchmarks.chaos.memory import WITH_DESCRIPTORS, descriptors, named_processes, settled
from benchmarks.chaos.service import ChaosService, chaos_service
from benchmarks.load import run_load
from benchmarks.paths import STYLIZE_PATH
from benchmarks.reporting import MB, Row, print_table, write_json
from benchmarks.soak import private_bytes

HUGE_BYTES = 10 * 10**9
CLIENTS = 4
SETTLE_S = 15.0
PLACES_S = 60.0  # within which all places must be free again; gauges are up to 5 s old
MOST_SLOWDOWN = 2.0  # of the p95 of ordinary clients
DESCRIPTORS_SPARE = 20  # that a process may have more than before: connections between processes come and go
MEMORY_SPARE_MB = 64  # likewise
PLACES = (
    "animegan_guard_uploads",
    "animegan_guard_memory_bytes",
    "animegan_guard_disk_bytes",
    "animegan_guard_waiting",
    "animegan_guard_forwarded",
    "animegan_inside_pictures",
)
CONTENT_LENGTH = f"Content-Length: {HUGE_BYTES}"

Statuses = Counter[str]


@dataclass(frozen=True)
class Hostile:
    """A kind of hostile clients.

    Attributes:
        name: as the report has it.
        attack: sends until the event is set, and at least what the name says; returns how it was answered.
    """

    name: str
    attack: Callable[[str, threading.Event, argparse.Namespace], Coroutine[Any, Any, Statuses]]


async def declared(address: str, over: threading.Event, options: argparse.Namespace) -> Statuses:
    """Announces 10 GB and sends them, as far as they are taken, again and again."""

    async def body() -> Any:
        data = bytes(2**18)
        for _ in range(HUGE_BYTES // len(data)):
            yield data

    return await one_after_another(address, over, request_head(STYLIZE_PATH, CONTENT_LENGTH), body)


async def endless(address: str, over: threading.Event, options: argparse.Namespace) -> Statuses:
    """Sends 10 GB in chunks, as far as they are taken, again and again."""
    head = request_head(STYLIZE_PATH, "Transfer-Encoding: chunked")
    return await one_after_another(address, over, head, chunked(HUGE_BYTES))


async def one_after_another(address: str, over: threading.Event, head: bytes, body: Any) -> Statuses:
    """Sends an upload until it is answered or broken off, and then the next, until it is over."""
    statuses: Statuses = Counter()
    while True:
        statuses[await status_of(address, head, body)] += 1
        if over.is_set():
            return statuses
        await asyncio.sleep(0.1)


async def status_of(address: str, head: bytes, body: Any) -> str:
    """Sends an upload; returns the status of the answer, 0 if there was none."""
    try:
        return str((await converse(address, head, body)).status)
    except OSError:
        return "no connection"


async def slow(address: str, over: threading.Event, options: argparse.Namespace) -> Statuses:
    """Holds many connections that send a byte a second; each that is closed is opened again."""
    head = request_head(STYLIZE_PATH, f"Content-Length: {UPLOAD_BYTES}")
    statuses: Statuses = Counter()

    async def hold() -> None:
        while not over.is_set():
            statuses[await status_of(address, head, drip)] += 1

    await asyncio.gather(*(hold() for _ in range(options.slow)))
    return statuses


async def aborted(address: str, over: threading.Event, options: argparse.Namespace) -> Statuses:
    """Begins uploads and breaks them off, so often that all would fit in the time of ordinary clients alone."""
    head = request_head(STYLIZE_PATH, f"Content-Length: {UPLOAD_BYTES}")
    pause_s, tasks = options.quiet_s / options.aborted, list[asyncio.Task[None]]()
    while len(tasks) < options.aborted or not over.is_set():
        tasks.append(asyncio.create_task(abort(address, head)))
        await asyncio.sleep(pause_s)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return Counter("refused" if isinstance(end, BaseException) else "aborted" for end in ends)


HOSTILE = [
    Hostile("10 GB, declared", declared),
    Hostile("10 GB, chunked", endless),
    Hostile("slow connections", slow),
    Hostile("aborted uploads", aborted),
]


def run(options: argparse.Namespace) -> None:
    """Measures ordinary clients alone and beside hostile ones; fails if they suffer, or something is lost."""
    rows: list[Row] = []
    with chaos_service(options.scratch.resolve() / "chaos") as service:
        try:
            for row in measure(service, options):
                print(f"  {row}", flush=True)
                rows.append(row)
        except SystemExit:  # on SIGTERM: the parts that were measured are reported
            if not (rows and service.stopping.is_set()):
                raise
    print_table(rows)
    failed = verdicts(rows)
    was_stopped = service.stopping.is_set()
    write_json(options.out, "chaos-uploads", rows, failed=failed, was_stopped=was_stopped)
    if was_stopped:
        sys.exit(f"stopped after {len(rows)} of {len(HOSTILE) + 2} parts")
    if failed:
        sys.exit("\n".join(failed))


def measure(service: ChaosService, options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for ordinary clients alone, one beside each kind of hostile clients, and one alone again."""
    url = f"{service.address}{STYLIZE_PATH}"
    run_load(url, options.side, 120, options.photos // 10, clients=CLIENTS, seed=10**5)  # warms up
    asyncio.run(warm_up(service, options))
    seed = 10**6
    alone = one_part(service, options, "nobody", None, seed)
    options.quiet_s = alone["s"]
    yield alone | {"times alone": 1.0}
    for hostile in [*HOSTILE, None]:
        seed += options.photos
        row = one_part(service, options, hostile.name if hostile else "nobody, again", hostile, seed)
        yield row | {"times alone": row["p95 s"] / alone["p95 s"]}


async def warm_up(service: ChaosService, options: argparse.Namespace) -> None:
    """Sends a few of each kind, so that what the first one needs for good is not counted as lost."""
    over = threading.Event()
    over.set()
    few = argparse.Namespace(slow=0, aborted=20, quiet_s=2.0)
    for hostile in HOSTILE:
        await hostile.attack(service.address, over, few)


def one_part(service: ChaosService, options: argparse.Namespace, name: str, hostile: Hostile | None, seed: int) -> Row:
    """Has ordinary clients send their photographs, beside hostile ones; returns latencies, and what is lost."""
    held_before, memory_before = settled(lambda: descriptors(service.tree()), SETTLE_S), memory_mb(service)
    over, statuses = threading.Event(), Counter[str]()

    def attack() -> None:
        if hostile is not None:
            statuses.update(asyncio.run(hostile.attack(service.address, over, options)))

    attacker = threading.Thread(target=attack, daemon=True)
    attacker.start()
    try:
        url = f"{service.address}{STYLIZE_PATH}"
        load = run_load(url, options.side, 3600, options.photos, clients=CLIENTS, seed=seed)
    finally:
        over.set()
    attacker.join()
    held = settled(lambda: descriptors(service.tree()), SETTLE_S)
    return {
        "beside": name,
        "hostile": ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())),
        "painted": load["statuses"].get("200", 0),
        "not painted": load["sent"] - load["statuses"].get("200", 0),
        "s": load["seconds"],
        "p50 s": load["p50_s"],
        "p95 s": load["p95_s"],
        "descriptors more": {kind: held[kind] - held_before[kind] for kind in held_before},
        "MB more": memory_mb(service) - memory_before,
        "places held": places_held(service),
    }


def memory_mb(service: ChaosService) -> float:
    """Returns the private memory of the processes that uploads go through, together."""
    found = named_processes(service.tree())
    return sum(private_bytes(process) for name, process in found if name in WITH_DESCRIPTORS) / MB


def places_held(service: ChaosService) -> float:
    """Returns what the guard and the Ingress still hold, added up, when all should be free: 0 if it is."""
    deadline = time.monotonic() + PLACES_S
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    while (held := gauges(requests.get(url, timeout=30).text)) and time.monotonic() < deadline:
        time.sleep(1)
    return held


def gauges(text: str) -> float:
    """Returns the sum of the gauges `PLACES` in Prometheus's text.

    Raises:
        SystemExit: if one of them is missing: then nothing would be known.
    """
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    missing = [name for name in PLACES if name not in values]
    if missing:
        raise SystemExit(f"the service's metrics have no {', '.join(missing)}")
    return sum(values[name] for name in PLACES)


def verdicts(rows: list[Row]) -> list[str]:
    """Returns what failed, a sentence each."""
    failed = []
    for row in rows:
        beside = f"beside {row['beside']}"
        if row["not painted"]:
            failed.append(f"{beside}: {row['not painted']} photographs were not painted")
        if row["times alone"] >= MOST_SLOWDOWN:
            failed.append(f"{beside}: the p95 of ordinary clients is {row['times alone']:.1f} times that alone")
        if row["places held"]:
            failed.append(f"{beside}: {row['places held']:.0f} places or bytes are still held")
        if row["MB more"] > MEMORY_SPARE_MB:
            failed.append(f"{beside}: {row['MB more']:.0f} MB more are in use")
        for kind, more in row["descriptors more"].items():
            if more > DESCRIPTORS_SPARE:
                failed.append(f"{beside}: {kind} has {more} descriptors more")
    return failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench chaos --uploads`."""
    parser.add_argument("--photos", type=int, default=300, help="with --uploads: of ordinary clients, in each part")
    parser.add_argument("--slow", type=int, default=200, help="with --uploads: connections that send a byte a second")
    parser.add_argument("--aborted", type=int, default=1000, help="with --uploads: uploads that are broken off")
