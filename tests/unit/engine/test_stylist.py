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
from painting import paint_all
from shared import ROOT

from serve_app.engine.checkpoints import load_generator
from serve_app.engine.memory import MemoryModel, strip_rows
from serve_app.engine.precision import bf16_instructions
from serve_app.engine.stylist import (
    Stylist,
    allocator_fraction,
    choose_device,
    count_threads,
    free_memory,
)
from serve_app.errors import DeviceError, OutOfMemory, StyleError, TooLargeToPaint
from serve_app.frames import Device, Frame, Precision, Size
from serve_app.settings import Settings
from serve_app.styles.catalogue import InstalledStyle

MIB = 2**20
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MARK = 77  # the first value of a frame that a broken forward pass fails on


@pytest.fixture
def stylist(seeded_style: InstalledStyle) -> Iterator[Stylist]:
    threads = torch.get_num_threads()
    made = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=1))
    yield made
    made.close()
    torch.set_num_threads(threads)


def frame_of(height: int, width: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def break_on_mark(stylist: Stylist, monkeypatch: pytest.MonkeyPatch, error: Exception, mark: int = MARK) -> list[int]:
    """Makes every forward pass with a marked frame raise; returns a list that grows by the batch sizes tried."""
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


def worst_difference(one: Frame | Exception, other: Frame | Exception) -> int:
    assert isinstance(one, np.ndarray)
    assert isinstance(other, np.ndarray)
    return int(np.abs(one.astype(int) - other).max())


def run_script(script: str) -> "subprocess.CompletedProcess[str]":
    """Runs a script in a process of its own, with the helpers of the tests on its path."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("device", "gpu_share", "has_cuda", "chosen"),
    [
        ("auto", 0, False, CPU),
        ("auto", 0, True, CPU),  # a GPU that Ray did not grant is for others
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
def test_missing_gpu_is_refused_with_what_to_do(device: Device, gpu_share: float, asked: str) -> None:
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


def test_stylist_takes_the_number_of_threads_that_is_set(seeded_style: InstalledStyle, stylist: Stylist) -> None:
    for threads in (2, 1):
        other = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=threads))
        assert [each for _, each in runs_of(other, [frame_of(96, 96, 1)])] == [threads]


def test_small_image_is_painted_on_fewer_threads(seeded_style: InstalledStyle, stylist: Stylist) -> None:
    wide = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=5))
    for side, threads in ((16, 1), (64, 1), (96, 2), (128, 4), (160, 5)):
        assert [each for _, each in runs_of(wide, [frame_of(side, side, 1)])] == [threads]
    wide.close()


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
    (painted,) = paint_all(stylist, "seeded", [frame_of(height, width)])
    assert isinstance(painted, np.ndarray)
    assert painted.shape == (height, width, 3)
    assert painted.dtype == np.uint8
    assert painted.std() > 1  # not a grey plate


def test_painting_is_the_generators_output_scaled_to_bytes(stylist: Stylist, seeded_style: InstalledStyle) -> None:
    photo = frame_of(24, 16)
    with torch.inference_mode():
        x = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = ((load_generator(seeded_style)(x)[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    (painted,) = paint_all(stylist, "seeded", [photo])
    assert np.abs(painted - expected).max() < 0.5 + 0.01


def test_photograph_is_not_changed_and_may_be_read_only(stylist: Stylist) -> None:
    photo = frame_of(16, 16)
    copy = photo.copy()
    photo.setflags(write=False)  # as Ray hands it over
    paint_all(stylist, "seeded", [photo])
    assert np.array_equal(photo, copy)


def test_image_in_a_batch_is_painted_as_if_alone(stylist: Stylist) -> None:
    photos = [frame_of(24, 40, seed) for seed in range(3)]
    photos[1][:] //= 4  # a dark one among bright ones
    together = paint_all(stylist, "seeded", photos)
    for photo, painted in zip(photos, together, strict=True):
        assert worst_difference(painted, paint_all(stylist, "seeded", [photo])[0]) <= 1  # of 255


def record_passes(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Returns a list that will hold the style and the number of frames of each forward pass, in order."""
    forward = stylist._forward
    passes: list[tuple[str, int]] = []

    def recorded(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        passes.append((style, len(frames)))
        return forward(style, frames, rows)

    monkeypatch.setattr(stylist, "_forward", recorded)
    return passes


def runs_of(stylist: Stylist, frames: Sequence[Frame], together: int = 1) -> list[tuple[int, int]]:
    """Paints, with the first `together` forward passes at the same time.

    Returns:
        The number of frames and the number of threads of each forward pass, in the order in which they began.
    """
    forward = stylist._forward
    runs: list[tuple[int, int]] = []
    lock = threading.Lock()
    everyone = threading.Barrier(together)

    def recorded(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        with lock:
            runs.append((len(frames), torch.get_num_threads()))
            is_early = len(runs) <= together
        if is_early:
            everyone.wait(60)
        return forward(style, frames, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stylist, "_forward", recorded)
        assert all(isinstance(outcome, np.ndarray) for outcome in paint_all(stylist, "seeded", frames))
    return runs


@pytest.fixture
def wide_stylist(seeded_style: InstalledStyle, stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stylist]:
    """Returns one with five threads, for small images too; the fixture `stylist` restores torch's own number."""
    monkeypatch.setattr("serve_app.engine.stylist.LEAST_PIXELS_A_THREAD", 1)
    wide = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=5))
    yield wide
    wide.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "count", "runs"),
    [
        (256, 1, [(1, 5)]),
        (256, 2, [(1, 2), (1, 3)]),
        (256, 5, [(1, 1)] * 5),
        (128, 12, [(2, 1)] * 3 + [(3, 1)] * 2),  # small images share a tensor
    ],
)
def test_images_side_by_side_share_the_threads(
    wide_stylist: Stylist, side: int, count: int, runs: list[tuple[int, int]]
) -> None:
    frames = [frame_of(side, side, seed) for seed in range(count)]
    assert sorted(runs_of(wide_stylist, frames, together=len(runs))) == runs


@pytest.mark.slow
def test_image_that_finds_all_threads_taken_is_painted_when_one_is_free(wide_stylist: Stylist) -> None:
    frames = [frame_of(256, 256, seed) for seed in range(6)]
    *first, (last, _) = runs_of(wide_stylist, frames, together=5)
    assert (first, last) == ([(1, 1)] * 5, 1)


def painted_alone(stylist: Stylist) -> tuple[list[Frame], list[Frame | Exception]]:
    """Returns three frames, each too large to share a tensor, and each of them painted by itself."""
    frames = [frame_of(256, 264, seed) for seed in range(3)]
    return frames, [paint_all(stylist, "seeded", [frame])[0] for frame in frames]


@pytest.mark.slow
def test_images_side_by_side_are_painted_at_once_and_as_if_alone(
    wide_stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, alone = painted_alone(wide_stylist)
    forward = wide_stylist._forward
    everyone = threading.Barrier(3)

    def together(style: str, frames: Sequence[Frame], rows: int) -> Frame:
        everyone.wait(60)
        return forward(style, frames, rows)

    monkeypatch.setattr(wide_stylist, "_forward", together)
    painted = paint_all(wide_stylist, "seeded", frames)
    assert max(map(worst_difference, alone, painted)) <= 1


@pytest.mark.slow
def test_image_that_finds_no_memory_beside_others_is_painted_alone(
    wide_stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, alone = painted_alone(wide_stylist)
    forward = wide_stylist._forward

    def scarce(style: str, group: Sequence[Frame], rows: int) -> Frame:
        if torch.get_num_threads() < 5 and group[0] is frames[1]:
            raise MemoryError
        return forward(style, group, rows)

    monkeypatch.setattr(wide_stylist, "_forward", scarce)
    assert max(map(worst_difference, alone, paint_all(wide_stylist, "seeded", frames))) <= 1


def damaged_copy(style: InstalledStyle, folder: Path) -> InstalledStyle:
    path = folder / "damaged.safetensors"
    data = bytearray(style.path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return style.model_copy(update={"path": path})


def test_damaged_style_is_left_out_and_said_and_the_others_are_loaded(
    seeded_style: InstalledStyle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = damaged_copy(seeded_style, tmp_path)
    stylist = Stylist({"damaged": damaged, "seeded": seeded_style}, Settings(device="cpu", threads=1))
    assert list(stylist.styles) == ["seeded"]
    (said,) = caplog.messages
    assert said.startswith(f"the style damaged is left out: {damaged.path} is damaged: ")


def test_stylist_without_any_style_does_not_start(seeded_style: InstalledStyle, tmp_path: Path) -> None:
    damaged = damaged_copy(seeded_style, tmp_path)
    with pytest.raises(StyleError, match="its content does not match its digest"):
        Stylist({"damaged": damaged}, Settings(device="cpu", threads=1))
    with pytest.raises(StyleError, match="no style is installed"):
        Stylist({}, Settings(device="cpu", threads=1))


def test_warm_up_paints_in_every_style(seeded_style: InstalledStyle, monkeypatch: pytest.MonkeyPatch) -> None:
    stylist = Stylist({"one": seeded_style, "two": seeded_style}, Settings(device="cpu", threads=1))
    passes = record_passes(stylist, monkeypatch)
    stylist.warm_up()
    assert [style for style, _ in passes] == ["one", "two"]


def test_warm_up_that_fails_keeps_the_replica_from_starting(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> None:
    break_on_mark(stylist, monkeypatch, MemoryError(), mark=0)
    with pytest.raises(OutOfMemory):
        stylist.warm_up()


def test_warm_up_beside_other_painting_is_refused(stylist: Stylist) -> None:
    assert stylist.slots.reserve(Size(16, 16), 1, 1, 1) is not None
    with pytest.raises(RuntimeError, match="the warm-up has to come before any other painting"):
        stylist.warm_up()


def test_slot_is_released_when_painting_ends_and_when_it_fails(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, frames = Size(16, 16), plain_frames(1)
    slot = stylist.slots.reserve(size, 1, 1, 1)
    assert slot is not None
    (painted,) = stylist.start(slot, "seeded", frames).result(60)
    assert isinstance(painted, np.ndarray)
    slot = stylist.slots.reserve(size, 1, 1, 1)
    assert slot is not None
    monkeypatch.setattr(stylist, "_paint_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stylist.start(slot, "seeded", frames).result(60)
    assert stylist.slots.reserve(size, 1, 1, 1) is not None


def test_closed_stylist_has_finished_its_painting_and_holds_no_generator_and_no_thread(
    seeded_style: InstalledStyle,
) -> None:
    stylist = Stylist({"seeded": seeded_style}, Settings(device="cpu", threads=1))
    generator = weakref.ref(stylist._generators["seeded"])
    before = threading.active_count()
    slot = stylist.slots.reserve(Size(16, 16), 1, 1, 1)
    assert slot is not None
    future = stylist.start(slot, "seeded", plain_frames(1))
    stylist.close()
    assert future.done()
    assert isinstance(future.result()[0], np.ndarray)
    assert generator() is None
    assert threading.active_count() == before - 1
    stylist.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        stylist.start(slot, "seeded", plain_frames(1))


@pytest.mark.slow
@pytest.mark.parametrize("position", range(4))
def test_frame_that_fails_fails_alone(stylist: Stylist, monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    frames = plain_frames(3)
    expected = paint_all(stylist, "seeded", frames)
    frames.insert(position, marked_frame())
    break_on_mark(stylist, monkeypatch, ValueError("a bad frame"))
    outcomes = paint_all(stylist, "seeded", frames)
    assert isinstance(outcomes.pop(position), RuntimeError)
    for outcome, painted in zip(outcomes, expected, strict=True):
        assert worst_difference(outcome, painted) <= 1


@pytest.mark.slow
def test_batch_that_fails_is_halved_not_taken_apart(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = break_on_mark(stylist, monkeypatch, ValueError("a bad frame"))
    paint_all(stylist, "seeded", [marked_frame(), *plain_frames(7)])
    assert tried == [8, 4, 2, 1, 1, 2, 4]


@pytest.mark.slow
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
def test_lack_of_memory_is_a_503_that_says_what_to_do_and_the_next_image_is_painted(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    break_on_mark(stylist, monkeypatch, error)
    (outcome,) = paint_all(stylist, "seeded", [marked_frame()])
    assert isinstance(outcome, OutOfMemory)
    assert outcome.status == 503
    assert outcome.retry_after_s == 10
    assert str(outcome) == (
        "There is not enough memory to paint this picture now; try again, or ask for a smaller max_side."
    )
    (painted,) = paint_all(stylist, "seeded", plain_frames(1))
    assert isinstance(painted, np.ndarray)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_released_after_a_failed_pass_has_freed_it(
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
    paint_all(stylist, "seeded", plain_frames(count))
    assert set(held_at_release) == {0}


@pytest.mark.slow
def test_other_failure_is_explained_in_the_log_but_not_to_the_client(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_on_mark(stylist, monkeypatch, ValueError("a secret"))
    (outcome,) = paint_all(stylist, "seeded", [marked_frame()])
    assert type(outcome) is RuntimeError
    assert str(outcome) == "painting failed"
    assert outcome.__cause__ is outcome.__context__ is None
    assert "a secret" in caplog.text


@pytest.mark.slow
def test_failed_allocation_is_out_of_memory(seeded_style: InstalledStyle) -> None:
    resource = pytest.importorskip("resource", reason="only POSIX bounds a process's memory")
    del resource
    script = f"""
        import resource
        from pathlib import Path
        import numpy as np
        from painting import paint_all
        from serve_app.settings import Settings
        from serve_app.styles.catalogue import read_installed
        from serve_app.engine.stylist import Stylist

        style = read_installed(Path({str(seeded_style.path)!r}))
        stylist = Stylist({{"seeded": style}}, Settings(device="cpu", threads=1))
        small, large = (np.zeros((side, side, 3), np.uint8) for side in (16, 512))
        paint_all(stylist, "seeded", [small])
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {20 * MIB},) * 2)
        print(*(type(*paint_all(stylist, "seeded", [frame])).__name__ for frame in (large, small)))
    """
    run = run_script(script)
    assert run.stdout == "OutOfMemory ndarray\n", run.stderr


def test_image_over_the_budget_is_refused_with_the_largest_side_that_fits(stylist: Stylist) -> None:
    stylist.slots.memory_bytes = 100_000_000
    (refusal,) = paint_all(stylist, "seeded", [frame_of(1536, 2048)])
    assert isinstance(refusal, TooLargeToPaint)
    assert refusal.status == 413
    assert refusal.limit is not None
    side = int(refusal.limit)
    assert (refusal.actual, refusal.unit) == (2048, "pixels")
    assert "Painting 2048 x 1536 takes " in str(refusal)
    assert f", and 100 MB are set aside for it here. Ask for max_side={side}, the largest that fits." in str(refusal)
    stylist._forward = lambda style, frames, rows: np.stack(frames)  # type: ignore[method-assign]
    for larger, outcome in ((0, np.ndarray), (8, TooLargeToPaint)):
        (answer,) = paint_all(stylist, "seeded", [frame_of((side + larger) * 3 // 4, side + larger)])
        assert isinstance(answer, outcome)


@pytest.mark.slow
@pytest.mark.parametrize(("together", "batches"), [(4, [4, 1]), (3, [3, 2]), (1, [1, 1, 1, 1, 1])])
def test_batch_is_split_to_fit_the_budget(
    stylist: Stylist, monkeypatch: pytest.MonkeyPatch, together: int, batches: list[int]
) -> None:
    model = MemoryModel("fp32", stylist.allocator)
    stylist.slots.memory_bytes = model.planned_bytes(Size(64, 64), together, rows=4)
    passes = record_passes(stylist, monkeypatch)
    frames = [frame_of(64, 64, seed) for seed in range(5)]
    assert all(isinstance(outcome, np.ndarray) for outcome in paint_all(stylist, "seeded", frames))
    assert [count for _, count in passes] == batches


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports a process's memory so")
def test_many_sizes_leave_little_behind() -> None:
    """OneDNN's cache of compiled code is bounded; without a bound, it grows by megabytes for each size."""
    script = """
        import ctypes
        import numpy as np
        from painting import paint_all
        from serve_app.settings import Settings
        from serve_app.styles.catalogue import installed_styles
        from serve_app.engine.stylist import Stylist

        def resident_bytes():
            ctypes.CDLL(None).malloc_trim(0)  # free memory that glibc keeps comes and goes by tens of megabytes
            line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
            return int(line.split()[1]) * 1024

        stylist = Stylist({"toon": installed_styles()["toon"]}, Settings(device="cpu", threads=1))
        stylist.warm_up()
        idle = resident_bytes()
        for step in range(30):
            (painted,) = paint_all(stylist, "toon", [np.zeros((64 + 4 * step, 304 - 4 * step, 3), np.uint8)])
            assert isinstance(painted, np.ndarray)
        print(resident_bytes() - idle)
    """
    run = run_script(script)
    assert int(run.stdout) < 30_000_000, run.stderr


def test_large_images_are_painted_one_by_one_on_a_cpu(stylist: Stylist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stylist, "_forward", lambda style, frames, rows: np.stack(frames))
    passes = record_passes(stylist, monkeypatch)
    paint_all(stylist, "seeded", [frame_of(256, 256)] * 3)
    paint_all(stylist, "seeded", [frame_of(128, 128)] * 5)
    assert [count for _, count in passes] == [1, 1, 1, 4, 1]


def describe(stylist: Stylist) -> str:
    stylist.slots.memory_bytes = 600_000_000
    stylist.allocator = "tcmalloc"
    return stylist.describe()


@pytest.fixture
def styles(seeded_style: InstalledStyle) -> dict[str, InstalledStyle]:
    """One style that bf16 suits, one that it does not, and one that was never measured."""
    psnr = {"fine": 53.0, "poor": 44.1, "old": None}
    return {name: seeded_style.model_copy(update={"psnr_bf16": figure}) for name, figure in psnr.items()}


def fake_bf16(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    """Makes the processor look as if it had AVX512-BF16, or not; torch then runs bf16 slowly, but it does."""
    monkeypatch.setattr("serve_app.engine.precision.bf16_instructions", lambda: ["AVX512-BF16"] * is_there)


def painted_by(styles: dict[str, InstalledStyle], precision: Precision, photo: Frame) -> dict[str, Frame | Exception]:
    stylist = Stylist(styles, Settings(device="cpu", threads=1, precision=precision))
    return {name: paint_all(stylist, name, [photo])[0] for name in styles}


def test_auto_paints_in_bf16_the_styles_that_it_suits_and_in_float32_the_others(
    styles: dict[str, InstalledStyle], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bf16(monkeypatch, is_there=True)
    photo = frame_of(24, 32)
    auto, fp32, bf16 = (painted_by(styles, precision, photo) for precision in ("auto", "fp32", "bf16"))
    assert worst_difference(fp32["fine"], bf16["fine"]) > 0
    assert worst_difference(auto["fine"], bf16["fine"]) == 0
    assert worst_difference(auto["poor"], fp32["poor"]) == 0
    assert worst_difference(auto["old"], fp32["old"]) == 0


@pytest.mark.skipif(not bf16_instructions(), reason="this processor has neither AVX512-BF16 nor AMX")
def test_auto_paints_what_bf16_paints_on_a_processor_that_has_it(styles: dict[str, InstalledStyle]) -> None:
    photo = frame_of(96, 128)
    auto, fp32, bf16 = (painted_by(styles, precision, photo)["fine"] for precision in ("auto", "fp32", "bf16"))
    assert worst_difference(auto, bf16) == 0
    assert worst_difference(auto, fp32) > 0


def test_auto_paints_in_float32_where_the_processor_has_no_bf16(
    styles: dict[str, InstalledStyle], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bf16(monkeypatch, is_there=False)
    photo = frame_of(24, 32)
    auto, fp32 = (painted_by(styles, precision, photo) for precision in ("auto", "fp32"))
    assert all(worst_difference(auto[name], fp32[name]) == 0 for name in styles)


AUTO_BF16 = "auto is bf16 here: torch finds AVX512-BF16"
POOR = "style poor in fp32: its PSNR in bf16 is 44.1 dB, under 48"
OLD = "style old in fp32: its PSNR in bf16 is unknown until it is installed again"


@pytest.mark.parametrize(
    ("precision", "is_there", "names", "precisions", "reasons"),
    [
        ("auto", True, ["fine"], "bf16", [AUTO_BF16]),
        ("auto", True, ["fine", "poor", "old"], "bf16 and fp32", [AUTO_BF16, POOR, OLD]),
        ("auto", True, ["old"], "fp32", [AUTO_BF16, OLD]),
        ("auto", False, ["fine", "poor"], "fp32", ["auto is fp32 here: torch finds neither AVX512-BF16 nor AMX"]),
        ("bf16", True, ["fine", "poor", "old"], "bf16", ["bf16 is set"]),
        ("fp32", True, ["fine", "poor", "old"], "fp32", ["fp32 is set"]),
        ("bf16", False, ["fine"], "bf16", ["bf16 is set, convolutions run in fp32"]),
    ],
)
def test_line_at_start_up_says_in_which_precision_and_why(
    styles: dict[str, InstalledStyle],
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    is_there: bool,
    names: list[str],
    precisions: str,
    reasons: list[str],
) -> None:
    fake_bf16(monkeypatch, is_there)
    settings = Settings(device="cpu", threads=1, precision=precision)
    line = describe(Stylist({name: styles[name] for name in names}, settings))
    assert line == "; ".join([f"painting on cpu in {precisions}, allocator tcmalloc, budget 600 MB", *reasons])


def test_memory_is_reserved_by_the_precision_of_the_style(
    styles: dict[str, InstalledStyle], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bf16(monkeypatch, is_there=True)
    size = Size(1024, 768)
    stylist = Stylist(styles, Settings(device="cpu", threads=3))
    fp32, bf16 = (MemoryModel(precision, stylist.allocator) for precision in ("fp32", "bf16"))
    stylist.slots.memory_bytes = 10**12
    held = {}
    for name in styles:
        slot = stylist.reserve(name, size, 1, 1, 1)
        assert slot is not None
        held[name] = slot.peak_bytes
        stylist.slots.release(slot)
    rows = strip_rows(size)
    assert held == {
        "fine": bf16.slot_bytes(size, 1, rows),
        "poor": fp32.slot_bytes(size, 1, rows),
        "old": fp32.slot_bytes(size, 1, rows),
    }


def test_image_that_fits_in_bf16_is_refused_in_a_style_that_needs_float32(
    styles: dict[str, InstalledStyle], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bf16(monkeypatch, is_there=True)
    size = Size(1024, 768)
    stylist = Stylist(styles, Settings(device="cpu", threads=1))
    fp32, bf16 = (MemoryModel(precision, stylist.allocator) for precision in ("fp32", "bf16"))
    stylist.slots.memory_bytes = bf16.planned_bytes(size)
    with pytest.raises(TooLargeToPaint, match=f"takes {fp32.planned_bytes(size) / 1e6:,.0f} MB"):
        stylist.reserve("poor", size, 1, 1, 1)
    slot = stylist.reserve("fine", size, 1, 1, 1)
    assert slot is not None
    assert slot.rows == strip_rows(size)


def test_budget_is_what_the_replica_was_granted_less_what_it_uses() -> None:
    granted = 8 * 2**30
    assert 0 < free_memory(CPU, granted) < granted - 100 * MIB  # torch is loaded
    assert free_memory(CPU, 1) == 0
    assert free_memory(CPU, 0) > 0
