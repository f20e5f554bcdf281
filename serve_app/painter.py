"""The Python API: photographs in, paintings out, in this process and without Ray."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.engine.stylist import Stylist, has_cuda
from serve_app.errors import RequestError, TooLargeToPaint
from serve_app.frames import DecodedImage, Device, Frame, Precision, StylizeRequest
from serve_app.images.decode import decode, prepare
from serve_app.images.encode import with_alpha
from serve_app.settings import CodecSettings, Settings, load_settings
from serve_app.styles.catalogue import find_style, installed_styles, read_catalogue

LOOKAHEAD = 8  # images decoded but not yet painted, and images painted at once: enough for batches, little memory

Source = Image.Image | str | PathLike[str] | bytes | NDArray[np.uint8]


@dataclass(eq=False)
class Job:
    """One image of `Painter.paint_many`, from its decoding to its result."""

    image: DecodedImage | None = None
    result: Image.Image | Exception | None = None


class Painter:
    """Paints images in one style. It holds the model until it is closed, and is used from one thread.

        with Painter() as painter:
            painter.paint("photo.jpg").save("painted.jpg")

    Args:
        style: name of an installed style; `animegan styles list` shows them.
        precision: of the generator: auto (the fastest that paints like fp32), fp32, fp16 or bf16.
        device: auto (CUDA where there is a GPU), cpu or cuda.
        max_side: larger images are fitted to this longer side, in pixels.
        memory_bytes: the most that painting may add to this process; default, half of what is free.
        threads: of the generator on a CPU; default, all cores.
        gpu_share: the part of the GPU's memory that this process may take.

    Raises:
        UnknownStyle: if the style is not installed.
        DeviceError: if the device is not there.
        SettingsError: naming an argument with a wrong value.
    """

    def __init__(
        self,
        style: str = "cel",
        precision: Precision = "auto",
        device: Device = "auto",
        max_side: int = 1024,
        memory_bytes: int | None = None,
        threads: int | Literal["host"] = "host",
        gpu_share: float = 1,
    ) -> None:
        chosen = find_style(installed_styles(), style, read_catalogue())
        values = {"precision": precision, "device": device, "threads": threads, "memory_bytes": memory_bytes}
        settings = load_settings(Settings, values, "Painter")
        self.stylist = Stylist({style: chosen}, settings, gpu_share=gpu_share if has_cuda() else 0)
        self.request = StylizeRequest(style, max_side, chosen.multiple, "png")

    def paint(self, image: Source) -> Image.Image:
        """Paints one image.

        Args:
            image: a PIL image, a path, the bytes of an image file, or a uint8 array (H, W, 3) in sRGB.

        Returns:
            A PIL image, RGBA where the image has transparency, else RGB.

        Raises:
            RequestError: if it cannot be decoded, or is too small or too large to paint.
            OSError: if the file cannot be read.
        """
        (painting,) = self.paint_many([image])
        return painting

    @overload
    def paint_many(self, images: Iterable[Source]) -> Iterator[Image.Image]: ...
    @overload
    def paint_many(
        self, images: Iterable[Source], return_errors: Literal[True]
    ) -> Iterator[Image.Image | Exception]: ...
    def paint_many(self, images: Iterable[Source], return_errors: bool = False) -> Iterator[Image.Image | Exception]:
        """Paints many images, several at a time; yields the paintings in the order of the images.

        Only a few images are held at a time, so `images` may be a generator over any number.

        Args:
            images: each as for `paint`.
            return_errors: yield the error of an image that cannot be painted in its place, and go on. Otherwise it is
                raised.
        """
        unread = iter(images)
        jobs: deque[Job] = deque()  # in order, from the next one to be yielded
        waiting: deque[Job] = deque()  # those of them that are decoded and not yet started
        running: dict[Future[list[Frame | Exception]], list[Job]] = {}
        try:
            while True:
                for source in itertools.islice(unread, LOOKAHEAD - len(waiting)):
                    jobs.append(self._decoded(source))
                    if jobs[-1].image is not None:
                        waiting.append(jobs[-1])
                if not jobs:
                    return
                while waiting and self._start_batch(waiting, running):
                    pass
                while jobs and (result := jobs[0].result) is not None:
                    if isinstance(result, Exception) and not return_errors:
                        raise result
                    jobs.popleft()
                    yield result
                if jobs and jobs[0].result is None:
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        finish(running.pop(ended), ended.result())
        finally:
            wait(running)  # an error or an abandoned iterator: nothing may still paint when this returns

    def close(self) -> None:
        """Frees the model and all memory that painting has taken."""
        self.stylist.close()

    def __enter__(self) -> "Painter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _decoded(self, source: Source) -> Job:
        try:
            return Job(image=self._decode(source))
        except (RequestError, OSError) as error:
            return Job(result=error)

    def _decode(self, source: Source) -> DecodedImage:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                raise ValueError(f"an array must be uint8 (H, W, 3), not {source.dtype} {source.shape}")
            source = Image.fromarray(source)
        if isinstance(source, Image.Image):
            return prepare(source.copy(), self.request.max_side, self.request.multiple)  # decoding may change it
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return decode(data, self.request, CodecSettings().max_pixels)

    def _start_batch(self, waiting: deque[Job], running: dict[Future[list[Frame | Exception]], list[Job]]) -> bool:
        """Starts the first waiting image and others of its size; returns False if the device has no room now."""
        room = LOOKAHEAD - sum(map(len, running.values()))
        size = image_of(waiting[0]).size
        same_size = [job for job in waiting if image_of(job).size == size]
        try:
            style = self.request.style
            slot = self.stylist.reserve(style, size, len(same_size), len(waiting), room) if room > 0 else None
        except TooLargeToPaint as refusal:
            finish([waiting.popleft()], [refusal])
            return True
        if slot is None:
            return False
        batch = same_size[: slot.count]
        for job in batch:
            waiting.remove(job)
        frames = [image_of(job).frame for job in batch]
        running[self.stylist.start(slot, self.request.style, frames)] = batch
        return True


def image_of(job: Job) -> DecodedImage:
    """Returns the decoded image of a job that has one."""
    assert job.image is not None
    return job.image


def finish(batch: list[Job], outcomes: Iterable[Frame | Exception]) -> None:
    """Stores the outcome of each job in a batch, and lets go of its decoded image."""
    for job, outcome in zip(batch, outcomes, strict=True):
        alpha = image_of(job).alpha
        job.result = outcome if isinstance(outcome, Exception) else with_alpha(outcome, alpha)
        job.image = None
