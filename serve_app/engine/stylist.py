"""Paints batches of frames on one device: uint8 in, uint8 out, in strips, within a budget of bytes."""

import gc
import logging
import os
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import torch

from serve_app.engine.allocator import release_free_memory, running_allocator
from serve_app.engine.checkpoints import load_generator
from serve_app.engine.host_memory import available_bytes
from serve_app.engine.memory import MemoryModel
from serve_app.engine.precision import DTYPES, Choice, choose_for_style, choose_precision, compute_dtype
from serve_app.engine.slots import CPU_STACK_PIXELS, Slot, WorkerSlots
from serve_app.engine.streaming import StripGenerator
from serve_app.engine.usage import MemoryUse
from serve_app.errors import DeviceError, OutOfMemory, RequestError, StyleError
from serve_app.frames import Device, Frame, Size
from serve_app.settings import Settings
from serve_app.styles.catalogue import InstalledStyle

logger = logging.getLogger(__name__)

# oneDNN caches the code that it compiles for each layer, strip height and size: by default 1,024 pieces, which took
# 100 MB after 30 sizes. With 64 pieces, no image took longer, down to a side of 64 pixels.
PRIMITIVE_CACHE_CAPACITY = "64"
LEAST_PIXELS_A_THREAD = 64 * 64  # of a batch: another thread for fewer saves no time, and costs half as much CPU again
WARM_UP_SIDE = 64  # pixels: enough to load every kernel and to touch every layer's memory, in milliseconds

Outcomes = list[Frame | Exception]


class Stylist:
    """Paints batches on one device, in any of its styles; several at once on a CPU.

    To paint, `reserve` a slot, then `start` painting in it.

    Args:
        styles: to load, by name; each takes 8 MB in float32.
        settings: device, precision, threads and memory.
        gpu_share: the part of a GPU that this process was granted, 0 for none.
        cpu_share: the number of CPUs that this process was granted.
        memory_share: the bytes of host memory that this process was granted, 0 for none.

    Attributes:
        slots: that batches are painted in.
        memory: that painting takes.
        digests: of the styles' contents, by name.

    Raises:
        DeviceError: if the device is missing, or a GPU was granted that cannot be used.
        StyleError: if no style can be loaded. One that is damaged is left out while there are others.
    """

    def __init__(
        self,
        styles: dict[str, InstalledStyle],
        settings: Settings,
        gpu_share: float = 0,
        cpu_share: float = 1,
        memory_share: float = 0,
    ) -> None:
        # oneDNN reads it when the first layer runs.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVE_CACHE_CAPACITY)
        self.digests = {name: style.digest for name, style in styles.items()}
        self.device = choose_device(settings.device, gpu_share, has_cuda())
        self._precision = choose_precision(settings.precision, self.device)
        self._precisions = {
            name: choose_for_style(settings.precision, self._precision, style.psnr_bf16)
            for name, style in styles.items()
        }
        if self.device.type == "cuda":
            bound_cuda_memory(gpu_share or 1, settings.cuda_context_bytes)
        self.allocator = running_allocator() if self.device.type == "cpu" else "cuda"
        threads, stack_pixels = 1, None
        if self.device.type == "cpu":
            threads, stack_pixels = count_threads(settings, cpu_share), CPU_STACK_PIXELS
        # torch runs only on these threads, one for each slot, because OpenMP keeps a team of threads for every thread
        # that calls it. A batch that starts alone is always in the first slot. So only one team is of full size.
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"slot-{index}") for index in range(threads)]
        self._generators = self._threads[0].submit(self._load, styles).result()
        memory_bytes = settings.memory_bytes or free_memory(self.device, memory_share)
        self.slots = WorkerSlots(threads, self._memory_model(self._precision), memory_bytes, stack_pixels)
        self.memory = MemoryUse(self.device, self.slots)

    @property
    def styles(self) -> Collection[str]:
        """The names of the styles that it can paint in."""
        return self._generators.keys()

    def describe(self) -> str:
        """Returns one line for the log: the device, the allocator, the budget, and the precisions and their reasons."""
        chosen = {name: self._precisions[name] for name in self._generators}
        others = [
            f"style {name} in {each.precision}: {each.reason}"
            for name, each in chosen.items()
            if each != self._precision
        ]
        precisions = " and ".join(sorted({each.precision for each in chosen.values()}))
        line = (
            f"painting on {self.device.type} in {precisions}, allocator {self.allocator}, "
            f"budget {self.slots.memory_bytes / 1e6:,.0f} MB"
        )
        return "; ".join([line, self._precision.reason, *others])

    def warm_up(self) -> None:
        """Paints one small image in every style, so that the first request does not wait for kernels to load.

        Call it before anything else is painted.

        Raises:
            TooLargeToPaint: if the budget does not hold even this image.
            OutOfMemory: if there is not enough memory after all.
        """
        for style in self._generators:
            slot = self.reserve(style, Size(WARM_UP_SIDE, WARM_UP_SIDE), same_size=1, waiting=1, room=1)
            if slot is None:
                raise RuntimeError("the warm-up has to come before any other painting")
            (outcome,) = self.start(slot, style, [np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)]).result()
            if isinstance(outcome, Exception):
                raise outcome
        self.memory = MemoryUse(self.device, self.slots)  # what is loaded only now is no painting's

    def reserve(self, style: str, size: Size, same_size: int, waiting: int, room: int) -> Slot | None:
        """Reserves a slot for images of one style and size; see `WorkerSlots.reserve`, also for what it raises."""
        slot = self.slots.reserve(size, same_size, waiting, room, self._memory_model(self._precisions[style]))
        self.memory.note_begin()
        return slot

    def start(self, slot: Slot, style: str, frames: Sequence[Frame]) -> "Future[Outcomes]":
        """Starts to paint frames in a slot, beside what is painted in others, and releases the slot at the end.

        Args:
            slot: reserved for frames of this style and size, and for at least so many.
            style: by name.
            frames: of one size, (H, W, 3) uint8.

        Returns:
            A future of one outcome for each frame, in order: the painted frame, or the error that it failed with.
        """
        return self._threads[slot.index].submit(self._paint_slot, slot, style, frames)

    def release_memory(self) -> None:
        """Returns free memory to the system or the card, for when no image is expected soon. Does not wait for it."""
        self._threads[0].submit(release_memory)

    def close(self) -> None:
        """Waits for what is being painted, then stops the threads and frees the memory. May be called again."""
        for thread in self._threads:
            thread.shutdown()
        self._generators.clear()
        release_memory()

    def _load(self, styles: dict[str, InstalledStyle]) -> dict[str, StripGenerator]:
        generators: dict[str, StripGenerator] = {}
        reasons: list[str] = []
        for name, style in styles.items():
            try:
                generator = load_generator(style).to(self.device)
            except StyleError as error:
                reasons.append(str(error))
                logger.warning("the style %s is left out: %s", name, error)
                continue
            precision = self._precisions[name].precision
            compute = compute_dtype(precision, self.device)
            generators[name] = StripGenerator(generator, style.resize, DTYPES[precision], compute)
        if not generators:
            raise StyleError("; ".join(reasons) or "no style is installed that could be loaded")
        return generators

    def _memory_model(self, choice: Choice) -> MemoryModel:
        return MemoryModel(choice.precision, self.allocator)

    def _paint_slot(self, slot: Slot, style: str, frames: Sequence[Frame]) -> Outcomes:
        try:
            pixels = sum(frame.shape[0] * frame.shape[1] for frame in frames)
            threads = min(slot.threads, max(pixels // LEAST_PIXELS_A_THREAD, 1))
            torch.set_num_threads(threads)  # for this thread and for new ones, so it is set each time
            outcomes = self._paint_batch(style, frames, slot.rows)
            for at, outcome in enumerate(outcomes):
                if isinstance(outcome, OutOfMemory) and slot.threads < self.slots.threads:
                    with self.slots.exclusive(slot):  # alone, the frame may find enough memory
                        torch.set_num_threads(self.slots.threads)
                        outcomes[at : at + 1] = self._paint_batch(style, [frames[at]], slot.rows)
            return outcomes
        finally:
            self.memory.note_end()
            self.slots.release(slot)

    def _paint_batch(self, style: str, frames: Sequence[Frame], rows: int) -> Outcomes:
        """Paints a batch; one that fails is halved, down to single frames, so that a bad frame fails alone."""
        outcome: Exception | None = None
        try:
            return list(self._forward(style, frames, rows))
        except Exception as error:
            if len(frames) == 1:
                outcome = as_request_error(error)
            else:
                logger.warning("a batch of %d failed (%s), halving it", len(frames), type(error).__name__)
        release_memory()  # outside the except clause: its traceback would keep the activations alive
        if outcome is not None:
            return [outcome]
        middle = len(frames) // 2
        return self._paint_batch(style, frames[:middle], rows) + self._paint_batch(style, frames[middle:], rows)

    def _forward(self, style: str, frames: Sequence[Frame], rows: int) -> Frame:
        batch = torch.from_numpy(np.stack(frames)).to(self.device)  # (N, H, W, 3); a copy, as frames may be read-only
        painted: Frame = self._generators[style].paint(batch, rows).cpu().numpy()
        return painted


def as_request_error(error: Exception) -> Exception:
    """Returns the error to report for one that painting raised.

    A lack of memory becomes `OutOfMemory`. Any other error is a fault of the service: it goes to the log, and the
    client is not told more than that painting failed.
    """
    if isinstance(error, RequestError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(
            "There is not enough memory to paint this picture now; try again, or ask for a smaller max_side.",
            retry_after_s=10,
        )
    logger.exception("painting failed", exc_info=error)
    return RuntimeError("painting failed")


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error means that an allocation failed."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # as torch's CPU allocator says


def release_memory() -> None:
    """Returns the memory that painting has left free to the system or the card."""
    gc.collect()
    release_free_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def has_cuda() -> bool:
    """Returns whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def choose_device(device: Device, gpu_share: float, has_cuda: bool) -> torch.device:
    """Returns the device to paint on: CUDA where it was granted or asked for, otherwise the CPU.

    Raises:
        DeviceError: if that device is missing or cannot be used; it names the setting that chooses the CPU.
    """
    if device == "cpu":
        return torch.device("cpu")
    if has_cuda and (device == "cuda" or gpu_share > 0):
        if not (torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()):  # type: ignore[no-untyped-call]
            raise DeviceError(
                "cuDNN is missing or switched off: without it a 7 x 7 convolution builds a buffer of 12 GiB for one "
                "1024 x 1024 picture. Install a torch build that carries cuDNN."
            )
        return torch.device("cuda")
    if device == "cuda" or gpu_share > 0:
        asked = f"num_gpus is {gpu_share:g}" if gpu_share > 0 else "device is cuda"
        raise DeviceError(
            f"{asked}, but torch sees no CUDA device on this machine. Set device: cpu in the application's args if "
            "painting on the CPU is meant; otherwise install a CUDA build of torch and the GPU's driver."
        )
    return torch.device("cpu")


def free_memory(device: torch.device, memory_share: float) -> int:
    """Returns the bytes that painting may take by default.

    On CUDA that is the rest of the GPU's share. On a CPU it is the rest of the granted memory, or, if none was granted,
    half of what the machine has free. A container's limit counts in both.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction()) - torch.cuda.memory_allocated()
    if memory_share:
        return max(min(int(memory_share) - psutil.Process().memory_info().rss, available_bytes()), 0)
    return available_bytes() // 2


def count_threads(settings: Settings, cpu_share: float) -> int:
    """Returns the number of threads to paint with on a CPU."""
    if settings.threads == "host":
        # The cores that this process may use, where the system can tell; macOS cannot.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.threads == "share":
        return max(1, int(cpu_share))
    return settings.threads


def bound_cuda_memory(gpu_share: float, context_bytes: int) -> None:
    """Limits this process to its share of the card's memory."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(allocator_fraction(gpu_share, total, context_bytes))


def allocator_fraction(gpu_share: float, total_bytes: int, context_bytes: int) -> float:
    """Returns the part of the card that tensors may take: the share without the memory of the CUDA context.

    Raises:
        DeviceError: if the share does not hold even the context.
    """
    fraction = min(gpu_share, 1.0) - context_bytes / total_bytes
    if fraction <= 0:
        raise DeviceError(
            f"num_gpus {gpu_share:g} of a card of {total_bytes} bytes is less than one CUDA context "
            f"({context_bytes} bytes); raise num_gpus."
        )
    return fraction
