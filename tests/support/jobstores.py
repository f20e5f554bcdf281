"""Stores of jobs for the tests: how to fill them, let time pass, and check that their parts agree."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update

from serve_app.frames import EncodedImage, Receipt, Size, StylizeRequest
from serve_app.jobs.database import Database, open_database
from serve_app.jobs.store import open_store
from serve_app.jobs.table import IS_UNFINISHED, blobs, jobs, usage, webhooks
from serve_app.jobs.words import FINISHED, Job, Lease, NewJob
from serve_app.settings import JobsSettings

REQUEST = StylizeRequest(style="toon", max_side=512, multiple=4, format="png")
RECEIPT = Receipt("toon", Size(60, 80), Size(30, 40), {"decode": 1.5, "paint": 2.0})
TIMES = ("lease_until", "created_at", "started_at", "finished_at", "expires_at", "photo_expires_at")


def make_settings(folder: Path, database_url: str | None = None, **changes: Any) -> JobsSettings:
    defaults = {"data_dir": folder, "database_url": database_url, "min_free_bytes": 0}
    return JobsSettings(**defaults | changes)


class Bench:
    """A store together with what the tests look at behind its back."""

    def __init__(self, settings: JobsSettings) -> None:
        self.settings = settings
        self.store = open_store(settings)
        self.database: Database = open_database(settings)

    def with_settings(self, **changes: Any) -> "Bench":
        """Another process, as it were, with other settings over the same database."""
        return Bench(self.settings.model_copy(update=changes))

    def submit(
        self, client: str = "ann", photo: bytes = b"photo", callback_url: str | None = None, **options: Any
    ) -> Job:
        (job,) = self.store.submit(client, [NewJob(REQUEST, photo, callback_url=callback_url)], **options).jobs
        return job

    def claim(self) -> Lease:
        lease = self.store.queue.claim()
        assert lease is not None
        return lease

    def succeed(self, client: str = "ann", photo: bytes = b"photo", painted: bytes = b"painting") -> Job:
        """A job that was painted; the queue must be empty before."""
        job = self.submit(client, photo)
        assert self.store.finish(self.claim(), painting(painted))
        return self.store.get(job.id)

    def unfinished(self) -> int:
        """Number of jobs that wait or run; in one statement, because one may pass from one state to the other."""
        with self.database.read() as connection:
            return connection.execute(select(func.count()).select_from(jobs).where(IS_UNFINISHED)).scalar_one()

    def pass_time(self, seconds: float) -> None:
        """Moves every time of the tables into the past; negative seconds are a clock that was set back."""
        with self.database.write() as connection:
            moved = {name: jobs.c[name] - int(1000 * seconds) for name in TIMES}
            connection.execute(update(jobs).values(moved))
            connection.execute(update(blobs).values(delete_after=blobs.c.delete_after - int(1000 * seconds)))
            connection.execute(update(webhooks).values(due_at=webhooks.c.due_at - int(1000 * seconds)))

    def messages(self) -> list[Any]:
        """The outbox, in the order in which jobs have ended."""
        with self.database.read() as connection:
            return list(connection.execute(select(webhooks).order_by(webhooks.c.number)).all())

    def files(self) -> set[str]:
        """Names of all files in a local blob store."""
        folder = self.folder
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*/*") if path.is_file()}

    @property
    def folder(self) -> Path:
        assert self.settings.data_dir is not None
        return self.settings.data_dir / "blobs"

    def check(self) -> None:
        """Every reference is counted, every kept blob has its file, and the sums are right."""
        with self.database.read() as connection:
            rows = connection.execute(select(jobs)).mappings().all()
            kept = connection.execute(select(blobs)).mappings().all()
            sums = {row.client: row.bytes for row in connection.execute(select(usage))}
            told = connection.execute(select(webhooks.c.job, webhooks.c.url)).all()
        named = Counter(name for row in rows for name in (row["photo"], row["painting"]) if name)
        assert {row["name"]: row["refs"] for row in kept if row["refs"]} == named
        files = self.files()
        assert set(named) <= files
        assert files <= {row["name"] for row in kept}
        by_client: Counter[str] = Counter()
        for row in kept:
            by_client[row["client"]] += row["bytes"]
        assert {client: size for client, size in sums.items() if client and size} == dict(by_client)
        assert sums[""] == by_client.total()
        ended = {(row["id"], row["callback_url"]) for row in rows if row["status"] in FINISHED}
        assert {(row.job, row.url) for row in told} <= ended
        for row in rows:
            check_row(row)

    def close(self) -> None:
        self.store.close()
        self.database.close()


def check_row(row: Any) -> None:
    """What a status says about the columns."""
    status = row["status"]
    assert (row["lease_token"] is not None) == (row["lease_until"] is not None) == (status == "running")
    assert (row["finished_at"] is not None and row["expires_at"] is not None) == (status not in ("queued", "running"))
    assert (row["photo"] is not None) or status not in ("queued", "running")
    assert (row["painting"] is not None) == (row["receipt"] is not None) == (status == "succeeded")
    assert (row["problem"] is not None) == (status == "failed")
    if status == "expired":
        blank = (row["request"], row["key_digest"], row["photo"], row["callback_url"])
        assert (row["client"], *blank) == ("", None, None, None, None)


def painting(data: bytes = b"painting") -> EncodedImage:
    return EncodedImage(data, "image/png", RECEIPT)


def count_of(bench: Bench, status: str) -> int:
    with bench.database.read() as connection:
        return connection.execute(select(func.count()).select_from(jobs).where(jobs.c.status == status)).scalar_one()


def fill_disk(ballast: Path) -> None:
    """Writes to a file until its disk is full to the last byte."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
