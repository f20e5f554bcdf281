import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import ROOT

from serve_app.engine.checkpoints import load_generator
from serve_app.engine.memory import planned_bytes
from serve_app.engine.stylist import (
    Stylist,
    allocator_fraction,
    choose_device,
    choose_precision,
    compute_dtype,
    count_threads,
    free_memory,
)
from serve_app.errors import DeviceError, OutOfMemory, TooLargeToPaint
from serve_app.frames import Device, Frame, Precision
from serve_app.settings import Settings
from serve_app.styles.catalogue import InstalledStyle

MIB = 2**20
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MARK = 77  # the first value of a frame that a broken forward pass chokes on


@pytest.fixture
def stylist(seeded_style: InstalledStyle) -> Iterator[Stylist]:
    threads = torch.get_num_threads()
    yield Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=1))
    torch.set_num_threads(threads)


def frame_of(height: int, width: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def break_on_mark(stylist: Stylist, monkeypatch: pytest.MonkeyPatch, error: Exception, mark: int = MARK) -> list[int]:
    """Lets every forward pass that holds a marked frame raise; returns the batch sizes tried."""
    forward = stylist._forward
    tried: list[int] = []

    def broken(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        tried.append(len(frames))
        if any(frame[0, 0, 0] == mark for frame in frames):
            raise error
        return forward(style, frames, rows)

    monkeypatch.setattr(stylist, "_forward", broken)
    return tried


def marked_frame() -> Frame:
    frame = frame_of(16, 16)
    frame[0, 0, 0] = MARK
    return frame


def plain_frames(count: int) -> list[Frame]:
    frames = [frame_of(16, 16, seed) for seed in range(1, count + 1)]
    for frame in frames:
        frame[0, 0, 0] = MARK + 1
    return frames


def worst_difference(one: Frame, other: Frame) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize(
    ("device", "gpu_share", "has_cuda", "chosen"),
    [
        ("auto", 0, False, CPU),
        ("auto", 0, True, CPU),  # a GPU that Ray did not grant belongs to somebody else
        ("cpu", 0.25, False, CPU),
        ("cpu", 0.25, True, CPU),
        ("auto", 0.25, True, CUDA),
        ("cuda", 0.25, True, CUDA),
        ("cuda", 0, True, CUDA),
    ],
)
def test_device_is_what_was_granted_unless_the_cpu_is_meant(
    monkeypatch: pytest.MonkeyPatch, device: Device, gpu_share: float, has_cuda: bool, chosen: torch.device
) -> None:
    monkeypatch.setattr("torch.backends.cudnn.is_available", lambda: True)
    assert choose_device(device, gpu_share, has_cuda) == chosen


@pytest.mark.parametrize(
    ("device", "gpu_share", "asked"),
    [("auto", 0.25, "num_gpus is 0.25"), ("cuda", 1, "num_gpus is 1"), ("cuda", 0, "device is cuda")],
)
def test_gpu_that_is_not_there_is_refused_with_the_way_out(device: Device, gpu_share: float, asked: str) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(device, gpu_share, has_cuda=False)
    assert str(caught.value) == (
        f"{asked}, but torch sees no CUDA device on this machine. Set device: cpu in the application's args if "
        "painting on the CPU is meant; otherwise install a CUDA build of torch and the GPU's driver."
    )


def test_gpu_without_cudnn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cudnn.is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"^cuDNN is missing or switched off: "):
        choose_device("auto", 0.25, has_cuda=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_stylist_refuses_to_start_without_the_gpu_it_was_granted(seeded_style: InstalledStyle) -> None:
    with pytest.raises(DeviceError, match=r"^num_gpus is 0\.25, but torch sees no CUDA device"):
        Stylist({"seeded": seeded_style}, Settings(), gpu_share=0.25)


@pytest.mark.parametrize(
    ("precision", "device", "chosen"),
    [
        ("auto", CPU, "fp32"),
        ("auto", CUDA, "fp16"),
        ("fp32", CUDA, "fp32"),
        ("fp16", CUDA, "fp16"),
        ("bf16", CPU, "bf16"),
    ],
)
def test_precision_is_halved_on_cuda_unless_told_otherwise(
    precision: Precision, device: torch.device, chosen: Precision
) -> None:
    assert choose_precision(precision, device) == chosen


def test_convolutions_are_16_bits_only_where_the_hardware_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert compute_dtype("bf16", CPU) == torch.bfloat16
    assert compute_dtype("fp16", CPU) == torch.float32
    assert compute_dtype("fp16", CUDA) == torch.float16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert compute_dtype("bf16", CPU) == torch.float32


@pytest.mark.parametrize(
    ("threads", "cpu_share", "count"),
    [(3, 1, 3), ("share", 2, 2), ("share", 2.9, 2), ("share", 0.25, 1), ("share", 0, 1)],
)
def test_threads_are_a_number_or_the_replicas_share(threads: object, cpu_share: float, count: int) -> None:
    assert count_threads(Settings(threads=threads), cpu_share) == count  # type: ignore[arg-type]


def test_threads_of_the_host_are_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert count_threads(Settings(threads="host"), 1) == 3


def test_threads_of_the_host_are_all_cores_where_nothing_confines_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS and Windows have none
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert count_threads(Settings(threads="host"), 1) == 10


def test_stylist_takes_the_threads_it_was_told(seeded_style: InstalledStyle, stylist: Stylist) -> None:
    for threads in (2, 1):
        other = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=threads))
        assert [each for _, each in runs_of(other, plain_frames(1))] == [threads]


@pytest.mark.parametrize("total", [16 * 2**30, 141 * 2**30])
def test_four_quarters_and_their_contexts_fit_the_card(total: int) -> None:
    context = 700 * MIB
    tensors = allocator_fraction(0.25, total, context) * total
    assert 4 * (tensors + context) == pytest.approx(total)


def test_whole_card_less_one_context_is_the_most_that_tensors_take() -> None:
    assert allocator_fraction(2, 1000 * MIB, 100 * MIB) == pytest.approx(0.9)


def test_share_that_does_not_hold_a_context_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        allocator_fraction(0.1, 4096 * MIB, 700 * MIB)
    assert str(caught.value) == (
        f"num_gpus 0.1 of a card of {4096 * MIB} bytes is less than one CUDA context ({700 * MIB} bytes); "
        "raise num_gpus."
    )


@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 33), (31, 16)])
def test_painting_has_the_photographs_size_whatever_it_is(stylist: Stylist, height: int, width: int) -> None:
    (painted,) = stylist.paint("seeded", [frame_of(height, width)])
    assert isinstance(painted, np.ndarray)
    assert painted.shape == (height, width, 3)
    assert painted.dtype == np.uint8
    assert painted.std() > 1  # not a grey plate


def test_painting_is_the_generators_output_scaled_to_bytes(stylist: Stylist, seeded_style: InstalledStyle) -> None:
    photo = frame_of(24, 16)
    with torch.inference_mode():
        x = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = ((load_generator(seeded_style)(x)[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    (painted,) = stylist.paint("seeded", [photo])
    assert np.abs(painted - expected).max() < 0.5 + 0.01


def test_photograph_is_not_changed_and_may_be_read_only(stylist: Stylist) -> None:
    photo = frame_of(16, 16)
    copy = photo.copy()
    photo.setflags(write=False)  # as Ray hands it over
    stylist.paint("seeded", [photo])
    assert np.array_equal(photo, copy)


def test_picture_in_a_batch_is_painted_as_if_alone(stylist: Stylist) -> None:
    photos = [frame_of(24, 40, seed) for seed in range(3)]
    photos[1][:] //= 4  # a dark one among bright ones
    together = stylist.paint("seeded", photos)
    for photo, painted in zip(photos, together, strict=True):
        assert worst_difference(painted, stylist.paint("seeded", [photo])[0]) <= 1  # of 255


def runs_of(stylist: Stylist, frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """Paints; for each forward pass how many frames it took and on how many threads."""
    forward = stylist._forward
    runs: list[tuple[int, int]] = []

    def told(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        runs.append((len(frames), torch.get_num_threads()))
        return forward(style, frames, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stylist, "_forward", told)
        stylist.paint("seeded", frames)
    return runs


@pytest.fixture
def wide_stylist(seeded_style: InstalledStyle, stylist: Stylist) -> Stylist:
    """Of five threads; its neighbour puts torch's own number back."""
    return Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=5))


@pytest.mark.parametrize(
    ("side", "count", "runs"),
    [
        (256, 1, [(1, 5)]),
        (256, 2, [(1, 2), (1, 3)]),
        (256, 5, [(1, 1)] * 5),
        (128, 12, [(2, 1)] * 3 + [(3, 1)] * 2),  # small ones share a tensor
    ],
)
def test_pictures_share_the_threads_side_by_side(
    wide_stylist: Stylist, side: int, count: int, runs: list[tuple[int, int]]
) -> None:
    frames = [frame_of(side, side, seed) for seed in range(count)]
    assert sorted(runs_of(wide_stylist, frames)) == runs


def test_picture_that_finds_all_threads_taken_is_painted_when_one_is_free(wide_stylist: Stylist) -> None:
    frames = [frame_of(256, 256, seed) for seed in range(6)]
    *first, (last, _) = runs_of(wide_stylist, frames)
    assert (first, last) == ([(1, 1)] * 5, 1)


def painted_alone(stylist: Stylist) -> tuple[list[Frame], list[Frame | Exception]]:
    """Three frames, each too large to share a tensor, and what becomes of each by itself."""
    frames = [frame_of(256, 264, seed) for seed in range(3)]
    return frames, [stylist.paint("seeded", [frame])[0] for frame in frames]


def test_pictures_side_by_side_are_painted_at_once_and_as_if_alone(
    wide_stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, alone = painted_alone(wide_stylist)
    forward = wide_stylist._forward
    everyone = threading.Barrier(3)

    def together(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        everyone.wait(60)
        return forward(style, frames, rows)

    monkeypatch.setattr(wide_stylist, "_forward", together)
    painted = wide_stylist.paint("seeded", frames)
    assert max(map(worst_difference, alone, painted)) <= 1


def test_picture_that_finds_no_memory_beside_others_is_painted_alone(
    wide_stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, alone = painted_alone(wide_stylist)
    forward = wide_stylist._forward

    def scarce(style: str, group: Sequence[Frame], rows: int) -> Frame:
        if torch.get_num_threads() < 5 and group[0] is frames[1]:
            raise MemoryError
        return forward(style, group, rows)

    monkeypatch.setattr(wide_stylist, "_forward", scarce)
    assert max(map(worst_difference, alone, wide_stylist.paint("seeded", frames))) <= 1


def test_warm_up_paints_in_every_style(seeded_style: InstalledStyle, monkeypatch: pytest.MonkeyPatch) -> None:
    stylist = Stylist({"one": seeded_style, "two": seeded_style}, Settings(device="cpu", threads=1))
    painted: list[str] = []
    forward = stylist._forward
    monkeypatch.setattr(stylist, "_forward", lambda style, *rest: painted.append(style) or forward(style, *rest))
    stylist.warm_up()
    assert painted == ["one", "two"]


def test_warm_up_that_fails_keeps_the_replica_from_starting(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> None:
    break_on_mark(stylist, monkeypatch, MemoryError(), mark=0)
    with pytest.raises(OutOfMemory):
        stylist.warm_up()


@pytest.mark.parametrize("position", range(4))
def test_frame_that_fails_fails_alone(stylist: Stylist, monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    frames = plain_frames(3)
    expected = stylist.paint("seeded", frames)
    frames.insert(position, marked_frame())
    break_on_mark(stylist, monkeypatch, ValueError("a bad frame"))
    outcomes = stylist.paint("seeded", frames)
    assert isinstance(outcomes.pop(position), RuntimeError)
    for outcome, painted in zip(outcomes, expected, strict=True):
        assert worst_difference(outcome, painted) <= 1


def test_batch_that_fails_is_halved_not_taken_apart(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = break_on_mark(stylist, monkeypatch, ValueError("a bad frame"))
    stylist.paint("seeded", [marked_frame(), *plain_frames(7)])
    assert tried == [8, 4, 2, 1, 1, 2, 4]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 135268352 bytes. Error code 12 (Cannot allocate memory)"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB."),
        MemoryError(),
    ],
    ids=["cpu-allocator", "cuda", "numpy"],
)
def test_lack_of_memory_is_a_503_that_says_what_to_do_and_the_next_picture_is_painted(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    break_on_mark(stylist, monkeypatch, error)
    (outcome,) = stylist.paint("seeded", [marked_frame()])
    assert isinstance(outcome, OutOfMemory)
    assert outcome.status == 503
    assert outcome.retry_after_s == 10
    assert str(outcome) == (
        "There is not enough memory to paint this picture now; try again, or ask for a smaller max_side."
    )
    (painted,) = stylist.paint("seeded", plain_frames(1))
    assert isinstance(painted, np.ndarray)


@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_given_back_after_a_failed_pass_has_let_go_of_it(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    class Activations:
        pass

    alive: list[weakref.ref[Activations]] = []
    held_at_release: list[int] = []

    def hold_and_fail(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        activations = Activations()
        alive.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(stylist, "_forward", hold_and_fail)
    monkeypatch.setattr(
        "serve_app.engine.stylist.release_memory",
        lambda: held_at_release.append(sum(activations() is not None for activations in alive)),
    )
    stylist.paint("seeded", plain_frames(count))
    assert set(held_at_release) == {0}


def test_other_failure_tells_the_log_but_not_the_client(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_on_mark(stylist, monkeypatch, ValueError("a secret of the house"))
    (outcome,) = stylist.paint("seeded", [marked_frame()])
    assert type(outcome) is RuntimeError
    assert str(outcome) == "painting failed"
    assert outcome.__cause__ is outcome.__context__ is None
    assert "a secret of the house" in caplog.text


def test_real_refusal_of_the_allocator_is_out_of_memory(seeded_style: InstalledStyle) -> None:
    resource = pytest.importorskip("resource", reason="only POSIX bounds a process's memory")
    del resource
    script = f"""
        import resource
        from pathlib import Path
        import numpy as np
        from serve_app.settings import Settings
        from serve_app.styles.catalogue import read_installed
        from serve_app.engine.stylist import Stylist

        style = read_installed(Path({str(seeded_style.path)!r}))
        stylist = Stylist({{"seeded": style}}, Settings(device="cpu", threads=1))
        small, large = (np.zeros((side, side, 3), np.uint8) for side in (16, 512))
        stylist.paint("seeded", [small])
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {20 * MIB},) * 2)
        print(type(*stylist.paint("seeded", [large])).__name__, type(*stylist.paint("seeded", [small])).__name__)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "OutOfMemory ndarray\n", run.stderr


def test_picture_over_the_budget_is_refused_with_the_largest_side_that_fits(stylist: Stylist) -> None:
    stylist.lanes.memory_bytes = 100_000_000
    (refusal,) = stylist.paint("seeded", [frame_of(1536, 2048)])
    assert isinstance(refusal, TooLargeToPaint)
    assert refusal.status == 413
    side = refusal.limit
    assert side is not None
    assert refusal.actual == 2048
    assert "Painting 2048 x 1536 takes " in str(refusal)
    assert f", and 100 MB are set aside for it here. Ask for max_side={side}, the largest that fits." in str(refusal)
    stylist._forward = lambda style, frames, rows: np.stack(frames)  # type: ignore[method-assign]
    for larger, outcome in ((0, np.ndarray), (8, TooLargeToPaint)):
        (answer,) = stylist.paint("seeded", [frame_of((side + larger) * 3 // 4, side + larger)])
        assert isinstance(answer, outcome)


@pytest.mark.parametrize(("together", "batches"), [(4, [4, 1]), (3, [3, 2]), (1, [1, 1, 1, 1, 1])])
def test_batch_is_split_to_fit_the_budget(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, together: int, batches: list[int]
) -> None:
    stylist.lanes.memory_bytes = planned_bytes(64, 64, together, "fp32", 4, stylist.allocator)
    painted: list[int] = []
    forward = stylist._forward
    monkeypatch.setattr(
        stylist, "_forward", lambda style, frames, rows: painted.append(len(frames)) or forward(style, frames, rows)
    )
    frames = [frame_of(64, 64, seed) for seed in range(5)]
    assert all(isinstance(outcome, np.ndarray) for outcome in stylist.paint("seeded", frames))
    assert painted == batches


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory so")
def test_many_sizes_take_little_more_than_the_largest() -> None:
    """What oneDNN compiles for each size is bounded: kept by the thousand, it is megabytes a size."""
    script = """
        import numpy as np
        from serve_app.engine.memory import planned_bytes
        from serve_app.settings import Settings
        from serve_app.styles.catalogue import installed_styles
        from serve_app.engine.stylist import Stylist

        def resident_bytes():
            line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
            return int(line.split()[1]) * 1024

        stylist = Stylist({"toon": installed_styles()["toon"]}, Settings(device="cpu", threads=1))
        stylist.warm_up()
        idle = resident_bytes()
        for step in range(30):
            (painted,) = stylist.paint("toon", [np.zeros((64 + 4 * step, 304 - 4 * step, 3), np.uint8)])
            assert isinstance(painted, np.ndarray)
        print(resident_bytes() - idle < planned_bytes(184, 184, 1, "fp32", allocator=stylist.allocator))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "True\n", run.stderr


def test_large_pictures_are_painted_one_by_one_on_a_cpu(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[int] = []
    monkeypatch.setattr(
        stylist, "_forward", lambda style, frames, rows: painted.append(len(frames)) or np.stack(frames)
    )
    stylist.paint("seeded", [frame_of(256, 256)] * 3)
    stylist.paint("seeded", [frame_of(128, 128)] * 5)
    assert painted == [1, 1, 1, 4, 1]


def test_line_at_start_up_names_device_precision_allocator_and_budget(stylist: Stylist) -> None:
    stylist.lanes.memory_bytes = 600_000_000
    stylist.allocator = "tcmalloc"
    assert stylist.describe() == "painting on cpu in fp32, allocator tcmalloc, budget 600 MB"


def test_budget_is_what_the_replica_was_granted_less_what_it_has_taken() -> None:
    granted = 8 * 2**30
    assert 0 < free_memory(CPU, granted) < granted - 100 * MIB  # torch is loaded
    assert free_memory(CPU, 1) == 0
    assert free_memory(CPU, 0) > 0
