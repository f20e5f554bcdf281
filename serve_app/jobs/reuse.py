"""Paintings that are used again: found by what was painted, and kept for that if they were no job's."""

from contextlib import suppress

from sqlalchemy import Connection, bindparam, select

from serve_app.errors import RequestError
from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.jobs import ledger
from serve_app.jobs.blobs import blob_name
from serve_app.jobs.database import Database
from serve_app.jobs.queue import insert_job, reused
from serve_app.jobs.rows import receipt_members, request_members, to_job
from serve_app.jobs.storage import Storage
from serve_app.jobs.table import NO_TURN, SUCCEEDED, jobs, now_ms
from serve_app.jobs.words import Job, NewJob
from serve_app.jobs.works import content_digest, photo_digest, work_digest
from serve_app.settings import JobsSettings


class Paintings:
    """The paintings of a store by their works, each client's for itself. Thread-safe.

    Every method raises StoreUnavailable if the database cannot be reached.

    Args:
        database: with a schema that is up to date.
        storage: of the pictures.
        settings: times.
    """

    def __init__(self, database: Database, storage: Storage, settings: JobsSettings) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings

    def earlier(self, client: str, new: NewJob) -> Job | None:
        """Returns a job of the client whose painting would be that of a new one, if it is kept and can be read."""
        work = self._work_of(new) if new.painter and new.error is None else None
        if work is None:
            return None
        with self._database.read() as connection:
            job = last_painted(connection, client, work)
        with suppress(RequestError):  # of a painting that is damaged, or cannot be read now
            if job is not None and job.painting is not None:
                self._storage.get(job.painting)
                return job
        return None

    def find(self, client: str, work: str) -> EncodedImage | None:
        """Returns what a client was painted before, by the digest of the work; None if that is not kept."""
        with self._database.read() as connection:
            job = last_painted(connection, client, work)
        with suppress(RequestError):
            if job is not None and job.painting is not None and job.receipt is not None:
                return EncodedImage(self._storage.get(job.painting), str(job.media_type), reused(job.receipt))
        return None

    def keep(self, client: str, work: str, request: StylizeRequest, painting: EncodedImage) -> bool:
        """Keeps a painting of /v1/stylize for `keep_stylized_for_s`; returns False if there is one of this work.

        Args:
            client: whose it is.
            work: digest of what was painted.
            request: the client's options.
            painting: as the client has got it.

        Raises:
            StoreFull: if there is no room. Nothing else goes for it.
        """
        name = blob_name("paintings", painting.data)
        keep_ms = int(1000 * min(self._settings.keep_stylized_for_s, self._settings.keep_for_s))
        what = {"request": request_members(request), "pixels": painting.receipt.painted.pixels}
        painted = {
            "painting": name,
            "media_type": painting.media_type,
            "receipt": receipt_members(painting.receipt),
            "work_digest": work,
            "finished_at": now_ms(),
            "expires_at": now_ms() + keep_ms,
        }
        with self._storage.stored(client, {name: painting.data}, "paintings", is_spare=True) as pending:
            with self._database.write() as connection:
                is_new = last_painted(connection, client, work) is None
                if is_new:
                    insert_job(connection, {"client": client, "turn": NO_TURN, "part": 0, **what}, painted)
                    ledger.keep(connection, name)
            pending.is_kept = is_new
        return is_new

    def _work_of(self, new: NewJob) -> str | None:
        """Returns the digest of the work that a job asks for; None if the photograph of its source is gone."""
        if new.photo is not None:
            return work_digest(photo_digest(new.photo), new.painter, new.request)
        with self._database.read() as connection:
            photo = connection.execute(select(jobs.c.photo).where(jobs.c.id == new.source)).scalar()
        return None if photo is None else work_digest(content_digest(photo), new.painter, new.request)


# Made once: SQLAlchemy takes longer to put a statement together than SQLite to run it.
LAST_PAINTED = (
    select(jobs)
    .where(jobs.c.client == bindparam("owner"), jobs.c.work_digest == bindparam("work"), SUCCEEDED)
    .order_by(jobs.c.number.desc())
    .limit(1)
)


def last_painted(connection: Connection, client: str, work: str) -> Job | None:
    """Returns a client's last job of a work that has a painting, or None."""
    row = connection.execute(LAST_PAINTED, {"owner": client, "work": work}).mappings().one_or_none()
    return None if row is None else to_job(row)
