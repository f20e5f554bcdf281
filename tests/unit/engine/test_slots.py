import threading
from typing import Any

import pytest

from serve_app.engine.memory import MIN_ROWS, planned_bytes
from serve_app.engine.slots import CPU_STACK_PIXELS, Lane, Lanes

PLENTY = 10**12


def lanes_of(threads: int, memory_bytes: int = PLENTY, stack_pixels: int | None = CPU_STACK_PIXELS) -> Lanes:
    return Lanes(threads, "fp32", "tcmalloc", memory_bytes, stack_pixels)


def enter(lanes: Lanes, side: int, waiting: int, stack: int = 1) -> Lane:
    lane = lanes.enter(side, side, stack, waiting)
    assert lane is not None
    return lane


@pytest.mark.parametrize(
    ("threads", "waiting", "dealt"),
    [(5, 1, [5]), (5, 2, [2, 3]), (5, 3, [1, 2, 2]), (5, 9, [1] * 5), (1, 3, [1]), (2, 4, [1, 1])],
)
def test_free_threads_are_dealt_out_among_those_that_wait(threads: int, waiting: int, dealt: list[int]) -> None:
    lanes = lanes_of(threads)
    taken = []
    while waiting and lanes.fitting(512, 512, waiting, waiting):
        taken.append(enter(lanes, 512, waiting))
        waiting -= 1
    assert [lane.threads for lane in taken] == dealt
    assert [lane.index for lane in taken] == list(range(len(dealt)))


def test_who_comes_when_all_threads_are_taken_waits_for_the_first_that_leaves() -> None:
    lanes = lanes_of(2)
    first, second = enter(lanes, 512, 2), enter(lanes, 256, 1)
    assert lanes.fitting(64, 64, 1, 1) == 0
    with pytest.raises(RuntimeError, match="no lane is free"):
        lanes.enter(64, 64, 1, 1)
    lanes.leave(first)
    third = enter(lanes, 1024, 1)
    assert (third.index, third.threads) == (0, 1)
    lanes.leave(second)
    lanes.leave(third)
    assert enter(lanes, 512, 1).threads == 2


def test_no_more_are_painted_at_once_than_there_is_room_for() -> None:
    assert lanes_of(8).fitting(512, 512, 5, 0) == 0
    assert lanes_of(8).fitting(512, 512, 5, -1) == 0
    assert lanes_of(1).fitting(64, 64, 9, 3) == 3


@pytest.mark.parametrize(
    ("side", "waiting", "stack"),
    [(512, 9, 1), (256, 9, 1), (128, 9, 3), (128, 99, 4), (64, 9, 3), (64, 1, 16)],
)
def test_small_pictures_share_a_tensor_when_there_are_more_than_lanes(side: int, waiting: int, stack: int) -> None:
    assert lanes_of(3).fitting(side, side, waiting, 99) == stack


def test_gpu_has_one_lane_and_stacks_all_that_there_is_room_for() -> None:
    lanes = lanes_of(1, stack_pixels=None)
    assert lanes.fitting(1024, 1024, 2, 8) == 8
    enter(lanes, 1024, 8, stack=8)
    assert lanes.fitting(1024, 1024, 2, 8) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_are_painted_side_by_side_as_the_budget_holds(count: int) -> None:
    lanes = lanes_of(5, planned_bytes(512, 512, 1, "fp32", MIN_ROWS, "tcmalloc", count))
    taken = []
    while lanes.fitting(512, 512, 5 - len(taken), 5):
        taken.append(enter(lanes, 512, 5 - len(taken)))
    assert len(taken) == count
    assert sum(lane.threads for lane in taken) == 5  # who has no neighbour has his threads too


def test_pictures_of_several_sizes_stay_within_the_budget_together() -> None:
    lanes = lanes_of(3, planned_bytes(512, 512, 1, "fp32", allocator="tcmalloc", lanes=2))
    small = enter(lanes, 256, 3)
    assert lanes.fitting(768, 768, 2, 3) == 0
    assert lanes.fitting(512, 512, 2, 3) == 1
    enter(lanes, 512, 2)
    assert lanes.fitting(512, 512, 1, 3) == 0
    lanes.leave(small)
    assert lanes.fitting(512, 512, 1, 3) == 1


def test_strips_are_lowered_for_who_is_alone_and_not_for_who_has_neighbours() -> None:
    scarce = planned_bytes(1024, 1024, 1, "fp32", 4, "tcmalloc")
    lanes = lanes_of(2, scarce)
    alone = enter(lanes, 1024, 2)
    assert (alone.rows, alone.threads) == (4, 2)
    lanes.leave(alone)
    small = enter(lanes, 64, 2)
    assert lanes.fitting(1024, 1024, 1, 2) == 0
    lanes.leave(small)
    assert lanes.fitting(1024, 1024, 1, 2) == 1


def test_picture_that_a_free_device_cannot_hold_gets_no_lane() -> None:
    lanes = lanes_of(2, 10_000_000)
    assert lanes.fitting(1024, 1024, 1, 1) == 0
    assert lanes.enter(1024, 1024, 1, 1) is None


def in_thread(work: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def test_who_wants_to_be_alone_waits_for_the_others_and_keeps_new_ones_out() -> None:
    lanes = lanes_of(3)
    one, other, third = (enter(lanes, 64, waiting) for waiting in (3, 2, 1))
    inside, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    def be_alone(lane: Lane, name: str) -> None:
        with lanes.alone(lane):
            seen.append(name)
            inside.set()
            assert go_on.wait(10)
        lanes.leave(lane)

    threads = [in_thread(be_alone, one, "one"), in_thread(be_alone, other, "other")]
    assert not inside.wait(0.1)
    assert lanes.fitting(64, 64, 1, 1) == 0
    lanes.leave(third)
    assert inside.wait(10)
    assert len(seen) == 1  # two that want to be alone are alone one after another
    assert lanes.fitting(64, 64, 1, 1) == 0
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(seen) == ["one", "other"]
    assert lanes.fitting(64, 64, 1, 1) == 1


def test_who_enters_while_another_begins_to_wait_for_the_others_has_a_lane_of_his_own() -> None:
    """It had been told that it may before the other asked; in one lane they would wait for each other for ever."""
    lanes = lanes_of(3)
    first, second = enter(lanes, 64, 3), enter(lanes, 64, 2)
    inside = threading.Event()

    def be_alone() -> None:
        with lanes.alone(first):
            inside.set()

    thread = in_thread(be_alone)
    while lanes.fitting(64, 64, 1, 1):
        thread.join(0.01)
    late = enter(lanes, 64, 1)
    assert late.index == 2
    lanes.leave(second)
    assert not inside.wait(0.1)
    lanes.leave(late)
    assert inside.wait(10)
