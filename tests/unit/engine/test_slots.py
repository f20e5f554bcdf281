import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from serve_app.engine.memory import MIN_ROWS, MemoryModel
from serve_app.engine.slots import CPU_STACK_PIXELS, Slot, WorkerSlots
from serve_app.errors import TooLargeToPaint
from serve_app.frames import Size

PLENTY = 10**12
MODEL = MemoryModel("fp32")
SMALL = Size(64, 64)


def slots_of(threads: int, memory_bytes: int = PLENTY, stack_pixels: int | None = CPU_STACK_PIXELS) -> WorkerSlots:
    return WorkerSlots(threads, MODEL, memory_bytes, stack_pixels)


def reserve(slots: WorkerSlots, side: int, waiting: int, room: int | None = None, same_size: int = 1) -> Slot | None:
    """Reserves a slot for images with equal sides; `room` is by default for all that wait."""
    return slots.reserve(Size(side, side), same_size, waiting, waiting if room is None else room)


def reserved(slots: WorkerSlots, side: int, waiting: int, room: int | None = None, same_size: int = 1) -> Slot:
    slot = reserve(slots, side, waiting, room, same_size)
    assert slot is not None
    return slot


@pytest.mark.parametrize(
    ("threads", "waiting", "shares"),
    [(5, 1, [5]), (5, 2, [2, 3]), (5, 3, [1, 2, 2]), (5, 9, [1] * 5), (1, 3, [1]), (2, 4, [1, 1])],
)
def test_free_threads_are_divided_among_the_images_that_wait(threads: int, waiting: int, shares: list[int]) -> None:
    slots = slots_of(threads)
    active: list[Slot] = []
    while waiting and (slot := reserve(slots, 512, waiting)):
        active.append(slot)
        waiting -= 1
    assert [slot.threads for slot in active] == shares
    assert [slot.index for slot in active] == list(range(len(shares)))


def test_image_that_finds_all_threads_taken_waits_for_the_first_slot_that_is_released() -> None:
    slots = slots_of(2)
    first, second = reserved(slots, 512, 2), reserved(slots, 256, 1)
    assert reserve(slots, 64, 1) is None
    slots.release(first)
    third = reserved(slots, 1024, 1)
    assert (third.index, third.threads) == (0, 1)
    slots.release(second)
    slots.release(third)
    assert reserved(slots, 512, 1).threads == 2


def test_no_more_images_are_painted_at_once_than_there_is_room_for() -> None:
    assert reserve(slots_of(8), 512, 5, room=0) is None
    assert reserve(slots_of(8), 512, 5, room=-1) is None
    assert reserved(slots_of(1), 64, 9, room=3, same_size=9).count == 3


@pytest.mark.parametrize(
    ("side", "waiting", "count"),
    [(512, 9, 1), (256, 9, 1), (128, 9, 3), (128, 99, 4), (64, 9, 3), (64, 99, 16)],
)
def test_small_images_share_a_tensor_when_there_are_more_than_slots(side: int, waiting: int, count: int) -> None:
    assert reserved(slots_of(3), side, waiting, room=99, same_size=waiting).count == count


def test_slot_is_for_no_more_images_than_wait_of_its_size_and_the_threads_are_divided_among_all() -> None:
    slots = slots_of(3)
    first = reserved(slots, 64, 9, same_size=2)
    assert (first.count, first.threads) == (2, 1)
    second = reserved(slots, 128, 3, same_size=3)
    assert (second.count, second.threads) == (2, 1)
    third = reserved(slots, 128, 1)
    assert (third.count, third.threads) == (1, 1)


def test_gpu_has_one_slot_for_all_images_of_a_size_that_there_is_room_for() -> None:
    slots = slots_of(1, stack_pixels=None)
    slot = reserved(slots, 1024, 20, room=8, same_size=12)
    assert (slot.count, slot.threads) == (8, 1)
    assert reserve(slots, 1024, 2, room=8) is None
    slots.release(slot)
    assert reserved(slots, 1024, 20, room=8, same_size=3).count == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_images_are_painted_side_by_side_as_the_budget_holds(count: int) -> None:
    slots = slots_of(5, MODEL.planned_bytes(Size(512, 512), rows=MIN_ROWS, slots=count))
    active: list[Slot] = []
    while slot := reserve(slots, 512, 5 - len(active), room=5):
        active.append(slot)
    assert len(active) == count
    assert sum(slot.threads for slot in active) == 5  # no thread is left unused


def test_images_of_several_sizes_stay_within_the_budget_together() -> None:
    slots = slots_of(3, MODEL.planned_bytes(Size(512, 512), slots=2))
    small = reserved(slots, 256, 3)
    assert reserve(slots, 768, 2, room=3) is None
    reserved(slots, 512, 2, room=3)
    assert reserve(slots, 512, 1, room=3) is None
    slots.release(small)
    assert reserve(slots, 512, 1, room=3) is not None


def test_strips_are_lowered_for_a_batch_that_is_alone_and_not_beside_others() -> None:
    slots = slots_of(2, MODEL.planned_bytes(Size(1024, 1024), rows=4))
    alone = reserved(slots, 1024, 2)
    assert (alone.rows, alone.threads) == (4, 2)
    slots.release(alone)
    small = reserved(slots, 64, 2)
    assert reserve(slots, 1024, 1, room=2) is None
    slots.release(small)
    assert reserved(slots, 1024, 1, room=2).rows == 4


def test_image_that_even_a_free_device_cannot_hold_is_refused_with_the_largest_side_that_fits() -> None:
    slots = slots_of(2, 100_000_000)
    with pytest.raises(TooLargeToPaint) as caught:
        slots.reserve(Size(1536, 2048), same_size=1, waiting=3, room=3)
    side = MODEL.largest_side(Size(1536, 2048), 100_000_000)
    assert (caught.value.limit, caught.value.actual, caught.value.unit) == (side, 2048, "pixels")
    needed = MODEL.planned_bytes(Size(1536, 2048)) / 1e6
    assert str(caught.value) == (
        f"Painting 2048 x 1536 takes {needed:,.0f} MB, and 100 MB are set aside for it here. "
        f"Ask for max_side={side}, the largest that fits."
    )
    assert reserved(slots, 64, 1).threads == 2  # the refusal has reserved nothing


def test_image_that_is_too_large_waits_while_others_are_painted_and_is_refused_then() -> None:
    slots = slots_of(2, 100_000_000)
    small = reserved(slots, 64, 2)
    assert reserve(slots, 2048, 1) is None
    slots.release(small)
    with pytest.raises(TooLargeToPaint):
        reserve(slots, 2048, 1)


def test_slots_reserved_at_the_same_moment_share_no_thread_and_no_index() -> None:
    slots = slots_of(4)
    everyone = threading.Barrier(16)

    def work(_: int) -> Slot | None:
        everyone.wait(10)
        return slots.reserve(SMALL, same_size=1, waiting=16, room=16)

    with ThreadPoolExecutor(16) as executor:
        active = [slot for slot in executor.map(work, range(16)) if slot is not None]
    assert sorted(slot.index for slot in active) == [0, 1, 2, 3]
    assert [slot.threads for slot in active] == [1, 1, 1, 1]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_exclusive_slots_wait_for_the_others_keep_new_ones_out_and_take_turns() -> None:
    slots = slots_of(4)
    first, second, third = (reserved(slots, 64, waiting) for waiting in (4, 3, 2))  # one thread is left
    entered: SimpleQueue[str] = SimpleQueue()
    go_on = {"first": threading.Event(), "second": threading.Event()}

    def paint_alone(slot: Slot, name: str) -> None:
        with slots.exclusive(slot):
            entered.put(name)
            assert go_on[name].wait(10)
        slots.release(slot)

    threads = [
        threading.Thread(target=paint_alone, args=(slot, name), daemon=True)
        for slot, name in ((first, "first"), (second, "second"))
    ]
    threads[0].start()
    wait_until(lambda: len(slots._claimants) == 1)
    threads[1].start()
    wait_until(lambda: len(slots._claimants) == 2)
    assert entered.empty()
    assert reserve(slots, 64, 1) is None
    slots.release(third)
    assert entered.get(timeout=10) == "first"
    assert entered.empty()
    assert reserve(slots, 64, 1) is None
    go_on["first"].set()
    assert entered.get(timeout=10) == "second"
    assert reserve(slots, 64, 1) is None
    go_on["second"].set()
    for thread in threads:
        thread.join(10)
    assert reserved(slots, 64, 1).threads == 4
