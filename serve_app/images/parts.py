"""Pieces of one or more buffers, read as if they were one file: nothing is copied."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Parts(io.RawIOBase):
    """A read-only file whose bytes are those of its parts, one after another."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        super().__init__()
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves as any file does, and returns the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1] if self._ends else 0}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Returns the position."""
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # its type has no name before Python 3.12
        """Fills the buffer as far as the current part goes; 0 is the end."""
        index = bisect_right(self._ends, self._at)
        if index == len(self._parts):
            return 0
        part = self._parts[index]
        begin = self._at - (self._ends[index] - len(part))
        piece = part[begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def joined(*parts: memoryview | bytes) -> io.BufferedReader:
    """Returns a file that reads the parts one after another."""
    return io.BufferedReader(Parts([memoryview(part) for part in parts]))
