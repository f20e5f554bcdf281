"""Paints photographs, some at a time, and says of each what came of it."""

import asyncio
import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from serve_app.cli.paint.photographs import Photograph, PhotographError
from serve_app.errors import AnimeganError, RequestError, TooManyBytes
from serve_app.frames import EncodedImage, ImageFormat, Receipt
from serve_app.images.budget import ByteBudget

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no other painting can be written either

Status = Literal["painted", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What came of one photograph.

    Attributes:
        photograph: as it was named.
        status: `skipped` where its painting was there already.
        receipt: of a painting.
        error: why it failed.
    """

    photograph: Photograph
    status: Status
    receipt: Receipt | None = None
    error: RequestError | PhotographError | None = None


class Backend(AbstractAsyncContextManager[Any], Protocol):
    """Paints photographs, many at a time, inside its context.

    Attributes:
        at_once: photographs that it makes use of at a time.
        max_bytes: of one file.
    """

    at_once: int
    max_bytes: int

    def held_bytes(self, file_bytes: int) -> int:
        """Returns an upper bound on the memory of a photograph from when it is read until its painting is written."""

    async def paint(self, data: bytes, format: ImageFormat) -> EncodedImage:
        """Paints the bytes of a photograph.

        Raises:
            RequestError, PhotographError: if this one cannot be painted.
            AnimeganError: if no other one can be painted either.
        """


Report = Callable[[Outcome], None]


def settled(photograph: Photograph) -> Outcome | None:
    """Returns the outcome of a photograph that need not be looked at; None if it is to be painted."""
    if photograph.problem is not None:
        return Outcome(photograph, "failed", error=photograph.problem)
    return Outcome(photograph, "skipped") if photograph.is_done else None


class Workers:
    """Reads, paints and writes photographs; those at work hold a bounded number of bytes.

    Args:
        backend: that paints.
        memory_bytes: of all photographs at work, without what decoding and painting take themselves.
        overwrite: whether files are replaced.
    """

    def __init__(self, backend: Backend, memory_bytes: int, overwrite: bool) -> None:
        self._backend = backend
        self._budget = ByteBudget(memory_bytes)
        self._overwrite = overwrite
        self._readers = ThreadPoolExecutor(4, "read")
        self._writers = ThreadPoolExecutor(4, "write")

    async def paint_all(self, photographs: Iterable[Photograph], report: Report) -> None:
        """Paints photographs and reports each, in the order in which they are finished.

        Raises:
            Exception: what `report` raises, and what the backend raises if it can paint no other photograph.
        """
        waiting = iter(photographs)

        async def work() -> None:
            for photograph in waiting:
                report(await self.outcome(photograph))

        workers = [asyncio.create_task(work()) for _ in range(self._backend.at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._readers.shutdown(wait=False, cancel_futures=True)  # one may wait for a pipe for ever
            self._writers.shutdown()

    async def outcome(self, photograph: Photograph) -> Outcome:
        """Paints one photograph; what is wrong with it is its outcome."""
        try:
            return await self._painted(photograph)
        except (RequestError, PhotographError) as error:
            return Outcome(photograph, "failed", error=error)
        except OSError as error:
            return Outcome(photograph, "failed", error=file_error(error, photograph.source))
        except RuntimeError:  # of painting, which has told the log of it: the others must not suffer
            return Outcome(photograph, "failed", error=PhotographError("internal-error", "Painting it failed."))

    async def _painted(self, photograph: Photograph) -> Outcome:
        loop = asyncio.get_running_loop()
        most = self._backend.max_bytes
        check_writable(photograph.target)
        async with self._budget.reserve(self._backend.held_bytes(expected_bytes(photograph.source, most))):
            data = await loop.run_in_executor(self._readers, read, photograph.source, most)
            painting = await self._backend.paint(data, photograph.format)
            write = write_new if not self._overwrite else replace_file
            is_written = await loop.run_in_executor(self._writers, write, photograph.target, painting.data)
        if not is_written:
            return Outcome(photograph, "skipped")
        return Outcome(photograph, "painted", painting.receipt)


def expected_bytes(source: Path | None, most: int) -> int:
    """Returns how many bytes will be read of a photograph, at most."""
    status = os.stat(source) if source is not None else os.fstat(sys.stdin.fileno())
    return min(status.st_size, most) if stat.S_ISREG(status.st_mode) else most


def read(source: Path | None, most: int) -> bytes:
    """Reads a file, or the standard input.

    Raises:
        TooManyBytes: if it has more than `most`.
        OSError: if it cannot be read.
    """
    if source is None:
        data = sys.stdin.buffer.read(most + 1)
    else:
        with source.open("rb") as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise TooManyBytes(f"The file has more than the {most} bytes that are read here.", most, unit="bytes")
    return data


def write_new(target: Path | None, data: bytes) -> bool:
    """Writes a painting, as `replace_file` does; returns False if another program has written the file meanwhile."""
    return False if target is not None and target.exists() else replace_file(target, data)


def replace_file(target: Path | None, data: bytes) -> bool:
    """Writes a painting completely or not at all, to a file or to the standard output; returns True.

    Raises:
        AnimeganError: if no other painting can be written either.
        OSError: if this one cannot.
    """
    if target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return True
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # after a power failure too, a file that is there is complete
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in FULL:
            raise AnimeganError(f"{target} cannot be written: {error.strerror}") from None
        raise
    return True


def check_writable(target: Path | None) -> None:
    """Checks, before a photograph is painted, that there is a place for its painting.

    Raises:
        OSError: if there is none.
    """
    if target is not None:
        place = next(folder for folder in target.absolute().parents if folder.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def file_error(error: OSError, source: Path | None) -> PhotographError:
    """Returns the error of a photograph that cannot be read, or whose painting cannot be written."""
    reason = error.strerror or type(error).__name__
    where = f" ({error.filename})" if error.filename not in (None, str(source)) else ""
    return PhotographError("file-error", f"{reason}{where}.")
