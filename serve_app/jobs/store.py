"""The store of jobs: the queue, the pictures and their bounds together. Synchronous; call it from a thread."""

import hashlib
import json
from collections.abc import Sequence

from sqlalchemy import func, select

from serve_app.errors import Gone, NotFinished, UnknownJob
from serve_app.frames import EncodedImage
from serve_app.jobs import expiry, ledger, outbox
from serve_app.jobs.blobs import BlobStore, blob_name, open_blobs
from serve_app.jobs.database import Database
from serve_app.jobs.outbox import Outbox
from serve_app.jobs.queue import Entry, JobQueue, Vanished
from serve_app.jobs.reader import JobReader
from serve_app.jobs.reuse import Paintings
from serve_app.jobs.rows import request_members
from serve_app.jobs.schema import SchemaState, opened, schema_state
from serve_app.jobs.storage import Storage
from serve_app.jobs.table import IS_JOB, QUEUED, blobs, jobs, now_ms, store
from serve_app.jobs.words import Census, Job, Lease, NewJob, Reaped, Status, Submission, Swept, Tally
from serve_app.settings import JobsSettings


class JobStore:
    """Jobs and their pictures. Thread-safe; make one in each process with `open_store`.

    Every method raises StoreUnavailable if the database or the blob store cannot be reached, and StoreFull if a disk is
    full.

    Attributes:
        queue: the transitions of unfinished jobs, for workers.
        reader: for whoever watches jobs.
        positions: how many unfinished jobs are ahead of one.
        outbox: messages that say that jobs have ended.
        paintings: that may be used again.

    Args:
        database: with a schema that is up to date.
        blobs: that belong to it.
        settings: limits and times.
    """

    def __init__(self, database: Database, blobs: BlobStore, settings: JobsSettings) -> None:
        self.queue = JobQueue(database, settings)
        self.reader = JobReader(database)
        self.positions = self.reader.positions
        self.outbox = Outbox(database)
        self._database = database
        self._storage = Storage(database, blobs, settings)
        self.paintings = Paintings(database, self._storage, settings)
        self._settings = settings

    def submit(self, client: str, new: Sequence[NewJob], key: str | None = None) -> Submission:
        """Stores photographs and queues their jobs. When it returns, all of them are on the disk.

        Args:
            client: name of the client or its key, not empty.
            new: the jobs, at least one; either all or none of them are made.
            key: the client's idempotency key. The same key with the same jobs returns the jobs that it made before.

        Raises:
            KeyReused: if the key came with other jobs before.
            TooBusy: if the queue, or the client's share of it, is full.
            StoreFull: if there is no room for the photographs, and nothing that could go.
            UnknownJob, Gone: if a source, or its photograph, is not there.
        """
        if not client or not new:
            raise ValueError("a submission has a client and at least one job")
        key_digest = payload_digest = None
        if key is not None:
            key_digest, payload_digest = digest(client, key), digest_of_jobs(new)
            earlier = self.queue.submitted(key_digest, payload_digest)
            if earlier:
                return earlier
        digests = (key_digest, payload_digest)
        try:
            return self._submit(client, new, [self.paintings.earlier(client, job) for job in new], digests)
        except Vanished:
            return self._submit(client, new, [None] * len(new), digests)

    def get(self, job_id: str) -> Job:
        """Returns a job.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it has expired or was erased.
        """
        job = self.find([job_id]).get(job_id)
        if job is None:
            raise UnknownJob("There is no job with this id.")
        if job.status is Status.EXPIRED:
            raise Gone("This job has expired or was erased.")
        return job

    def find(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Returns those of some jobs that exist, expired ones too, by their ids."""
        return self.reader.find(job_ids)

    def photo(self, job: Job) -> bytes:
        """Returns the photograph of a job, as it was sent.

        Raises:
            Gone: if it is not kept any more.
        """
        if job.photo is None:
            raise Gone("The photograph of this job is not kept: it has expired, was erased, or could never be painted.")
        return self._storage.get(job.photo)

    def painting(self, job: Job) -> bytes:
        """Returns the painting of a succeeded job.

        Raises:
            NotFinished: if the job waits or runs.
            Gone: if there is no painting: the job failed, was cancelled or has expired.
        """
        if job.status.is_unfinished:
            raise NotFinished("The job is not finished yet. Ask again later.")
        if job.painting is None:
            raise Gone(f"There is no painting of this job: it is {job.status}.")
        return self._storage.get(job.painting)

    def finish(self, lease: Lease, painting: EncodedImage) -> bool:
        """Stores the painting of a job and ends it; returns False if the lease is void.

        Raises:
            StoreFull: if there is no room for the painting, and nothing that could go.
        """
        name = blob_name("paintings", painting.data)
        with self._storage.stored(lease.job.client, {name: painting.data}, "paintings") as pending:
            pending.is_kept = self.queue.finish(lease, name, painting.media_type, painting.receipt)
        return pending.is_kept

    def probe(self, size: int) -> None:
        """Finds out whether a painting of so many bytes could be stored, and read again, by storing and deleting one.

        Raises:
            StoreFull: if there is no room for it, and nothing that could go.
        """
        self._storage.probe(size)

    def remove(self, job_id: str) -> Job:
        """Cancels a job that waits or runs, and erases a finished one with its pictures. Returns the job as it is then.

        Raises:
            UnknownJob: if there is none of this id.
            Gone: if it has expired or was erased before.
        """
        if self.cancel(job_id) is None:
            self.get(job_id)
            with self._database.write() as connection:
                expiry.erase(connection, job_id)
            self._storage.delete_unused()
        removed = self.find([job_id]).get(job_id)
        if removed is None:  # forgotten at once (`forget_after_s` is 0)
            raise Gone("This job has expired or was erased.")
        return removed

    def cancel(self, job_id: str) -> Job | None:
        """Ends a job that waits or runs, and deletes its photograph; returns None if there is no such job."""
        cancelled = self.queue.cancel(job_id)
        if cancelled is not None:
            with self._database.write() as connection:
                expiry.drop_photos(connection, [cancelled.number])
            self._storage.delete_unused()
        return cancelled

    def erase_finished(self) -> int:
        """Erases all finished jobs with their pictures; returns their number."""
        erased = 0
        while True:
            with self._database.write() as connection:
                done = expiry.expire_finished(connection)
            erased += done
            if done < expiry.BATCH:
                self._storage.delete_unused()
                return erased

    def census(self) -> Census:
        """Counts the jobs."""
        counts: dict[str, dict[Status, int]] = {}
        grouped = select(jobs.c.client, jobs.c.status, func.count().label("jobs")).group_by(
            jobs.c.client, jobs.c.status
        )
        grouped = grouped.where(IS_JOB)
        oldest = select(now_ms() - func.min(jobs.c.created_at)).where(QUEUED)
        with self._database.read() as connection:
            for row in connection.execute(grouped.order_by(jobs.c.client)):
                counts.setdefault(row.client, {})[Status(row.status)] = row.jobs
            waited_ms = connection.execute(oldest).scalar()
            stored = ledger.bytes_used(connection)
        return Census(counts, None if waited_ms is None else waited_ms / 1000, stored)

    def tally(self) -> Tally:
        """Counts the jobs by status, for metrics."""
        waited_ms, attempts = now_ms() - func.min(jobs.c.created_at), func.max(jobs.c.attempt)
        grouped = select(jobs.c.status, func.count().label("jobs"), waited_ms.label("ms"), attempts.label("attempts"))
        with self._database.read() as connection:
            rows = connection.execute(grouped.where(IS_JOB).group_by(jobs.c.status)).all()
            stored = ledger.bytes_used(connection)
        return Tally(
            {Status(row.status): row.jobs for row in rows},
            {Status(row.status): row.ms / 1000 for row in rows},
            {Status(row.status): row.attempts for row in rows},
            stored,
        )

    def _submit(
        self,
        client: str,
        new: Sequence[NewJob],
        earlier: Sequence[Job | None],
        digests: tuple[str | None, str | None],
    ) -> Submission:
        """Stores those photographs that earlier jobs do not have, and inserts the jobs."""
        pairs = list(zip(new, earlier, strict=True))
        to_paint = sum(job.error is None and before is None for job, before in pairs)
        if to_paint:
            self.queue.check_room(client, to_paint)
        photos: dict[str, bytes] = {}
        entries = []
        for job, before in pairs:
            name = None
            if job.photo is not None and job.error is None and (before is None or before.photo is None):
                name = blob_name("photos", job.photo)
                photos[name] = job.photo
            pixels = job.pixels or job.request.max_side**2
            entries.append(Entry(job.request, pixels, name, job.source, job.error, job.callback_url, before))
        with self._storage.stored(client, photos, "photos") as pending:
            submission = self.queue.submit(client, entries, *digests)
            pending.is_kept = submission.is_new
        return submission

    def schema_state(self) -> SchemaState:
        """Compares the schema of the database with the code, for `/readyz`."""
        return schema_state(self._database)

    def is_disk_full(self) -> bool:
        """Looks for the pictures, and whether their disk has less room than photographs must leave."""
        return self._storage.is_disk_full()

    def close(self) -> None:
        """Closes the connections to the database."""
        self._database.close()

    def sweep(self, strays: bool = True, reaps: bool = True) -> Swept:
        """Does everything that is due: reaps, expires, forgets, and deletes files. Any process may do it, at any time.

        Args:
            strays: whether also to list the blob store, and delete what no row names. Only a database that was restored
                from a copy leaves such blobs.
            reaps: whether also to reap by the times of the leases alone. Who can look again and again knows better.
        """
        reaped = self.queue.reap() if reaps else Reaped()
        with self._database.write() as connection:
            expiry.clamp(connection, self._settings)
            ledger.clamp(connection)
            outbox.clamp(connection)
        expired = photos = forgotten = 0
        while True:
            with self._database.write() as connection:
                done = expiry.expire_due(connection), expiry.drop_photos_due(connection)
                done_with = expiry.forget_due(connection, self._settings)
            expired, photos, forgotten = expired + done[0], photos + done[1], forgotten + done_with
            if max(*done, done_with) < expiry.BATCH:
                break
        deleted = self._storage.delete_unused() + (self._storage.delete_strays() if strays else 0)
        return Swept(len(reaped.queued), len(reaped.failed), expired, photos, forgotten, deleted)


def open_store(settings: JobsSettings) -> JobStore:
    """Opens the store of the settings, after bringing the schema of its database up to date.

    Raises:
        SettingsError: if a setting is wrong, or the place of the pictures belongs to another database.
        SchemaBehind: if the schema cannot be brought up to date.
        StoreUnavailable: if the database or the blob store cannot be reached.
    """
    with opened(settings) as database:
        with database.read() as connection:
            owner = connection.execute(select(store.c.id)).scalar_one()
            is_new = connection.execute(select(blobs.c.name).where(blobs.c.refs > 0).limit(1)).first() is None
        return JobStore(database, open_blobs(settings, owner, is_new), settings)


def digest(*parts: str) -> str:
    """Returns a digest of some texts in order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def digest_of_jobs(new: Sequence[NewJob]) -> str:
    """Returns a digest of what a submission asks for."""
    return digest(
        *(
            json.dumps(
                [
                    None if job.photo is None else hashlib.sha256(job.photo).hexdigest(),
                    job.source,
                    request_members(job.request),
                    *([] if job.callback_url is None else [job.callback_url]),  # or digests of before would differ
                ],
                sort_keys=True,
            )
            for job in new
        )
    )
