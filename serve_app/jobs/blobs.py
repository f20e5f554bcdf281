"""The blob store: photographs and paintings as files of a local folder, or of another place by URL, through fsspec.

A name holds the SHA-256 of the content, which is checked when it is read, and a random part, so that no name is used
twice: deleting a blob can never take another one of the same content.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import fsspec

from serve_app.errors import Gone, SettingsError, StoreFull, StoreUnavailable
from serve_app.jobs.database import RETRY_AFTER_S, data_dir, make_private_folder
from serve_app.jobs.works import content_digest
from serve_app.settings import JobsSettings

logger = logging.getLogger(__name__)

OWNER_FILE = "owner"  # holds the id of the database whose blobs lie there
TEMPORARY = ".part"
NAME = re.compile(r"(photos|paintings)/[0-9a-f]{2}/[0-9a-f]{64}-[0-9a-f]{16}")
FULL = {errno.ENOSPC, errno.EDQUOT}
S3_OPTIONS = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 3}},
}


Kind = Literal["photos", "paintings"]


class BlobStore(Protocol):
    """Where blobs lie. Thread-safe.

    `put` and `get` raise StoreUnavailable if the place does not answer, and StoreFull if its disk is full. A place that
    was claimed and has lost its owner, for example because a disk is not mounted, does not answer either: nothing in it
    is said to be gone, nothing is written to it, and nothing is taken for deleted.
    """

    def put(self, name: str, data: bytes) -> None:
        """Writes a blob; when it returns, the blob is on the disk, and until then there is nothing of this name."""

    def get(self, name: str) -> bytes:
        """Reads a blob; raises Gone if it is not there, or not what was written."""

    def delete(self, name: str) -> None:
        """Deletes a blob and what a broken-off `put` left of it; harmless if there is nothing."""

    def names(self) -> Iterator[str]:
        """Names of all blobs, broken-off ones included; other files are passed over."""

    def claim(self, owner: str, is_new: bool = True) -> str:
        """Writes the owner of the place if it has none, and returns who it is.

        Args:
            owner: who wants it.
            is_new: whether it may have none. Otherwise that means that it is not there: StoreUnavailable.
        """

    def check(self) -> None:
        """Raises StoreUnavailable if the place does not answer, or has lost its owner."""

    def free_bytes(self) -> int | None:
        """Bytes that are free on its disk, or None where that means nothing."""


def blob_name(kind: Kind, data: bytes) -> str:
    """Returns a new name for a content."""
    digest = hashlib.sha256(data).hexdigest()
    return f"{kind}/{digest[:2]}/{digest}-{secrets.token_hex(8)}"


def checked(name: str, data: bytes) -> bytes:
    """Returns a content that is the one of its name.

    Raises:
        Gone: if it is another.
    """
    if hashlib.sha256(data).hexdigest() != content_digest(name):
        logger.error("the blob %s is damaged", name)
        raise Gone("The stored picture was damaged. Send the photograph again.")
    return data


@contextmanager
def clear_errors(extra: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns failures of files into refusals."""
    failures: tuple[type[Exception], ...] = (OSError, *extra)
    try:
        yield
    except failures as error:
        logger.error("the blob store failed: %s: %s", type(error).__name__, error)
        if getattr(error, "errno", None) in FULL:
            raise StoreFull("The disk of the stored pictures is full. Try again later.", retry_after_s=60) from None
        raise StoreUnavailable(
            "The stored pictures cannot be reached at this moment. Try again.", retry_after_s=RETRY_AFTER_S
        ) from None


class LocalBlobs:
    """Blobs in a folder of this machine, which only this user may open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_claimed = False
        make_private_folder(folder)

    def put(self, name: str, data: bytes) -> None:
        """Writes a temporary file, syncs it, and renames it."""
        path = self.folder / name
        with clear_errors():
            self._check_is_there()
            for folder in make_private_folder(path.parent):
                sync_folder(folder.parent)
            temporary = temporary_of(path)
            try:
                write_synced(temporary, data)
                temporary.rename(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def get(self, name: str) -> bytes:
        """Reads and checks a file."""
        with clear_errors():
            try:
                data = (self.folder / name).read_bytes()
            except FileNotFoundError:
                self._check_is_there()
                raise not_there() from None
        return checked(name, data)

    def delete(self, name: str) -> None:
        """Removes the file and its temporary one."""
        path = self.folder / name
        with clear_errors():
            self._check_is_there()
            path.unlink(missing_ok=True)
            temporary_of(path).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Walks through the folder."""
        with clear_errors():
            for path in self.folder.glob("*/*/*"):
                name = path.relative_to(self.folder).as_posix().removesuffix(TEMPORARY)
                if NAME.fullmatch(name):
                    yield name

    def claim(self, owner: str, is_new: bool = True) -> str:
        """Links a file into place, so that of two processes one is first."""
        with clear_errors():
            path = self.folder / OWNER_FILE
            if not path.exists():
                if not is_new:
                    raise without_owner(str(self.folder))
                temporary = self.folder / f"{OWNER_FILE}-{secrets.token_hex(8)}"
                write_synced(temporary, owner.encode())
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(temporary)
                temporary.unlink()
                sync_folder(self.folder)
            found = path.read_text()
        self._is_claimed = True
        return found

    def check(self) -> None:
        """Looks for the owner's file."""
        with clear_errors():
            self._check_is_there()

    def free_bytes(self) -> int | None:
        """Asks the file system."""
        with clear_errors():
            self._check_is_there()
            return shutil.disk_usage(self.folder).free

    def _check_is_there(self) -> None:
        if self._is_claimed and not (self.folder / OWNER_FILE).exists():
            raise without_owner(str(self.folder))


def not_there() -> Gone:
    """Returns that a picture is missing."""
    return Gone("The stored picture is not there any more.")


def without_owner(place: str) -> OSError:
    """Returns that a place is not the one that was claimed."""
    return OSError(
        errno.ENODEV, f"there is no `{OWNER_FILE}` in {place}, so the pictures are elsewhere: is it mounted?"
    )


def temporary_of(path: Path) -> Path:
    """The path of a file while it is written."""
    return path.with_name(path.name + TEMPORARY)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file that only this user may read, and waits until it is on the disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemoteBlobs:
    """Blobs in an object store, where writing one is atomic.

    Args:
        url: as fsspec takes it, for example `s3://bucket/folder`; secrets come from the environment.
    """

    def __init__(self, url: str) -> None:
        self._errors = driver_errors(url)
        with clear_errors(self._errors):
            options: dict[str, Any] = S3_OPTIONS if url.startswith("s3:") else {}
            self._files, self._folder = fsspec.core.url_to_fs(url, **options)
        self._is_claimed = False

    def put(self, name: str, data: bytes) -> None:
        """Writes an object."""
        with clear_errors(self._errors):
            self._files.pipe_file(self._path(name), data)

    def get(self, name: str) -> bytes:
        """Reads and checks an object."""
        with clear_errors(self._errors):
            try:
                data: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                self._check_is_there()
                raise not_there() from None
        return checked(name, data)

    def delete(self, name: str) -> None:
        """Removes an object."""
        with clear_errors(self._errors):
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                self._check_is_there()

    def names(self) -> Iterator[str]:
        """Lists all objects."""
        with clear_errors(self._errors):
            for kind in ("photos", "paintings"):
                for path in self._files.find(self._path(kind)):
                    name = path[len(self._path("")) :]
                    if NAME.fullmatch(name):
                        yield name

    def claim(self, owner: str, is_new: bool = True) -> str:
        """Writes an object if there is none."""
        with clear_errors(self._errors):
            if not self._files.exists(self._path(OWNER_FILE)):
                if not is_new:
                    raise without_owner(self._folder)
                self._files.pipe_file(self._path(OWNER_FILE), owner.encode())
            found: bytes = self._files.cat_file(self._path(OWNER_FILE))
        self._is_claimed = True
        return found.decode()

    def check(self) -> None:
        """Looks for the owner's object."""
        with clear_errors(self._errors):
            self._check_is_there()

    def free_bytes(self) -> int | None:
        """None: object stores have no disk that could be full."""
        return None

    def _check_is_there(self) -> None:
        if self._is_claimed and not self._files.exists(self._path(OWNER_FILE)):
            raise without_owner(self._folder)

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"


def driver_errors(url: str) -> tuple[type[Exception], ...]:
    """Returns what a driver raises beside OSError.

    Raises:
        SettingsError: if the driver is not installed.
    """
    if not url.startswith("s3:"):
        return ()
    try:
        import botocore.exceptions
        import s3fs  # noqa: F401 fsspec imports it by its name
    except ModuleNotFoundError:
        raise SettingsError("jobs.blobs_url: S3 needs the extra `s3` (pip install s3fs)") from None
    return (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)


def open_blobs(settings: JobsSettings, owner: str, is_new: bool = True) -> BlobStore:
    """Opens the blob store of the settings for one database.

    Args:
        settings: of jobs.
        owner: id of the database. Its sweeps delete every blob that it does not know, so no other may use the place.
        is_new: whether the database names no pictures yet, so that the place may be empty.

    Raises:
        SettingsError: if the place belongs to another database, or cannot be used.
        StoreUnavailable: if it does not answer.
    """
    url = settings.blobs_url or str(data_dir(settings) / "blobs")
    is_local = "://" not in url or url.startswith("file://")
    try:
        store: LocalBlobs | RemoteBlobs = (
            LocalBlobs(Path(url.removeprefix("file://")).expanduser().absolute()) if is_local else RemoteBlobs(url)
        )
    except (OSError, ValueError, ImportError) as error:
        raise SettingsError(f"jobs.blobs_url: cannot be used ({type(error).__name__})") from None
    found = store.claim(owner, is_new)
    if found != owner:
        raise SettingsError(
            "jobs.blobs_url: the pictures there belong to another database. Name another place, or, if that database is"
            f" gone, remove the file `{OWNER_FILE}` there: the next sweep then deletes its pictures"
        )
    return store
