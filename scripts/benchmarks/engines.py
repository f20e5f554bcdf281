"""Engines that paint, each measured in a process of its own: `python -m benchmarks measure --engine NAME`."""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.photographs import VARIED_SIZES, varied_size
from serve_app.frames import Frame, Precision, Size

if TYPE_CHECKING:  # a measured process imports only what its engine needs
    from torch import Tensor

    from serve_app.engine.generator import Generator
    from serve_app.styles.catalogue import InstalledStyle

QUEUE_LENGTH = 5  # requests that the article sends at once
UNLIMITED_SIDE = 1 << 16  # pixels: no image is made smaller

Paint = Callable[[int, Size], None]  # paints a batch of so many images of one size
MakeEngine = Callable[[argparse.Namespace], Paint]


def measure(options: argparse.Namespace) -> None:
    """Loads one engine, paints with it, and prints its peak and times as a line of JSON."""
    import torch

    torch.set_num_threads(options.threads)
    paint = ENGINE_MAKERS[options.engine](options)
    paint(1, Size(64, 64))
    idle = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    walls, cpus = [], []
    for _ in range(options.paintings):
        wall, cpu = time.perf_counter(), time.process_time()
        paint(options.batch, Size(options.height, options.width))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if len(walls) == 1:
            peak = status_bytes("VmHWM") - idle
    timed = slice(1, None) if len(walls) > 1 else slice(None)  # the first one also maps memory, or compiles
    result = {
        "peak": peak,
        # Linux counts pages per CPU and adds them up roughly: a mark read later can be some pages lower.
        "later_peak": max(peak, status_bytes("VmHWM") - idle),
        "wall": statistics.median(walls[timed]),
        "cpu": statistics.median(cpus[timed]),
    }
    print(json.dumps(result))


def status_bytes(key: str) -> int:
    """Returns a figure of this process from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


# What engines paint


def random_frames(batch: int, size: Size) -> "Tensor":
    """Returns random pixels, uint8 (N, H, W, 3)."""
    import torch

    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8)


def random_planes(batch: int, size: Size) -> Any:
    """Returns random pixels as an exported generator takes them: float32 (N, 3, H, W) from -1 to 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, *size), np.uint8)
    return pixels.astype(np.float32) / 127.5 - 1


def installed_style(options: argparse.Namespace) -> "InstalledStyle":
    """Returns the style that `--style` names."""
    from serve_app.styles.catalogue import installed_styles

    return installed_styles()[options.style]


# Ours


def strips_engine(precision: Precision) -> MakeEngine:
    """Makes the generator in strips, without anything around it."""

    def make(options: argparse.Namespace) -> Paint:
        import torch

        from serve_app.engine.checkpoints import load_generator
        from serve_app.engine.memory import strip_rows
        from serve_app.engine.precision import DTYPES, compute_dtype
        from serve_app.engine.streaming import StripGenerator

        style = installed_style(options)
        compute = compute_dtype(precision, torch.device("cpu"))
        strips = StripGenerator(load_generator(style), style.resize, DTYPES[precision], compute)

        def paint(batch: int, size: Size) -> None:
            strips.paint(random_frames(batch, size), strip_rows(size, batch))

        return paint

    return make


def stylist_engine(precision: Precision) -> MakeEngine:
    """Makes a Painter, which paints the images of a batch side by side with a Stylizer's engine."""

    def make(options: argparse.Namespace) -> Paint:
        from serve_app.painter import Painter

        painter = Painter(options.style, precision, "cpu", max_side=UNLIMITED_SIDE, threads=options.threads)

        def paint(batch: int, size: Size) -> None:
            for _ in painter.paint_many(random_frames(batch, size).numpy()):
                pass

        return paint

    return make


def mixed_engine(precision: Precision) -> MakeEngine:
    """Makes a Stylizer's engine that paints images of many sizes, the batch's number at once.

    As in a Stylizer, the next image starts when one ends.
    """

    def make(options: argparse.Namespace) -> Paint:
        from serve_app.engine.stylist import WARM_UP_SIDE, Stylist
        from serve_app.settings import Settings

        settings = Settings(device="cpu", precision=precision, threads=options.threads)
        stylist = Stylist({options.style: installed_style(options)}, settings)

        def paint(at_once: int, size: Size) -> None:
            if size.height == WARM_UP_SIDE:  # `measure` asks for the state of an idle Stylizer
                return stylist.warm_up()
            painting: set[Future[list[Frame | Exception]]] = set()
            sizes = [varied_size(size.pixels, number) for number in range(VARIED_SIZES)]
            while sizes or painting:
                waiting = min(at_once - len(painting), len(sizes))
                slot = stylist.reserve(options.style, sizes[0], 1, waiting, waiting) if waiting else None
                if slot is not None:
                    frames = list(random_frames(1, sizes.pop(0)).numpy())
                    painting.add(stylist.start(slot, options.style, frames))
                    continue
                ended, painting = wait(painting, return_when=FIRST_COMPLETED)
                for future in ended:
                    raise_failures(future.result())

        return paint

    return make


def raise_failures(outcomes: Iterable[Frame | Exception]) -> None:
    """Raises the first error among the outcomes: an image that failed took too little time to count."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


# The generator in PyTorch


def torch_engine(prepare: Callable[["Generator"], Any], channels_last: bool = True, grad: bool = False) -> MakeEngine:
    """Makes the whole generator in PyTorch.

    Args:
        prepare: returns what is called in place of the generator.
        channels_last: the memory layout of weights and images.
        grad: record what a backward pass would need.
    """

    def make(options: argparse.Namespace) -> Paint:
        import torch

        from serve_app.engine.checkpoints import load_generator

        layout = torch.channels_last if channels_last else torch.contiguous_format
        generator = load_generator(installed_style(options)).to(memory_format=layout).requires_grad_(grad)
        model = prepare(generator)

        def paint(batch: int, size: Size) -> None:
            with torch.inference_mode(not grad):
                x = random_frames(batch, size).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
                painted = model(x.contiguous(memory_format=layout))
                painted.detach().add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)

        return paint

    return make


def traced(generator: "Generator") -> Callable[["Tensor"], Any]:
    """Returns the generator in TorchScript, traced anew for each size: a trace fixes the sizes of the two resizes."""
    import torch

    warnings.simplefilter("ignore")
    models: dict[Any, Any] = {}
    trace: Callable[..., Any] = torch.jit.trace  # PyTorch leaves it untyped

    def run(x: "Tensor") -> Any:
        if x.shape not in models:
            models[x.shape] = torch.jit.optimize_for_inference(trace(generator, x, check_trace=False))
        return models[x.shape](x)

    return run


def compiled(generator: "Generator") -> Any:
    """Returns the generator, compiled by `torch.compile`."""
    import torch

    return torch.compile(generator)


def compiled_bf16(generator: "Generator") -> Callable[["Tensor"], "Tensor"]:
    """Returns the generator, compiled by `torch.compile`, with its convolutions in bf16 by autocast."""
    import torch

    model = compiled(generator)

    def run(x: "Tensor") -> "Tensor":
        with torch.autocast("cpu", torch.bfloat16):
            painted: Tensor = model(x)
        return painted.float()

    return run


def cache_clearing(paint: Paint) -> Paint:
    """Empties all caches after each painting, as the article does."""
    from serve_app.engine.stylist import release_memory

    def run(batch: int, size: Size) -> None:
        paint(batch, size)
        release_memory()

    return run


def queue(paint: Paint) -> Paint:
    """Paints `QUEUE_LENGTH` requests that arrive at once, one after another; the caller divides the time by them."""

    def run(batch: int, size: Size) -> None:
        waiting = [random_frames(batch, size) for _ in range(QUEUE_LENGTH)]
        for _ in waiting:
            paint(batch, size)

    return run


# The generator in other runtimes


def exported_model(options: argparse.Namespace) -> Path:
    """Returns the path of the style's ONNX file, which is made before anything is measured."""
    return Path(options.scratch) / f"{options.style}.onnx"


def onnxruntime_engine(options: argparse.Namespace) -> Paint:
    """Makes the exported generator in ONNX Runtime."""
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(exported_model(options), session_options, providers=["CPUExecutionProvider"])
    return lambda batch, size: session.run(None, {"photo": random_planes(batch, size)})


def openvino_model(options: argparse.Namespace, precision: str) -> Any:
    """Returns the exported generator in OpenVINO, which ignores the precision bf16 on CPUs that do not have it."""
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    return openvino.Core().compile_model(exported_model(options), "CPU", hints)


def openvino_engine(precision: str) -> MakeEngine:
    """Makes the exported generator in OpenVINO."""

    def make(options: argparse.Namespace) -> Paint:
        model = openvino_model(options, precision)
        return lambda batch, size: model({"photo": random_planes(batch, size)})

    return make


ENGINE_MAKERS: dict[str, MakeEngine] = {
    "original": torch_engine(lambda generator: generator, channels_last=False, grad=True),
    "eager": torch_engine(lambda generator: generator),
    "eager-nchw": torch_engine(lambda generator: generator, channels_last=False),
    "trace": torch_engine(traced),
    "compile": torch_engine(compiled),
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine("f32"),
    "compile-bf16": torch_engine(compiled_bf16),
    "openvino-bf16": openvino_engine("bf16"),
    "stylist": stylist_engine("fp32"),
    "stylist-fp16": stylist_engine("fp16"),
    "mixed": mixed_engine("fp32"),
    "mixed-fp16": mixed_engine("fp16"),
    "strips": strips_engine("fp32"),
    "strips-fp16": strips_engine("fp16"),
    "strips-bf16": strips_engine("bf16"),
    "strips-clearing": lambda options: cache_clearing(ENGINE_MAKERS["strips"](options)),
    "clearing": lambda options: cache_clearing(ENGINE_MAKERS["eager-nchw"](options)),
    "queue": lambda options: queue(ENGINE_MAKERS["trace"](options)),
}
