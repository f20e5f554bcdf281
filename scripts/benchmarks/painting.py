"""Time and memory of painting, without a server: the commands start fresh processes and tabulate what these measure."""

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks import plots
from benchmarks.engines import QUEUE_LENGTH, compiled_bf16, exported_model, installed_style, openvino_model
from benchmarks.paths import ROOT
from benchmarks.photographs import VARIED_SIZES, varied_size
from benchmarks.processes import run_module
from benchmarks.reporting import MB, Row, collect, report
from benchmarks.servers import ANIMEGAN
from serve_app.frames import Precision, Size

if TYPE_CHECKING:
    from torch import Tensor

    from serve_app.styles.catalogue import InstalledStyle

GLIBC_TUNED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
ALLOCATORS: dict[str, dict[str, str]] = {
    "glibc": {},
    "glibc tuned": GLIBC_TUNED,
    "tcmalloc": {"LD_PRELOAD": "libtcmalloc_minimal.so.4"},
    "jemalloc": {"LD_PRELOAD": "libjemalloc.so.2"},
    "mimalloc": {"LD_PRELOAD": "libmimalloc.so.2"},
}
RIVALS = ["eager", "eager-nchw", "trace", "compile", "compile-bf16", "onnxruntime", "openvino", "openvino-bf16"]
ENGINES = [*RIVALS, "strips", "strips-fp16", "strips-bf16"]
EXPORTED = {"onnxruntime", "openvino", "openvino-bf16"}
GFLOP_PER_PIXEL = 210.3 / 512**2  # as the layers stand; what fast convolutions leave out counts too
FULL_SIZE, LIMITED_SIZE = Size(1200, 1600), Size(768, 1024)  # of the ladder's photograph
RUNGS = [  # (rung, engine, allocator, size, the article's MB and seconds on a T4 for 1024 x 1024)
    ("original, with gradients", "original", "glibc", FULL_SIZE, "1200 MB, 1.8 s"),
    ("no_grad + eval", "eager-nchw", "glibc", FULL_SIZE, "1000 MB, 1.6 s"),
    ("1024-pixel limit", "eager-nchw", "glibc", LIMITED_SIZE, "800 MB, 1.4 s"),
    ("cache clearing", "clearing", "glibc", LIMITED_SIZE, "750 MB, 1.4 s"),
    ("TorchScript", "trace", "glibc", LIMITED_SIZE, "680 MB, 1.2 s"),
    ("queue, five at once", "queue", "glibc", LIMITED_SIZE, "650 MB, 1.2 s"),
    ("ours: tcmalloc and strips", "strips", "tcmalloc", LIMITED_SIZE, ""),
    ("ours: 16-bit storage", "strips-fp16", "tcmalloc", LIMITED_SIZE, ""),
    ("ours: bf16 arithmetic", "strips-bf16", "tcmalloc", LIMITED_SIZE, ""),
    ("ours, clearing after each", "strips-clearing", "tcmalloc", LIMITED_SIZE, ""),
    ("ours, without the limit", "strips", "tcmalloc", FULL_SIZE, ""),
]
BATCHES = [  # (size, images in the batch)
    (Size(256, 256), 1),
    (Size(256, 256), 4),
    (Size(512, 512), 1),
    (Size(512, 512), 2),
    (Size(768, 1024), 1),
    (Size(1024, 1024), 1),
    (Size(1024, 1024), 3),
    (Size(1536, 2048), 1),
    (Size(2048, 2048), 1),
    (Size(3072, 4096), 1),
]
PLAIN_PIXELS = 4.2e6  # larger batches do not fit in memory without strips
PRECISIONS: list[Precision] = ["fp32", "fp16", "bf16"]
STRIPS: list[tuple[Precision, str]] = [("fp32", "strips"), ("fp16", "strips-fp16")]
STYLISTS: list[tuple[Precision, str]] = [("fp32", "stylist"), ("fp16", "stylist-fp16")]
MIXED: list[tuple[Precision, str]] = [("fp32", "mixed"), ("fp16", "mixed-fp16")]

Figures = dict[str, float]


def measured(
    options: argparse.Namespace,
    engine: str,
    allocator: str,
    size: Size,
    batch: int = 1,
    paintings: int = 3,
    repeats: int | None = None,
) -> Figures:
    """Measures an engine in fresh processes.

    Args:
        options: of the command.
        engine: a key of `engines.ENGINE_MAKERS`.
        allocator: a key of `ALLOCATORS`.
        size: of the images.
        batch: images painted together.
        paintings: of the batch in each process; the first is not timed.
        repeats: processes, by default `--repeats`.

    Returns:
        The medians of the processes: `peak` and `later_peak` in bytes, `wall` and `cpu` in seconds. `most` is the
        largest peak of all. All are NaN if the engine failed.
    """
    arguments: dict[str, object] = {"engine": engine, "style": options.style, "threads": options.threads}
    arguments |= {"scratch": options.scratch, "paintings": paintings, "batch": batch} | size._asdict()
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    results = []
    for _ in range(repeats or options.repeats):
        try:
            results.append(run_module("benchmarks", "measure", *flags, variables=ALLOCATORS[allocator]))
        except RuntimeError as error:
            print(f"  {engine} on {allocator} failed: {error}", file=sys.stderr)
            return dict.fromkeys(("peak", "later_peak", "wall", "cpu", "most"), math.nan)
    medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
    return medians | {"most": max(result["later_peak"] for result in results)}


def predicted_beside_measured(name: str, predicted: int, most: float) -> Row:
    """Returns the columns that hold a predicted peak against the largest one that was measured."""
    return {
        f"{name} MB": round(predicted / MB),
        "measured MB": round(most / MB),
        "over by": f"{(predicted - most) / MB:+.0f} MB, {predicted / most - 1:+.1%}",
    }


# engines


def engines(options: argparse.Namespace) -> None:
    """Every engine on its fastest allocator and on the one with its lowest peak."""
    if EXPORTED & set(options.engines):
        export_model(options)
    rate = convolution_rate(options.threads) / 1e9
    print(f"a large convolution runs at {rate:.0f} GFLOP/s on {options.threads} threads\n")
    every_figure: list[Row] = []
    rows = collect(engine_rows(options, rate, every_figure))
    report(options.out, "engines", rows, all=every_figure, gflops=rate)
    plots.engines(options.out, rows)


def engine_rows(options: argparse.Namespace, rate: float, every_figure: list[Row]) -> Iterator[Row]:
    """Yields a row for each side and engine, and adds the figures of every allocator to `every_figure`.

    At the smallest side one process tries each allocator. From one side to the next, engines are left out that took
    over `--contenders` times the CPU-seconds of the best rival.
    """
    allocators = [name for name in available_allocators() if name in options.allocators]
    sides = sorted(options.sides)
    contenders = {name: try_allocators(options, name, sides[0], allocators) for name in options.engines}
    for side in sides:
        cpu_s = {}
        for engine, chosen in contenders.items():
            tried = successful({name: measured(options, engine, name, Size(side, side)) for name in chosen})
            every_figure += [{"side": side, "engine": engine, "allocator": name} | m for name, m in tried.items()]
            fastest = min(tried, key=lambda name: tried[name]["cpu"])
            lowest = min(tried, key=lambda name: tried[name]["peak"])
            cpu_s[engine] = tried[fastest]["cpu"]
            yield {
                "side": side,
                "engine": engine,
                "CPU-s": tried[fastest]["cpu"],
                "s": tried[fastest]["wall"],
                "on": fastest,
                "its peak MB": round(tried[fastest]["peak"] / MB),
                "lowest peak MB": round(tried[lowest]["peak"] / MB),
                "with": lowest,
                "of the conv rate": GFLOP_PER_PIXEL * side * side / tried[fastest]["wall"] / rate,
            }
        best_s = min((s for engine, s in cpu_s.items() if not plots.is_ours(engine)), default=math.inf)
        contenders = {name: chosen for name, chosen in contenders.items() if cpu_s[name] <= options.contenders * best_s}


def try_allocators(options: argparse.Namespace, engine: str, side: int, allocators: list[str]) -> list[str]:
    """Returns the allocators that an engine is measured on.

    All for plain PyTorch, whose lowest peak ours is compared with; for others the fastest one and the one with the
    lowest peak.
    """
    if engine == "eager":
        return allocators
    tried = successful({name: measured(options, engine, name, Size(side, side), repeats=1) for name in allocators})
    print(f"{engine}, CPU-seconds at {side}: " + ", ".join(f"{n} {f['cpu']:.2f}" for n, f in tried.items()), flush=True)
    return list(dict.fromkeys(min(tried, key=lambda name: tried[name][key]) for key in ("cpu", "most")))


def successful(figures: dict[str, Figures]) -> dict[str, Figures]:
    """Leaves out the engines that failed, whose figures are NaN."""
    return {name: each for name, each in figures.items() if each["peak"] > 0}


def available_allocators() -> list[str]:
    """Returns the allocators whose library the loader finds; for one that it does not find it writes to stderr."""
    found = []
    for name, environment in ALLOCATORS.items():
        check = subprocess.run(["true"], env=os.environ | environment, capture_output=True, text=True)
        if not check.stderr:
            found.append(name)
    return found


def convolution_rate(threads: int) -> float:
    """Returns the FLOP/s of a large convolution of block e's shape, the best of ten: engines are compared with it."""
    import torch

    torch.set_num_threads(threads)
    x = torch.randn(1, 64, 514, 514).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    best_s = math.inf
    with torch.inference_mode():
        for _ in range(10):
            began = time.perf_counter()
            torch.nn.functional.conv2d(x, weight)
            best_s = min(best_s, time.perf_counter() - began)
    return 2 * 512 * 512 * 64 * 64 * 9 / best_s


def export_model(options: argparse.Namespace) -> None:
    """Exports the style to ONNX, if that has not been done yet."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    if not exported_model(options).exists():
        command = [*ANIMEGAN, "export", options.style, "--onnx", str(exported_model(options))]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


# errors


def errors(options: argparse.Namespace) -> None:
    """Differences to plain float32 of ours and of plain runs in 16 bits, and of rivals in bf16."""
    export_model(options)
    report(options.out, "errors", collect(error_rows(options)))


def error_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each side, precision and way of painting."""
    import torch
    from PIL import Image

    from serve_app.engine.checkpoints import load_generator
    from serve_app.engine.fidelity import psnr
    from serve_app.engine.precision import DTYPES

    style = installed_style(options)
    photograph = Image.open(options.photo).convert("RGB")
    for side in options.sides:
        pixels = bytearray(photograph.resize((side, side)).tobytes())
        frames = torch.frombuffer(pixels, dtype=torch.uint8).view(1, side, side, 3)
        x = frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with torch.inference_mode():
            exact = load_generator(style)(x)
        for precision in PRECISIONS:
            dtype = DTYPES[precision]
            outcomes = {f"ours, {precision}": painted_in_strips(style, frames, precision)}
            if precision != "fp32":
                with torch.inference_mode():
                    outcomes[f"plain, {precision}"] = load_generator(style).to(dtype)(x.to(dtype)).float()
            if precision == "bf16":
                outcomes |= painted_by_rivals(options, style, x)
            for name, outcome in outcomes.items():
                error = (outcome - exact).abs()
                yield {
                    "side": side,
                    "run": name,
                    "largest": f"{error.max():.1e}",
                    "mean": f"{error.mean():.1e}",
                    "PSNR of the pixels, dB": f"{psnr(as_pixels(outcome), as_pixels(exact)):.1f}",
                }


def as_pixels(painting: "Tensor") -> "Tensor":
    """Returns a painting on [-1, 1] as it is sent: uint8."""
    import torch

    return ((painting + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def painted_by_rivals(options: argparse.Namespace, style: "InstalledStyle", x: "Tensor") -> dict[str, "Tensor"]:
    """Returns what rivals in bf16 paint of a photograph; both float32 (N, 3, H, W) on [-1, 1]."""
    import torch

    from serve_app.engine.checkpoints import load_generator

    layout = torch.channels_last
    with torch.inference_mode():
        by_torch = compiled_bf16(load_generator(style).to(memory_format=layout))(x.contiguous(memory_format=layout))
    (by_openvino,) = openvino_model(options, "bf16")({"photo": x.numpy()}).values()
    return {"torch.compile, bf16": by_torch, "OpenVINO, bf16": torch.from_numpy(by_openvino)}


def painted_in_strips(style: "InstalledStyle", frames: "Tensor", precision: Precision) -> "Tensor":
    """Returns what our engine paints before it is rounded to pixels: float32 (N, 3, H, W) on [-1, 1]."""
    import torch

    from serve_app.engine.checkpoints import load_generator
    from serve_app.engine.memory import strip_rows
    from serve_app.engine.precision import DTYPES, compute_dtype
    from serve_app.engine.streaming import Frames, StripGenerator

    compute = compute_dtype(precision, torch.device("cpu"))
    strips = StripGenerator(load_generator(style), style.resize, DTYPES[precision], compute)
    painted = torch.empty(frames.shape)

    def sink(row: int, strip: "Tensor") -> None:
        painted[:, row : row + strip.shape[1]] = strip

    height, width = frames.shape[1:3]
    strips.run(Frames(frames), frames, strip_rows(Size(height, width)), sink)
    return painted.permute(0, 3, 1, 2)


# sizes, slots, mixed: what the model of memory predicts


def sizes(options: argparse.Namespace) -> None:
    """Predicted and measured peak, and time, from 256 to 4096 pixels, in batches of 1 to 4, beside the plain run."""
    rows = collect(size_rows(options))
    report(options.out, "sizes", rows)
    plots.sizes(options.out, rows, [size.pixels * batch for size, batch in BATCHES for _ in STRIPS])


def size_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each batch and precision.

    The measured peak is the most that any process took in any of its paintings: a prediction must hold for all.
    """
    from serve_app.engine.memory import MemoryModel

    for (size, batch), (precision, engine) in itertools.product(BATCHES, STRIPS):
        pixels = size.pixels * batch
        ours = measured(options, engine, "tcmalloc", size, batch, paintings=3 if pixels < 2e6 else 1)
        has_plain = precision == "fp32" and pixels <= PLAIN_PIXELS
        plain = measured(options, "eager", "tcmalloc", size, batch, paintings=1) if has_plain else None
        yield {
            "width x height": str(size),
            "batch": batch,
            "precision": precision,
            **predicted_beside_measured("predicted", MemoryModel(precision).peak_bytes(size, batch), ours["most"]),
            "s": ours["wall"],
            "CPU-s": ours["cpu"],
            "plain MB": round(plain["peak"] / MB) if plain else "",
        }


def slots(options: argparse.Namespace) -> None:
    """Images one at a time on all threads, and side by side on a thread each."""
    report(options.out, "slots", collect(slot_rows(options)))


def slot_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each side, precision and number of slots; the peak is the most that any process took."""
    from serve_app.engine.memory import MemoryModel

    counts = 1, options.threads
    for side, (precision, engine), count in itertools.product(options.sides, STYLISTS, counts):
        size = Size(side, side)
        figures = measured(options, engine, "tcmalloc", size, count, options.paintings)
        predicted = MemoryModel(precision).peak_bytes(size, slots=count)
        yield {
            "side": side,
            "precision": precision,
            "at once": count,
            "images a second": count / figures["wall"],
            "CPU-s an image": figures["cpu"] / count,
            **predicted_beside_measured("predicted", predicted, figures["most"]),
        }


def mixed(options: argparse.Namespace) -> None:
    """A stream of images that all have different sizes: planned and measured peak."""
    report(options.out, "mixed", collect(mixed_rows(options)))


def mixed_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each area, precision and number of slots; the peak is the most that any process took."""
    from serve_app.engine.memory import MemoryModel

    counts = 1, options.threads
    for side, (precision, engine), count in itertools.product(options.sides, MIXED, counts):
        square = Size(side, side)
        figures = measured(options, engine, "tcmalloc", square, count, paintings=1)
        varied = [varied_size(square.pixels, number) for number in range(VARIED_SIZES)]
        planned = max(MemoryModel(precision).planned_bytes(size, slots=count) for size in varied)
        yield {
            "pixels of": str(square),
            "precision": precision,
            "at once": count,
            "images a second": VARIED_SIZES / figures["wall"],
            **predicted_beside_measured("planned", planned, figures["most"]),
        }


# ladder


def ladder(options: argparse.Namespace) -> None:
    """One 1600 x 1200 photograph, from the original with gradients to ours, beside the article's figures."""
    rows = collect(ladder_rows(options))
    report(options.out, "ladder", rows)
    plots.ladder(options.out, rows)


def ladder_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each rung; time is for one image."""
    for rung, engine, allocator, size, article in RUNGS:
        figures = measured(options, engine, allocator, size)
        count = QUEUE_LENGTH if engine == "queue" else 1
        yield {
            "rung": rung,
            "painted at": str(size),
            "peak MB": round(figures["later_peak"] / MB) if figures["peak"] > 0 else plots.DOES_NOT_FIT,
            "s": figures["wall"] / count,
            "CPU-s": figures["cpu"] / count,
            "the article, T4": article,
        }
