"""The painting of frames, batch by batch: uint8 in, uint8 out, in strips, under a budget of bytes."""

import gc
import logging
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np
import psutil
import torch

from serve_app.engine.allocator import release_free_memory, running_allocator
from serve_app.engine.checkpoints import load_generator
from serve_app.engine.memory import largest_side, planned_bytes
from serve_app.engine.slots import CPU_STACK_PIXELS, Lane, Lanes
from serve_app.engine.streaming import StripGenerator
from serve_app.errors import DeviceError, OutOfMemory, RequestError, TooLargeToPaint
from serve_app.frames import Device, Frame, Precision, Size
from serve_app.settings import Settings
from serve_app.styles.catalogue import InstalledStyle

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# oneDNN keeps the code that it has compiled for each layer, strip and size: by default 1,024 pieces, which took 100 MB
# after 30 sizes. With 64 no painting took longer, from 64 pixels up.
PRIMITIVE_CACHE_CAPACITY = "64"
WARM_UP_SIDE = 64  # pixels: every kernel is loaded and every layer's memory touched, in milliseconds

Outcomes = list[Frame | Exception]


class Stylist:
    """Paints batches with any of its styles, on one device, as many at once as it has lanes for.

    Args:
        styles: to load, by name; each takes 8 MB in float32.
        settings: device, precision and threads.
        gpu_share: the part of a GPU that this process was granted, 0 for none.
        cpu_share: the number of CPUs that this process was granted.
        memory_share: the bytes of host memory that this process was granted, 0 for none.

    Raises:
        DeviceError: if the device is not there, or a GPU was granted that cannot be used.
        StyleError: if a style's file is damaged.
    """

    def __init__(
        self,
        styles: dict[str, InstalledStyle],
        settings: Settings,
        gpu_share: float = 0,
        cpu_share: float = 1,
        memory_share: float = 0,
    ) -> None:
        # Read when the first layer runs.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVE_CACHE_CAPACITY)
        self.device = choose_device(settings.device, gpu_share, torch.cuda.is_available())
        self.precision = choose_precision(settings.precision, self.device)
        if self.device.type == "cuda":
            bound_cuda_memory(gpu_share or 1, settings.cuda_context_bytes)
        self.allocator = running_allocator() if self.device.type == "cpu" else "cuda"
        threads, stack_pixels = 1, None
        if self.device.type == "cpu":
            threads, stack_pixels = count_threads(settings, cpu_share), CPU_STACK_PIXELS
        # All that torch does happens on threads of ours, one for each lane: OpenMP keeps a team for every thread that
        # calls it. Who is alone is always in the first, so that just one team is as large as all threads.
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"lane-{index}") for index in range(threads)]
        self._generators = self._threads[0].submit(self._load, styles).result()
        memory_bytes = settings.memory_bytes or free_memory(self.device, memory_share)
        self.lanes = Lanes(threads, self.precision, self.allocator, memory_bytes, stack_pixels)

    def describe(self) -> str:
        """One line for the log: where and how this replica paints."""
        return (
            f"painting on {self.device.type} in {self.precision}, allocator {self.allocator}, "
            f"budget {self.lanes.memory_bytes / 1e6:,.0f} MB"
        )

    def warm_up(self) -> None:
        """Paints one small picture in every style, so that the first user does not wait for kernels to load."""
        for name in self._generators:
            (outcome,) = self.paint(name, [np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)])
            if isinstance(outcome, Exception):
                raise outcome

    def paint(self, style: str, frames: Sequence[Frame]) -> Outcomes:
        """Paints frames of one size, (H, W, 3) uint8 each, as many at once as pays and the budget holds.

        Returns:
            In order, a painted frame or what kept it from being painted.
        """
        height, width = frames[0].shape[:2]
        painted: dict[int, Outcomes] = {}  # by where they begin
        begun: dict[Future[Outcomes], int] = {}
        at = 0
        while at < len(frames) or begun:
            left = len(frames) - at
            size = self.lanes.fitting(height, width, left, left)
            if left and (size or not begun):
                group = frames[at : at + max(size, 1)]
                begun[self.start(style, group, left)] = at
                at += len(group)
                continue
            for ended in wait(begun, return_when=FIRST_COMPLETED).done:
                painted[begun.pop(ended)] = ended.result()
        return [outcome for first in sorted(painted) for outcome in painted[first]]

    def start(self, style: str, frames: Sequence[Frame], waiting: int) -> "Future[Outcomes]":
        """Begins to paint frames of one size, no more than `lanes.fitting` said, beside what is being painted.

        Args:
            waiting: frames that want to be painted, with these.

        Returns:
            What will be, in order, a painted frame or what kept it from being painted.
        """
        height, width = frames[0].shape[:2]
        lane = self.lanes.enter(height, width, len(frames), waiting)
        if lane is None:
            refused: Future[Outcomes] = Future()
            refused.set_result([self._refusal(height, width)] * len(frames))
            return refused
        return self._threads[lane.index].submit(self._paint_in, lane, style, frames)

    def release(self) -> None:
        """Gives back what painting has left free, when no picture will want it soon."""
        self._threads[0].submit(release_memory)

    def _load(self, styles: dict[str, InstalledStyle]) -> dict[str, StripGenerator]:
        storage, compute = DTYPES[self.precision], compute_dtype(self.precision, self.device)
        return {
            name: StripGenerator(load_generator(style).to(self.device), style.resize, storage, compute)
            for name, style in styles.items()
        }

    def _refusal(self, height: int, width: int) -> TooLargeToPaint:
        needed = planned_bytes(height, width, 1, self.precision, allocator=self.allocator)
        budget = self.lanes.memory_bytes
        side = largest_side(Size(height, width), self.precision, budget, self.allocator)
        return TooLargeToPaint(
            f"Painting {width} x {height} takes {needed / 1e6:,.0f} MB, and {budget / 1e6:,.0f} MB are set "
            f"aside for it here. Ask for max_side={side}, the largest that fits.",
            side,
            max(height, width),
        )

    def _paint_in(self, lane: Lane, style: str, frames: Sequence[Frame]) -> Outcomes:
        try:
            torch.set_num_threads(lane.threads)  # of this thread, and of those to come: said anew each time
            outcomes = self._paint_batch(style, frames, lane.rows)
            for at, outcome in enumerate(outcomes):
                if isinstance(outcome, OutOfMemory) and lane.threads < self.lanes.threads:  # alone there may be enough
                    with self.lanes.alone(lane):
                        torch.set_num_threads(self.lanes.threads)
                        outcomes[at : at + 1] = self._paint_batch(style, [frames[at]], lane.rows)
            return outcomes
        finally:
            self.lanes.leave(lane)

    def _paint_batch(self, style: str, frames: Sequence[Frame], rows: int) -> Outcomes:
        """A batch that fails is halved, down to single frames, so that one bad frame fails alone."""
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
        photos = torch.from_numpy(np.stack(frames)).to(self.device)  # (N, H, W, 3), read-only frames copied by stack
        painted: Frame = self._generators[style].paint(photos, rows).cpu().numpy()
        return painted


def as_request_error(error: Exception) -> Exception:
    """Out of memory becomes the client's 503; anything else is ours and stays what it is."""
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
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # the CPU allocator's own words


def release_memory() -> None:
    """What painting has left free goes back to the system or the card."""
    gc.collect()
    release_free_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_device(device: Device, gpu_share: float, has_cuda: bool) -> torch.device:
    """
    Raises:
        DeviceError: saying what was granted, what is there, and which setting says that the CPU is meant.
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


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return precision


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Convolutions run in 16 bits where the hardware has them: on CUDA, and in bf16 on CPUs with its instructions."""
    if device.type == "cuda" or (precision == "bf16" and torch.cpu._is_avx512_bf16_supported()):
        return DTYPES[precision]
    return torch.float32


def free_memory(device: torch.device, memory_share: float) -> int:
    """What painting may take by default: the rest of the GPU's share, or of the replica's, or half of the machine's."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction()) - torch.cuda.memory_allocated()
    if memory_share:
        return max(int(memory_share) - psutil.Process().memory_info().rss, 0)
    return psutil.virtual_memory().available // 2


def count_threads(settings: Settings, cpu_share: float) -> int:
    if settings.threads == "host":
        # The cores that this process may use, where the system can tell; macOS cannot.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.threads == "share":
        return max(1, int(cpu_share))
    return settings.threads


def bound_cuda_memory(gpu_share: float, context_bytes: int) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(allocator_fraction(gpu_share, total, context_bytes))


def allocator_fraction(gpu_share: float, total_bytes: int, context_bytes: int) -> float:
    """The part of the card that tensors may take: the share less what the CUDA context itself takes outside it.

    Raises:
        DeviceError: if the share does not even hold the context.
    """
    fraction = min(gpu_share, 1.0) - context_bytes / total_bytes
    if fraction <= 0:
        raise DeviceError(
            f"num_gpus {gpu_share:g} of a card of {total_bytes} bytes is less than one CUDA context "
            f"({context_bytes} bytes); raise num_gpus."
        )
    return fraction
