"""Decides which batches a device paints at once, and on how many threads, within one budget of bytes. No torch.

On a CPU, images of any sizes are painted side by side. Threads that share an image wait for each other at the end of
every operation, a few thousand times per image. If the machine does anything else, one delayed thread delays all of
them. So the free threads are divided among the images that wait, and an image gets all threads only when it is alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.engine.memory import MIN_ROWS, MemoryModel, strip_rows
from serve_app.errors import TooLargeToPaint
from serve_app.frames import Size

CPU_STACK_PIXELS = 256 * 256  # on a CPU, a larger tensor is no faster than its images one by one


@dataclass(frozen=True, eq=False)
class Slot:
    """A reservation on the device for one batch: images of one size in one tensor.

    Attributes:
        index: the lowest index that no other active slot had.
        threads: to paint with.
        rows: of a strip at full size.
        count: images that it is reserved for, 1 or more.
        peak_bytes: planned for painting them.
    """

    index: int
    threads: int
    rows: int
    count: int
    peak_bytes: int


class WorkerSlots:
    """Divides the threads and the memory of one device among batches. Thread-safe.

    Args:
        threads: to divide; 1 for a GPU, which so has one slot.
        model: that predicts how much memory a batch takes, where `reserve` is given none.
        memory_bytes: for all slots together.
        stack_pixels: of a tensor at most, unless it holds a single image; None for no limit, as on a GPU, which is
            faster with large tensors.
    """

    def __init__(self, threads: int, model: MemoryModel, memory_bytes: int, stack_pixels: int | None = None) -> None:
        self.threads = threads
        self.model = model
        self.memory_bytes = memory_bytes
        self._stack_pixels = stack_pixels
        self._active: set[Slot] = set()
        self._changed = threading.Condition()
        self._claimants: list[Slot] = []  # active slots that are exclusive or wait to be, in order

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are planned for the active slots together."""
        with self._changed:
            return self._active_bytes()

    def reserve(
        self, size: Size, same_size: int, waiting: int, room: int, model: MemoryModel | None = None
    ) -> Slot | None:
        """Reserves a slot for as many images of one size as should now be painted in one tensor.

        Args:
            size: of the images.
            same_size: images of this size that wait.
            waiting: all images that wait, these included.
            room: images that the device may still take, however many its memory could hold.
            model: that predicts how much memory these images take; default, the device's.

        Returns:
            The slot, to be released when its images are painted; None where they have to wait until a slot is released.

        Raises:
            TooLargeToPaint: if the budget does not hold one image of this size even while nothing else is painted.
        """
        if min(same_size, waiting, room) < 1:
            return None
        with self._changed:
            if self._claimants:
                return None
            model = model or self.model
            count = min(self._capacity(model, size, waiting, room), same_size)
            slot = self._acquire(model, size, count, min(waiting, room)) if count > 0 else None
            if slot is None and not self._active:
                raise self._refusal(model, size)
            return slot

    def release(self, slot: Slot) -> None:
        """Frees the threads and the memory of a slot."""
        with self._changed:
            self._active.remove(slot)
            self._changed.notify_all()

    @contextmanager
    def exclusive(self, slot: Slot) -> Iterator[None]:
        """Gives an active slot the device to itself inside the block: waits for the others, and admits no new ones.

        If several slots ask for it, they get it one after another, in the order in which they asked.
        """
        with self._changed:
            self._claimants.append(slot)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._claimants[0] is slot and self._active == set(self._claimants))
        try:
            yield
        finally:
            with self._changed:
                self._claimants.remove(slot)
                self._changed.notify_all()

    def _capacity(self, model: MemoryModel, size: Size, waiting: int, room: int) -> int:
        """Returns how many images of a size may be painted in the next slot; 0 where none fits now."""
        for slots in self._possible_slots(min(waiting, room)):
            for count in range(self._largest_stack(size, waiting, room, slots), 0, -1):
                if self._rows(model, size, count, slots) is not None:
                    return count
        return 0

    def _acquire(self, model: MemoryModel, size: Size, count: int, waiting: int) -> Slot | None:
        """Activates a slot for `count` images, on an equal part of the free threads; None where it does not fit."""
        for slots in self._possible_slots(-(-waiting // count)):
            rows = self._rows(model, size, count, slots)
            if rows is not None:
                index = min(set(range(self.threads)) - {slot.index for slot in self._active})
                is_shared = slots > 1 or bool(self._active)
                peak_bytes = model.slot_bytes(size, count, rows, is_shared)
                slot = Slot(index, self._free_threads() // slots, rows, count, peak_bytes)
                self._active.add(slot)
                return slot
        return None

    def _active_bytes(self) -> int:
        return sum(slot.peak_bytes for slot in self._active)

    def _free_threads(self) -> int:
        return self.threads - sum(slot.threads for slot in self._active)

    def _possible_slots(self, batches: int) -> range:
        """Returns the numbers of further slots that the free threads allow for so many batches, largest first."""
        return range(min(batches, self._free_threads()), 0, -1)

    def _largest_stack(self, size: Size, waiting: int, room: int, slots: int) -> int:
        """Returns how many images to put in one tensor at most, if `slots` more slots start."""
        most = room
        if self._stack_pixels is not None:
            most = min(most, max(self._stack_pixels // size.pixels, 1))
        return most if slots == 1 else min(most, -(-waiting // slots))

    def _rows(self, model: MemoryModel, size: Size, count: int, slots: int) -> int | None:
        """Returns the strip height if `slots` more slots start; None if that is over budget.

        Lower strips than usual cost more time than painting side by side saves. So they are used only while a single
        slot is active.
        """
        reserved_bytes = self._active_bytes()
        rows = model.tallest_rows(size, count, self.memory_bytes, slots=slots, reserved_bytes=reserved_bytes)
        is_alone = slots == 1 and not self._active
        if rows is not None and (is_alone or rows >= min(MIN_ROWS, strip_rows(size))):
            return rows
        return None

    def _refusal(self, model: MemoryModel, size: Size) -> TooLargeToPaint:
        needed = model.planned_bytes(size)
        side = model.largest_side(size, self.memory_bytes)
        return TooLargeToPaint(
            f"Painting {size} takes {needed / 1e6:,.0f} MB, and {self.memory_bytes / 1e6:,.0f} MB are set "
            f"aside for it here. Ask for max_side={side}, the largest that fits.",
            side,
            size.longer_side,
            "pixels",
        )
