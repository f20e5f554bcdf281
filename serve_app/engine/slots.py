"""What a device paints at once, and on how many threads, under one budget of bytes. No torch.

On a CPU pictures are painted side by side, of whatever sizes. Threads that share a picture wait for each other at the
end of every operation, a few thousand times a picture, and on a machine that does anything else whoever is held up
holds up the others. So the threads are dealt out among those that wait, and only one that is alone gets them all.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.engine.memory import MIN_ROWS, fitting_rows, lane_bytes, strip_rows
from serve_app.frames import Precision

CPU_STACK_PIXELS = 256 * 256  # on a CPU larger tensors are no faster than their pictures one by one


@dataclass(frozen=True, eq=False)
class Lane:
    """A place on the device, for frames of one size in one tensor.

    Attributes:
        index: no two lanes that are taken at a time have the same; the lowest that was free.
        threads: to paint with.
        rows: of a strip.
        peak_bytes: that painting takes here, as it is planned.
    """

    index: int
    threads: int
    rows: int
    peak_bytes: int


class Lanes:
    """Who paints on one device. Thread-safe.

    Args:
        threads: to deal out; a GPU has one, and one lane.
        precision: of the painting.
        allocator: that the process runs on.
        memory_bytes: that all together may take.
        stack_pixels: of a tensor, above which frames are no longer stacked; none on a GPU, which likes them tall.
    """

    def __init__(
        self, threads: int, precision: Precision, allocator: str, memory_bytes: int, stack_pixels: int | None = None
    ) -> None:
        self.threads = threads
        self.memory_bytes = memory_bytes
        self._precision: Precision = precision
        self._allocator = allocator
        self._stack_pixels = stack_pixels
        self._taken: set[Lane] = set()
        self._changed = threading.Condition()
        self._claimants: list[Lane] = []  # of the taken, those that want to be alone, or are

    def fitting(self, height: int, width: int, waiting: int, room: int) -> int:
        """How many frames of a size may be painted in the next lane, as things are; 0 where they have to wait.

        Args:
            waiting: frames that want to be painted, of this size and others.
            room: for frames, whatever the device could hold.
        """
        with self._changed:
            if self._claimants:
                return 0
            for count in self._counts(min(waiting, room)):
                for stack in range(self._most_stacked(height, width, waiting, room, count), 0, -1):
                    if self._rows(height, width, stack, count) is not None:
                        return stack
            return 0

    def enter(self, height: int, width: int, stack: int, waiting: int) -> Lane | None:
        """Takes a lane for as many frames as `fitting` said, or fewer; None where even a free device cannot hold them.

        Args:
            waiting: frames that want to be painted, with those that enter.

        Raises:
            RuntimeError: if `fitting` has not said so, and others paint.
        """
        with self._changed:
            for count in self._counts(-(-waiting // stack)):
                rows = self._rows(height, width, stack, count)
                if rows is not None:
                    index = min(set(range(self.threads)) - {lane.index for lane in self._taken})
                    is_beside = count > 1 or bool(self._taken)
                    needed = lane_bytes(
                        height, width, stack, self._precision, rows, self._allocator, is_beside=is_beside
                    )
                    lane = Lane(index, self._free_threads() // count, rows, needed)
                    self._taken.add(lane)
                    return lane
            if self._taken:
                raise RuntimeError("no lane is free for these frames now")
            return None

    def leave(self, lane: Lane) -> None:
        with self._changed:
            self._taken.remove(lane)
            self._changed.notify_all()

    @contextmanager
    def alone(self, lane: Lane) -> Iterator[None]:
        """Waits until nobody else paints, and keeps others from beginning; those that want it too go one by one."""
        with self._changed:
            self._claimants.append(lane)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._claimants[0] is lane and self._taken == set(self._claimants))
        try:
            yield
        finally:
            with self._changed:
                self._claimants.remove(lane)
                self._changed.notify_all()

    def _free_threads(self) -> int:
        return self.threads - sum(lane.threads for lane in self._taken)

    def _counts(self, groups: int) -> range:
        """Among how many the free threads might be dealt out, the most first."""
        return range(min(groups, self._free_threads()), 0, -1)

    def _most_stacked(self, height: int, width: int, waiting: int, room: int, count: int) -> int:
        most = room
        if self._stack_pixels is not None:
            most = min(most, max(self._stack_pixels // (height * width), 1))
        return most if count == 1 else min(most, -(-waiting // count))

    def _rows(self, height: int, width: int, stack: int, count: int) -> int | None:
        """Of the strips in each of `count` lanes more; None where the budget does not hold them.

        Lower strips than usual cost more time than a lane saves: they are only for who is alone.
        """
        taken_bytes = sum(lane.peak_bytes for lane in self._taken)
        rows = fitting_rows(
            height, width, stack, self._precision, self.memory_bytes, self._allocator, count, taken_bytes
        )
        is_alone = count == 1 and not self._taken
        if rows is not None and (is_alone or rows >= min(MIN_ROWS, strip_rows(height, width, 1))):
            return rows
        return None
