"""Pictures on their way into the blob store and out of it, within the bounds of bytes."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from serve_app.errors import RequestError, StoreFull
from serve_app.jobs import expiry, ledger
from serve_app.jobs.blobs import BlobStore, Kind, blob_name
from serve_app.jobs.database import Database
from serve_app.settings import JobsSettings

logger = logging.getLogger(__name__)

DELETED_AT_A_TIME = 200
PHOTOGRAPHS_PART = 0.9  # of the bounds: a store that is full of waiting photographs can still take paintings
EVICTIONS = 50  # rounds for one reservation, while others take what was freed
PROBER = "(probe)"  # who is charged for the pictures of a probe, while it lasts
RETRY_AFTER_S = 60


@dataclass(frozen=True)
class Bounds:
    """Bounds of bytes for one kind of picture.

    Attributes:
        most: of all pictures.
        share: of those of one client.
        min_free: of the disk, left free.
        may_exceed_share: if none of the client's pictures can go, there is only the bound of all.
        may_evict: whether pictures of finished jobs may go for it.
    """

    most: int
    share: int
    min_free: int
    may_exceed_share: bool
    may_evict: bool = True


@dataclass
class Pending:
    """Stored pictures that no job names yet; unless `is_kept` is set they are deleted again."""

    is_kept: bool = False


class Storage:
    """The blob store with its ledger. Thread-safe.

    Args:
        database: with the ledger.
        blobs: that belong to it.
        settings: bounds.
    """

    def __init__(self, database: Database, blobs: BlobStore, settings: JobsSettings) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings

    @contextmanager
    def stored(
        self, client: str, pictures: Mapping[str, bytes], kind: Kind, is_spare: bool = False
    ) -> Iterator[Pending]:
        """Stores pictures for a block of code in which jobs come to name them.

        Args:
            client: who is charged.
            pictures: contents by new names.
            kind: of all of them; paintings may use room that photographs may not.
            is_spare: they are kept only where a photograph would find room, and no other picture goes for them.

        Raises:
            StoreFull: if there is no room, and no finished job's picture that could go.
            StoreUnavailable: if the database or the blob store cannot be reached.
        """
        pending = Pending()
        bounds = replace(self._bounds("photos"), may_evict=False) if is_spare else self._bounds(kind)
        if pictures:
            self._reserve(client, {name: len(data) for name, data in pictures.items()}, bounds)
        try:
            for name, data in pictures.items():
                self._put(name, data, bounds)
            yield pending
        finally:
            if pictures and not pending.is_kept:
                self._abandon(pictures)

    def probe(self, size: int) -> None:
        """Stores pictures of each kind, reads them, and deletes them: what fails here fails for everybody.

        Args:
            size: bytes of the painting.

        Raises:
            StoreFull: if no painting of this size can be stored.
            StoreUnavailable: if the database or the blob store cannot be reached, or takes no pictures.
        """
        contents: dict[Kind, bytes] = {"photos": secrets.token_bytes(16), "paintings": secrets.token_bytes(16)}
        contents["paintings"] += bytes(max(0, size - 16))
        pictures = {blob_name(kind, data): data for kind, data in contents.items()}
        with self.stored(PROBER, pictures, "paintings"):
            for name in pictures:
                self._blobs.get(name)

    def is_disk_full(self) -> bool:
        """Looks whether less is free on the disk than photographs must leave.

        Raises:
            StoreUnavailable: if the blob store cannot be reached.
        """
        self._blobs.check()
        free = self._blobs.free_bytes()
        return free is not None and free < self._settings.min_free_bytes

    def get(self, name: str) -> bytes:
        """Returns a picture.

        Raises:
            Gone: if it is not there.
        """
        return self._blobs.get(name)

    def delete_unused(self) -> int:
        """Deletes the files that no job names any more; returns their number. What fails is left for the next time."""
        deleted = 0
        while True:
            with self._database.write() as connection:
                names = ledger.take_unused(connection, DELETED_AT_A_TIME)
            gone = self._delete(names)
            if gone:
                with self._database.write() as connection:
                    deleted += ledger.forget(connection, gone)
            if len(gone) < DELETED_AT_A_TIME:
                return deleted

    def delete_strays(self) -> int:
        """Lists all files, and deletes those without a row: only a restored copy of the database leaves such."""
        deleted = 0
        names = sorted(set(self._blobs.names()))
        for start in range(0, len(names), DELETED_AT_A_TIME):
            with self._database.read() as connection:  # after the listing: a row exists before its file does
                strays = ledger.unknown(connection, names[start : start + DELETED_AT_A_TIME])
            deleted += len(self._delete(strays))
        return deleted

    def _delete(self, names: list[str]) -> list[str]:
        gone: list[str] = []
        for name in names:
            try:
                self._blobs.delete(name)
            except RequestError:
                logger.warning("%d unused pictures could not be deleted now", len(names) - len(gone))
                break
            gone.append(name)
        return gone

    def _abandon(self, names: Mapping[str, bytes]) -> None:
        try:
            with self._database.write() as connection:
                ledger.abandon(connection, names)
            self.delete_unused()
        except RequestError:
            logger.warning("%d pictures that were not kept are left for a sweep", len(names))

    def _bounds(self, kind: Kind) -> Bounds:
        settings = self._settings
        part = PHOTOGRAPHS_PART if kind == "photos" else 1.0
        most = int(settings.max_stored_bytes * part)
        min_free = settings.min_free_bytes if kind == "photos" else settings.min_free_bytes // 2
        return Bounds(most, int(most * settings.client_share), min_free, may_exceed_share=kind == "paintings")

    def _reserve(self, client: str, sizes: Mapping[str, int], bounds: Bounds) -> None:
        wanted, share = sum(sizes.values()), bounds.share
        largest = bounds.most if bounds.may_exceed_share else share
        if wanted > largest:  # nothing that could go would help
            raise StoreFull("The picture is larger than its share of the store of jobs.", largest, wanted, "bytes")
        self._free_disk(wanted, bounds)
        for _ in range(EVICTIONS):
            try:
                with self._database.write() as connection:
                    ledger.reserve(connection, client, sizes, bounds.most, share)
                return
            except ledger.NoRoom as shortage:
                owner, excess = shortage.client, shortage.excess_bytes
            if bounds.may_evict and wanted <= share and self._evict(owner, excess):
                continue
            if owner is None or share == largest:
                break
            share = largest
        whose = "The store of jobs is" if owner is None else "Your share of the store of jobs is"
        limit = bounds.most if owner is None else share
        detail = f"{whose} full of pictures that wait. Try again later, or remove jobs."
        raise StoreFull(detail, limit, limit + excess, "bytes", retry_after_s=RETRY_AFTER_S)

    def _free_disk(self, wanted: int, bounds: Bounds) -> None:
        """Lets finished pictures go until a disk has room.

        Raises:
            StoreFull: if it still has none.
        """
        for _ in range(EVICTIONS):
            free = self._blobs.free_bytes()
            if free is None or free - wanted >= bounds.min_free:
                return
            if not bounds.may_evict or not self._evict(None, bounds.min_free + wanted - free):
                break
        raise StoreFull("The disk of the stored pictures is full. Try again later.", retry_after_s=RETRY_AFTER_S)

    def _put(self, name: str, data: bytes, bounds: Bounds) -> None:
        """Writes a picture; if a quota or the last byte of a disk is met, finished pictures go first."""
        for _ in range(EVICTIONS):
            try:
                self._blobs.put(name, data)
            except StoreFull:
                if not bounds.may_evict or not self._evict(None, len(data)):
                    raise
            else:
                return
        raise StoreFull("The disk of the stored pictures is full. Try again later.", retry_after_s=RETRY_AFTER_S)

    def _evict(self, client: str | None, excess: int) -> bool:
        """Lets finished pictures go, and deletes them; returns whether there were any."""
        with self._database.write() as connection:
            has_evicted = expiry.evict(connection, client, excess)
        return bool(self.delete_unused()) or has_evicted
