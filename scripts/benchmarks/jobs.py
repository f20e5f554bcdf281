"""The store of jobs as its tables grow: `scripts/bench jobs`.

Tables are filled with rows of which half wait and half are finished, of a hundred clients. Then a 500 kB photograph is
submitted, claimed, read, asked for its position and cancelled many times. `CPU` is the time that the process computed,
hash, files, rows and syncs included; the other figures are times that passed. All are medians in milliseconds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ByteSize
from sqlalchemy import insert, text

from benchmarks.reporting import Row, collect, percentile, report
from serve_app.frames import EncodedImage, Receipt, Size, StylizeRequest
from serve_app.jobs.database import Database, open_database
from serve_app.jobs.rows import request_members
from serve_app.jobs.schema import migrate
from serve_app.jobs.store import JobStore, open_store
from serve_app.jobs.table import jobs, metadata
from serve_app.jobs.words import NewJob
from serve_app.settings import JobsSettings

PHOTOGRAPH_BYTES = 500_000
CLIENTS = 100
REQUEST = StylizeRequest("toon", 1024, 4, "jpeg")
PAINTING = EncodedImage(os.urandom(100_000), "image/jpeg", Receipt("toon", Size(1, 1), Size(1, 1)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--database-url", help="an empty PostgreSQL database, which is emptied again; default: SQLite")
    parser.add_argument("--data-dir", type=Path, help="parent of a temporary folder; default: the system's")


def run(options: argparse.Namespace) -> None:
    """Times of submitting, claiming and finishing jobs, on tables of several sizes."""
    kind = "postgresql" if options.database_url else "sqlite"
    report(options.out, f"jobs-{kind}", collect(measure(options, rows) for rows in options.rows))


def measure(options: argparse.Namespace, rows: int) -> Row:
    """Fills a new store and measures it."""
    with tempfile.TemporaryDirectory(dir=options.data_dir) as folder:
        settings = JobsSettings(
            data_dir=Path(folder),
            database_url=options.database_url,
            max_queued=10**9,
            min_free_bytes=ByteSize(0),
            client_share=1,
        )
        database = open_database(settings)
        migrate(database)
        fill(database, rows)
        store = open_store(settings)
        try:
            return {"rows": rows, **times(store, options.rounds)}
        finally:
            store.close()
            empty(database)


def fill(database: Database, rows: int) -> None:
    """Inserts rows of which half wait and half are finished."""
    now = int(1000 * time.time())
    template = {"part": 0, "attempt": 0, "pixels": 1, "created_at": now, "request": request_members(REQUEST)}
    with database.write() as connection:
        for start in range(0, rows, 1000):
            batch = []
            for number in range(start, min(start + 1000, rows)):
                is_queued = number % 2 == 0
                row = {**template, "id": f"filled-{number}", "client": f"client {number % CLIENTS}"}
                row |= {"status": "queued" if is_queued else "succeeded", "turn": 1 + number // CLIENTS}
                row |= {"finished_at": None if is_queued else now, "expires_at": None if is_queued else now + 10**8}
                batch.append(row)
            connection.execute(insert(jobs), batch)
        connection.execute(text("ANALYZE"))


def empty(database: Database) -> None:
    """Drops all tables of a server, where the next measurement makes them anew."""
    if not database.is_sqlite:
        with database.write() as connection:
            metadata.drop_all(connection)
            connection.execute(text("DROP TABLE animegan_schema"))
    database.close()


def times(store: JobStore, rounds: int) -> Row:
    """Measures each operation `rounds` times; the first tenth warms up."""
    photographs = iter([os.urandom(PHOTOGRAPH_BYTES) for _ in range(rounds)])
    ids: list[str] = []

    def submit() -> None:
        ids.append(store.submit("a client", [NewJob(REQUEST, next(photographs))]).jobs[0].id)

    submitting_cpu, submitting = zip(*timed(submit, rounds), strict=True)
    claiming_cpu, claiming = zip(*timed(store.queue.claim, rounds), strict=True)
    _, polling = zip(*timed(lambda: store.get(ids[0]), rounds), strict=True)
    _, positions = zip(*timed(lambda: store.positions.outlook_now(ids[-1]), min(rounds, 50)), strict=True)
    _, removing = zip(*timed(lambda: store.remove(ids.pop()), rounds // 2), strict=True)
    return {
        "submit, CPU": statistics.median(submitting_cpu),
        "submit, CPU, p99": percentile(submitting_cpu, 99),
        "submit": statistics.median(submitting),
        "claim, CPU": statistics.median(claiming_cpu),
        "claim": statistics.median(claiming),
        "get": statistics.median(polling),
        "position": statistics.median(positions),
        "cancel": statistics.median(removing),
    }


def timed(action: Callable[[], object], rounds: int) -> Iterator[tuple[float, float]]:
    """Yields milliseconds of CPU and of the clock for each round after the first tenth."""
    for number in range(rounds):
        cpu, clock = time.process_time(), time.perf_counter()
        action()
        if number >= rounds // 10:
            yield 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - clock)
