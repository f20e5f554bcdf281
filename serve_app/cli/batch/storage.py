"""Folders and buckets: they are listed, read and written in the same way.

Paths are relative to the folder or the prefix, with `/` between their parts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from serve_app.cli.paint.names import FORMATS
from serve_app.cli.paint.photographs import PhotographError
from serve_app.cli.paint.work import file_error, read, replace_file
from serve_app.errors import AnimeganError, TooManyBytes
from serve_app.images.encode import MEDIA_TYPES

BUCKET = "s3"


class File(NamedTuple):
    """The name of a file in its folder, and its size."""

    name: str
    bytes: int


class Folder(NamedTuple):
    """A folder with its files, sorted by name; with the reason, if it cannot be read."""

    path: str
    files: list[File]
    problem: PhotographError | None = None


class Storage(Protocol):
    """A folder or the prefix of a bucket.

    Attributes:
        address: as an absolute path or a URI; another process opens the same by it.
    """

    address: str

    def folders(self) -> Iterator[Folder]:
        """Yields the folder and all below it, none if it is not there; hidden ones are left out.

        Raises:
            AnimeganError: if a bucket cannot be listed.
        """

    def is_file(self, path: str) -> bool:
        """Returns whether a file is there.

        Raises:
            PhotographError: if that cannot be found out.
        """

    def read(self, path: str, most: int) -> bytes:
        """Returns what is in a file.

        Raises:
            TooManyBytes: if it has more than `most` bytes.
            PhotographError: if it cannot be read.
        """

    def write(self, path: str, data: bytes) -> None:
        """Writes a file completely or not at all, in place of what is there.

        Raises:
            PhotographError: if it cannot be written.
            AnimeganError: if no other one can be written either.
        """


def open_storage(address: str) -> Storage:
    """Returns the storage of a path or a URI.

    Raises:
        AnimeganError: if it is neither a folder nor a bucket that can be reached.
    """
    if "://" not in address:
        return LocalStorage(Path(address))
    if urlsplit(address).scheme != BUCKET:
        raise AnimeganError(f"{address} is neither a folder nor {BUCKET}://BUCKET/PREFIX")
    return BucketStorage(address)


def place_below(storage: Storage, other: Storage) -> str | None:
    """Returns the path of another storage below this one: empty if it is the same, None if it lies elsewhere."""
    if isinstance(storage, LocalStorage) and isinstance(other, LocalStorage):
        one, two = (Path(os.path.realpath(each.address)) for each in (storage, other))
    elif isinstance(storage, BucketStorage) and isinstance(other, BucketStorage):
        if storage.server != other.server:
            return None
        one, two = Path(storage.prefix), Path(other.prefix)
    else:
        return None
    return None if not two.is_relative_to(one) else without_dot(two.relative_to(one).as_posix())


class LocalStorage:
    """A folder of this machine, or one that all nodes of a cluster share."""

    def __init__(self, root: Path) -> None:
        self.address = os.path.abspath(root)
        if os.path.exists(self.address) and not os.path.isdir(self.address):
            raise AnimeganError(f"{root} is a file; name a folder")

    def folders(self) -> Iterator[Folder]:
        """Yields the folder and all below it; see `Storage`. Links to folders are not followed."""
        closed: list[OSError] = []
        for place, folders, names in os.walk(self.address, onerror=closed.append):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            files = [File(name, size) for name in sorted(names) if (size := file_bytes(place, name)) is not None]
            yield Folder(self._relative(place), files)
        for error in closed:
            if (place := str(error.filename)) != self.address or os.path.exists(place):
                yield Folder(self._relative(place), [], PhotographError("file-error", f"{error.strerror}."))

    def is_file(self, path: str) -> bool:
        """Returns whether a file is there."""
        return os.path.isfile(self._full(path))

    def read(self, path: str, most: int) -> bytes:
        """Returns what is in a file; see `Storage`."""
        with photograph_errors(self._full(path)):
            return read(self._full(path), most)

    def write(self, path: str, data: bytes) -> None:
        """Writes a file; see `Storage`."""
        with photograph_errors(self._full(path)):
            replace_file(self._full(path), data)

    def _full(self, path: str) -> Path:
        return Path(self.address, path)

    def _relative(self, place: str) -> str:
        return without_dot(os.path.relpath(place, self.address))


class BucketStorage:
    """The prefix of a bucket, through pyarrow. Objects are written in one piece or not at all.

    Keys, region and endpoint come from the usual environment variables and files of AWS, or from the URI.

    Attributes:
        prefix: with the bucket's name before it.
        server: what tells buckets of one name on two servers apart.
    """

    def __init__(self, address: str) -> None:
        import pyarrow
        from pyarrow.fs import FileSystem

        self.address = address
        self.server = urlsplit(address).query
        try:
            self._files, prefix = FileSystem.from_uri(as_uri(address))
        except (pyarrow.ArrowException, OSError) as error:
            raise AnimeganError(f"{address} cannot be opened: {error}") from None
        self.prefix = prefix.rstrip("/")

    def folders(self) -> Iterator[Folder]:
        """Yields all folders that hold objects; see `Storage`."""
        from pyarrow.fs import FileSelector

        with bucket_errors(AnimeganError):
            found = self._files.get_file_info(FileSelector(self.prefix, allow_not_found=True, recursive=True))
            if not found:
                self._check_bucket()
        paths = [(PurePosixPath(each.path).relative_to(self.prefix), each.size) for each in found if each.is_file]
        visible = sorted((str(path.parent), path.name, size) for path, size in paths if not is_hidden(path.parent))
        for parent, files in groupby(visible, lambda file: file[0]):
            yield Folder(without_dot(parent), [File(name, size) for _, name, size in files])

    def _check_bucket(self) -> None:
        from pyarrow.fs import FileType

        bucket = self.prefix.partition("/")[0]
        if self._files.get_file_info(bucket).type == FileType.NotFound:
            raise AnimeganError(f"there is no bucket {bucket}")

    def is_file(self, path: str) -> bool:
        """Returns whether an object is there; see `Storage`."""
        with bucket_errors(unreachable):
            return bool(self._files.get_file_info(self._full(path)).is_file)

    def read(self, path: str, most: int) -> bytes:
        """Returns what is in an object; see `Storage`."""
        with bucket_errors(unreachable), self._files.open_input_file(self._full(path)) as file:
            if file.size() > most:
                raise too_many(most)
            data: bytes = file.read()
        return data

    def write(self, path: str, data: bytes) -> None:
        """Writes an object; see `Storage`."""
        about = {"Content-Type": media_type(path)}
        with bucket_errors(unreachable), self._files.open_output_stream(self._full(path), metadata=about) as file:
            file.write(data)

    def _full(self, path: str) -> str:
        return f"{self.prefix}/{path}"


def as_uri(address: str) -> str:
    """Returns the URI of a bucket's address, whose path may hold any characters, but `%`, `?` and `#` only escaped.

    Small objects are written by one request, where pyarrow would by default make three.
    """
    parts = urlsplit(address)
    query = "&".join(filter(None, [parts.query, "allow_delayed_open=true"]))
    return parts._replace(path=quote(parts.path, safe="/%"), query=query).geturl()


def media_type(path: str) -> str:
    """Returns the media type that a bucket tells of a file."""
    format = FORMATS.get(PurePosixPath(path).suffix.lower())
    return MEDIA_TYPES[format] if format is not None else "application/jsonl"


def file_bytes(place: str, name: str) -> int | None:
    """Returns the size of a file; None if it is something else, or has gone."""
    path = os.path.join(place, name)
    try:
        return os.path.getsize(path) if os.path.isfile(path) else None
    except OSError:
        return None


@contextmanager
def photograph_errors(path: Path) -> Iterator[None]:
    """Turns an error of the system into that of one photograph."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path) from None


@contextmanager
def bucket_errors(kind: Any) -> Iterator[None]:
    """Turns an error of pyarrow into another one, which is made of its text."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        text = str(error).partition(" (Request ID")[0]
        raise kind(f"{text.rstrip('.')}.") from None


def unreachable(detail: str) -> PhotographError:
    """Returns the error of an object that cannot be read or written."""
    return PhotographError("file-error", detail)


def too_many(most: int) -> TooManyBytes:
    """Returns the refusal of a file with more bytes than are read."""
    return TooManyBytes(f"The file has more than the {most} bytes that are read here.", most, unit="bytes")


def is_hidden(folder: PurePosixPath) -> bool:
    """Returns whether a folder or one above it is hidden."""
    return any(part.startswith(".") for part in folder.parts)


def without_dot(path: str) -> str:
    """Returns a relative path, empty in place of `.`."""
    return "" if path == "." else path
