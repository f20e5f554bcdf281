"""Figures, each of fresh processes in one run; `--help` lists the commands.

Peak is the process's VmHWM over its idle VmRSS, once the model is loaded and has painted one 64 x 64 picture. Time is
the median of the paintings after the first, as a service paints many. Each command prints a table, and writes it with
machine, date and command as JSON, and a plot as PNG, under --out.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import ROOT, batching, child_environment, scaling, service
from benchmarks.reporting import MB, print_table, write
from benchmarks.servers import ANIMEGAN

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
JOBS = 5  # of the article's queue
SHAPES = 24  # of a mixed load
RUNGS = [  # (rung, engine, allocator, height, width, the article's MB and seconds on a T4 for 1024 x 1024)
    ("original, with gradients", "original", "glibc", 1200, 1600, "1200 MB, 1.8 s"),
    ("no_grad + eval", "eager-nchw", "glibc", 1200, 1600, "1000 MB, 1.6 s"),
    ("1024-pixel limit", "eager-nchw", "glibc", 768, 1024, "800 MB, 1.4 s"),
    ("cache clearing", "clearing", "glibc", 768, 1024, "750 MB, 1.4 s"),
    ("TorchScript", "trace", "glibc", 768, 1024, "680 MB, 1.2 s"),
    ("queue, five at once", "queue", "glibc", 768, 1024, "650 MB, 1.2 s"),
    ("ours: tcmalloc and strips", "strips", "tcmalloc", 768, 1024, ""),
    ("ours: 16-bit storage", "strips-fp16", "tcmalloc", 768, 1024, ""),
    ("ours: bf16 arithmetic", "strips-bf16", "tcmalloc", 768, 1024, ""),
    ("ours, clearing after each", "strips-clearing", "tcmalloc", 768, 1024, ""),
    ("ours, without the limit", "strips", "tcmalloc", 1200, 1600, ""),
]
ENGINES = ["eager", "eager-nchw", "trace", "compile", "onnxruntime", "openvino", "strips", "strips-fp16", "strips-bf16"]


# In the measured process


def measure(options: argparse.Namespace) -> None:
    """Loads one engine, paints, and prints one line of JSON."""
    import torch

    torch.set_num_threads(options.threads)
    paint = ENGINE_MAKERS[options.engine](options)
    paint(1, 64, 64)
    idle = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    walls, cpus = [], []
    for _ in range(options.paintings):
        wall, cpu = time.perf_counter(), time.process_time()
        paint(options.batch, options.height, options.width)
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
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


Paint = Callable[[int, int, int], None]  # batch, height, width


def frames_of(batch: int, height: int, width: int) -> Any:
    import torch

    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)


def style_of(options: argparse.Namespace) -> Any:
    from serve_app.styles.catalogue import installed_styles

    return installed_styles()[options.style]


def strips_engine(precision: str) -> Callable[[argparse.Namespace], Paint]:
    def make(options: argparse.Namespace) -> Paint:
        import torch

        from serve_app.engine.checkpoints import load_generator
        from serve_app.engine.memory import strip_rows
        from serve_app.engine.streaming import StripGenerator
        from serve_app.engine.stylist import DTYPES, compute_dtype

        style = style_of(options)
        compute = compute_dtype(precision, torch.device("cpu"))  # type: ignore[arg-type]
        strips = StripGenerator(load_generator(style), style.resize, DTYPES[precision], compute)

        def paint(batch: int, height: int, width: int) -> None:
            strips.paint(frames_of(batch, height, width), strip_rows(height, width, batch))

        return paint

    return make


def stylist_of(options: argparse.Namespace, precision: str) -> Any:
    from serve_app.engine.stylist import Stylist
    from serve_app.settings import Settings

    settings = Settings(device="cpu", precision=precision, threads=options.threads)  # type: ignore[arg-type]
    return Stylist({options.style: style_of(options)}, settings)


def stylist_engine(precision: str) -> Callable[[argparse.Namespace], Paint]:
    """What a Stylizer runs: the pictures of a batch side by side."""

    def make(options: argparse.Namespace) -> Paint:
        stylist = stylist_of(options, precision)

        def paint(batch: int, height: int, width: int) -> None:
            check(stylist.paint(options.style, list(frames_of(batch, height, width).numpy())))

        return paint

    return make


def check(outcomes: Iterable[Any]) -> None:
    """Raises what kept a picture from being painted: what fails fast must not pass for fast."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def mixed_engine(precision: str) -> Callable[[argparse.Namespace], Paint]:
    """What a Stylizer goes through: pictures of ever other shapes, so many at once; when one ends, the next begins."""

    def make(options: argparse.Namespace) -> Paint:
        from concurrent.futures import FIRST_COMPLETED, Future, wait

        from serve_app.engine.stylist import WARM_UP_SIDE

        stylist = stylist_of(options, precision)

        def paint(at_once: int, height: int, width: int) -> None:
            if height == WARM_UP_SIDE:  # where a Stylizer is idle
                return stylist.warm_up()
            painting: set[Future[Any]] = set()
            shapes = [shape_like(height * width, number) for number in range(SHAPES)]
            while shapes or painting:
                free = min(at_once - len(painting), len(shapes))
                if free and stylist.lanes.fitting(*shapes[0], free, free):
                    frames = list(frames_of(1, *shapes.pop(0)).numpy())
                    painting.add(stylist.start(options.style, frames, free))
                    continue
                ended, painting = wait(painting, return_when=FIRST_COMPLETED)
                check(outcome for each in ended for outcome in each.result())

        return paint

    return make


def shape_like(pixels: int, number: int) -> tuple[int, int]:
    """Height and width of about so many pixels, between 2 : 1 and 1 : 2, in multiples of 4; each number has its own."""
    ratio = 2 ** (2 * (number * 7 % SHAPES) / (SHAPES - 1) - 1)
    return round((pixels * ratio) ** 0.5 / 4) * 4, round((pixels / ratio) ** 0.5 / 4) * 4


def torch_engine(prepare: Callable[[Any], Any], channels_last: bool = True, grad: bool = False) -> Callable[..., Paint]:
    def make(options: argparse.Namespace) -> Paint:
        import torch

        from serve_app.engine.checkpoints import load_generator

        layout = torch.channels_last if channels_last else torch.contiguous_format
        generator = load_generator(style_of(options)).to(memory_format=layout).requires_grad_(grad)
        model = prepare(generator)

        def paint(batch: int, height: int, width: int) -> None:
            with torch.inference_mode(not grad):
                photo = frames_of(batch, height, width).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
                painted = model(photo.contiguous(memory_format=layout))
                painted.detach().add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)

        return paint

    return make


def traced(generator: Any) -> Any:
    """Traced anew for each size: a trace fixes the size that the two resizes grow to."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    models: dict[Any, Any] = {}

    def run(photo: Any) -> Any:
        if photo.shape not in models:
            models[photo.shape] = torch.jit.optimize_for_inference(torch.jit.trace(generator, photo, check_trace=False))
        return models[photo.shape](photo)

    return run


def compiled(generator: Any) -> Any:
    import torch

    return torch.compile(generator)


def exported(options: argparse.Namespace) -> Path:
    """The style's ONNX file, made once, outside what is measured."""
    return Path(options.scratch) / f"{options.style}.onnx"


def numpy_photo(batch: int, height: int, width: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (batch, 3, height, width), np.uint8).astype(np.float32) / 127.5 - 1


def onnxruntime_engine(options: argparse.Namespace) -> Paint:
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(exported(options), session_options, providers=["CPUExecutionProvider"])
    return lambda *size: session.run(None, {"photo": numpy_photo(*size)})


def openvino_engine(options: argparse.Namespace) -> Paint:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(exported(options), "CPU", hints)
    return lambda *size: model({"photo": numpy_photo(*size)})


def clearing(paint: Paint) -> Paint:
    """The article's ritual: caches are emptied after each inference."""
    from serve_app.engine.stylist import release_memory

    def run(batch: int, height: int, width: int) -> None:
        paint(batch, height, width)
        release_memory()

    return run


def queue(paint: Paint) -> Paint:
    """Five jobs that arrive at once, painted one after another; counted for one picture by `bench_ladder`."""

    def run(batch: int, height: int, width: int) -> None:
        waiting = [frames_of(batch, height, width) for _ in range(JOBS)]
        for _ in waiting:
            paint(batch, height, width)

    return run


ENGINE_MAKERS: dict[str, Callable[[argparse.Namespace], Paint]] = {
    "original": torch_engine(lambda generator: generator, channels_last=False, grad=True),
    "eager": torch_engine(lambda generator: generator),
    "eager-nchw": torch_engine(lambda generator: generator, channels_last=False),
    "trace": torch_engine(traced),
    "compile": torch_engine(compiled),
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "stylist": stylist_engine("fp32"),
    "stylist-fp16": stylist_engine("fp16"),
    "mixed": mixed_engine("fp32"),
    "mixed-fp16": mixed_engine("fp16"),
    "strips": strips_engine("fp32"),
    "strips-fp16": strips_engine("fp16"),
    "strips-bf16": strips_engine("bf16"),
    "strips-clearing": lambda options: clearing(ENGINE_MAKERS["strips"](options)),
    "clearing": lambda options: clearing(ENGINE_MAKERS["eager-nchw"](options)),
    "queue": lambda options: queue(ENGINE_MAKERS["trace"](options)),
}


# In the process that asks


def in_fresh_processes(
    options: argparse.Namespace,
    engine: str,
    allocator: str,
    height: int,
    width: int,
    batch: int = 1,
    paintings: int = 3,
) -> dict[str, float]:
    """Medians of `--repeats` fresh processes, and the `most` that any of them took; NaN where the engine failed."""
    command = [sys.executable, "-m", "benchmarks", "measure", "--engine", engine, "--style", options.style]
    command += ["--threads", str(options.threads), "--scratch", str(options.scratch), "--paintings", str(paintings)]
    command += ["--height", str(height), "--width", str(width), "--batch", str(batch)]
    environment = child_environment() | ALLOCATORS[allocator]
    results = []
    for _ in range(options.repeats):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(
                f"  {engine} on {allocator} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr
            )
            return dict.fromkeys(("peak", "later_peak", "wall", "cpu", "most"), float("nan"))
        results.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
    return medians | {"most": max(result["later_peak"] for result in results)}


def available_allocators() -> list[str]:
    """Those whose library the loader finds; it is silent, but for a line on stderr, about one that it does not."""
    found = []
    for name, environment in ALLOCATORS.items():
        check = subprocess.run(["true"], env=os.environ | environment, capture_output=True, text=True)
        if not check.stderr:
            found.append(name)
    return found


def convolution_rate(threads: int) -> float:
    """FLOP/s of a large convolution of block e's shape, best of ten: what time is held against."""
    import torch

    torch.set_num_threads(threads)
    x = torch.randn(1, 64, 514, 514).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(10):
            began = time.perf_counter()
            torch.nn.functional.conv2d(x, weight)
            best = min(best, time.perf_counter() - began)
    return 2 * 512 * 512 * 64 * 64 * 9 / best


def bench_engines(options: argparse.Namespace) -> None:
    """Every engine on its fastest allocator and on the one with its lowest peak, in fresh processes.

    At the smallest side, one process tries each allocator; plain torch is measured on all of them, since its lowest
    peak is what ours is held against. At larger sides engines are left out that took over `--contenders` times the
    CPU-seconds of the best rival at the side before.
    """
    prepare_onnx(options)
    allocators = [name for name in available_allocators() if name in options.allocators]
    gflop = 210.3 / 512**2  # for each pixel, counted: what fast convolutions leave out counts all the same
    rate = convolution_rate(options.threads) / 1e9
    print(f"a large convolution runs at {rate:.0f} GFLOP/s on {options.threads} threads\n")
    sides = sorted(options.sides)
    engines = {name: try_allocators(options, name, sides[0], allocators) for name in options.engines}
    rows, everything = [], []
    for side in sides:
        for engine, chosen in engines.items():
            measured = painted({name: in_fresh_processes(options, engine, name, side, side) for name in chosen})
            everything += [{"side": side, "engine": engine, "allocator": name} | m for name, m in measured.items()]
            fastest = min(measured, key=lambda name: measured[name]["cpu"])
            lowest = min(measured, key=lambda name: measured[name]["peak"])
            rows.append(
                {
                    "side": side,
                    "engine": engine,
                    "CPU-s": measured[fastest]["cpu"],
                    "s": measured[fastest]["wall"],
                    "on": fastest,
                    "its peak MB": round(measured[fastest]["peak"] / MB),
                    "lowest peak MB": round(measured[lowest]["peak"] / MB),
                    "with": lowest,
                    "of the conv rate": gflop * side * side / measured[fastest]["wall"] / rate,
                }
            )
            print(rows[-1], flush=True)
        best = min(row["CPU-s"] for row in rows if row["side"] == side and not is_ours(row["engine"]))
        slow = [row["engine"] for row in rows if row["side"] == side and row["CPU-s"] > options.contenders * best]
        engines = {name: chosen for name, chosen in engines.items() if name not in slow}
    print()
    print_table(rows)
    write(options, "engines", rows, all=everything, gflops=rate)
    plot_engines(options, rows)


def is_ours(engine: str) -> bool:
    return engine.startswith("strips")


def try_allocators(options: argparse.Namespace, engine: str, side: int, allocators: list[str]) -> list[str]:
    """Those that an engine is measured on: all for plain torch, for others its fastest and that of its lowest peak."""
    if engine == "eager":
        return allocators
    once = argparse.Namespace(**vars(options) | {"repeats": 1})
    tried = painted({name: in_fresh_processes(once, engine, name, side, side) for name in allocators})
    print(f"{engine}, CPU-seconds at {side}: " + ", ".join(f"{n} {f['cpu']:.2f}" for n, f in tried.items()), flush=True)
    return list(dict.fromkeys(min(tried, key=lambda name: tried[name][key]) for key in ("cpu", "most")))


def painted(measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Without those that failed, whose figures are NaN."""
    return {name: figures for name, figures in measured.items() if figures["peak"] > 0}


def bench_errors(options: argparse.Namespace) -> None:
    """The largest and the mean difference to plain float32, on [-1, 1], of ours and of plain runs in 16 bits."""
    import torch
    from PIL import Image

    from serve_app.engine.checkpoints import load_generator
    from serve_app.engine.memory import strip_rows
    from serve_app.engine.streaming import Frames, StripGenerator
    from serve_app.engine.stylist import DTYPES, compute_dtype

    style = style_of(options)
    photo = Image.open(options.photo).convert("RGB")
    rows = []
    for side in options.sides:
        frames = torch.frombuffer(bytearray(photo.resize((side, side)).tobytes()), dtype=torch.uint8)
        frames = frames.view(1, side, side, 3)
        values = frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with torch.inference_mode():
            exact = load_generator(style)(values)
        for precision, dtype in DTYPES.items():
            compute = compute_dtype(precision, torch.device("cpu"))  # type: ignore[arg-type]
            strips = StripGenerator(load_generator(style), style.resize, dtype, compute)
            ours = torch.empty_like(exact).permute(0, 2, 3, 1)

            def sink(at: int, strip: Any, into: Any = ours) -> None:
                into[:, at : at + strip.shape[1]] = strip

            strips.run(Frames(frames), frames, strip_rows(side, side, 1), sink)
            outcomes = {f"ours, {precision}": ours.permute(0, 3, 1, 2)}
            if precision != "fp32":
                with torch.inference_mode():
                    outcomes[f"plain, {precision}"] = load_generator(style).to(dtype)(values.to(dtype)).float()
            for name, outcome in outcomes.items():
                error = (outcome - exact).abs()
                row = {"side": side, "run": name, "largest": f"{error.max():.1e}", "mean": f"{error.mean():.1e}"}
                rows.append(row)
                print(row, flush=True)
    print()
    print_table(rows)
    write(options, "errors", rows)


def plot_engines(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(options.sides), figsize=(6 * len(options.sides), 4.5), squeeze=False)
    for axis, side in zip(axes[0], options.sides, strict=True):
        group = [row for row in rows if row["side"] == side]
        widest, highest = (max(row[key] for row in group) for key in ("CPU-s", "its peak MB"))
        for row in group:
            x, y = row["CPU-s"], row["its peak MB"]
            axis.scatter(x, y, color="tab:red" if is_ours(row["engine"]) else "tab:blue")
            # A label stands at the right, unless it would cover another point.
            is_near = any(0 < r["CPU-s"] - x < widest / 4 and abs(r["its peak MB"] - y) < highest / 18 for r in group)
            place: dict[str, Any] = {"xytext": (-7, -4), "ha": "right"} if is_near else {"xytext": (7, -4)}
            axis.annotate(row["engine"], (x, y), textcoords="offset points", **place)
        axis.set(title=f"{side} x {side}", xlabel="CPU-seconds a picture", ylabel="peak over idle, MB")
        axis.set_xlim(0, 1.3 * widest)
        axis.set_ylim(0, 1.1 * highest)
    figure.tight_layout()
    figure.savefig(options.out / "engines.png", dpi=110)


def bench_sizes(options: argparse.Namespace) -> None:
    """Predicted and measured peak, and time, from 256 to 4096 pixels, batches 1 to 4, beside the plain run.

    Measured is the most that any of the processes took in any of its paintings: a prediction must hold for all.
    """
    from serve_app.engine.memory import predict_peak_bytes

    shapes = [(256, 256, 1), (256, 256, 4), (512, 512, 1), (512, 512, 2), (768, 1024, 1), (1024, 1024, 1)]
    shapes += [(1024, 1024, 3), (1536, 2048, 1), (2048, 2048, 1), (3072, 4096, 1)]
    rows = []
    for height, width, batch in shapes:
        for precision, engine in (("fp32", "strips"), ("fp16", "strips-fp16")):
            paintings = 3 if height * width * batch < 2e6 else 1
            ours = in_fresh_processes(options, engine, "tcmalloc", height, width, batch, paintings)
            predicted = predict_peak_bytes(height, width, batch, precision)  # type: ignore[arg-type]
            row = {
                "width x height": f"{width} x {height}",
                "batch": batch,
                "precision": precision,
                "predicted MB": round(predicted / MB),
                "measured MB": round(ours["most"] / MB),
                "over by": f"{(predicted - ours['most']) / MB:+.0f} MB, {predicted / ours['most'] - 1:+.1%}",
                "s": ours["wall"],
                "CPU-s": ours["cpu"],
            }
            is_plain_run_possible = precision == "fp32" and height * width * batch <= 4.2e6
            plain = (
                in_fresh_processes(options, "eager", "tcmalloc", height, width, batch, 1)
                if is_plain_run_possible
                else {}
            )
            row["plain MB"] = round(plain["peak"] / MB) if plain else ""
            rows.append(row)
            print(row, flush=True)
    print()
    print_table(rows)
    write(options, "sizes", rows)
    plot_sizes(options, rows, shapes)


def bench_lanes(options: argparse.Namespace) -> None:
    """Pictures one at a time on all threads, and side by side on a thread each; the most that any process took."""
    from serve_app.engine.memory import predict_peak_bytes

    rows = []
    for side, (precision, engine), count in itertools.product(
        options.sides, (("fp32", "stylist"), ("fp16", "stylist-fp16")), (1, options.threads)
    ):
        figures = in_fresh_processes(options, engine, "tcmalloc", side, side, count, options.paintings)
        predicted = predict_peak_bytes(side, side, 1, precision, lanes=count)  # type: ignore[arg-type]
        row = {
            "side": side,
            "precision": precision,
            "at once": count,
            "pictures a second": count / figures["wall"],
            "CPU-s a picture": figures["cpu"] / count,
            "predicted MB": round(predicted / MB),
            "measured MB": round(figures["most"] / MB),
            "over by": f"{(predicted - figures['most']) / MB:+.0f} MB, {predicted / figures['most'] - 1:+.1%}",
        }
        rows.append(row)
        print(row, flush=True)
    print()
    print_table(rows)
    write(options, "lanes", rows)


def bench_mixed(options: argparse.Namespace) -> None:
    """A stream of pictures of ever other shapes: planned with and measured peak; the most that any process took."""
    from serve_app.engine.memory import planned_bytes

    rows = []
    for side, (precision, engine), count in itertools.product(
        options.sides, (("fp32", "mixed"), ("fp16", "mixed-fp16")), (1, options.threads)
    ):
        figures = in_fresh_processes(options, engine, "tcmalloc", side, side, count, 1)
        planned = max(
            planned_bytes(*shape_like(side * side, number), 1, precision, lanes=count)  # type: ignore[arg-type]
            for number in range(SHAPES)
        )
        row = {
            "pixels of": f"{side} x {side}",
            "precision": precision,
            "at once": count,
            "pictures a second": SHAPES / figures["wall"],
            "planned MB": round(planned / MB),
            "measured MB": round(figures["most"] / MB),
            "over by": f"{(planned - figures['most']) / MB:+.0f} MB, {planned / figures['most'] - 1:+.1%}",
        }
        rows.append(row)
        print(row, flush=True)
    print()
    print_table(rows)
    write(options, "mixed", rows)


def plot_sizes(options: argparse.Namespace, rows: list[dict[str, Any]], shapes: list[tuple[int, int, int]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    megapixels = {(f"{w} x {h}", b): h * w * b / 1e6 for h, w, b in shapes}
    figure, axis = plt.subplots(figsize=(7, 5))
    for precision, colour in (("fp32", "tab:red"), ("fp16", "tab:orange")):
        chosen = [row for row in rows if row["precision"] == precision]
        x = [megapixels[row["width x height"], row["batch"]] for row in chosen]
        axis.plot(x, [row["measured MB"] for row in chosen], "o", color=colour, label=f"strips, {precision}: measured")
        axis.plot(x, [row["predicted MB"] for row in chosen], "_", color=colour, markersize=14, label="predicted")
    plain = [row for row in rows if row["plain MB"]]
    x = [megapixels[row["width x height"], row["batch"]] for row in plain]
    axis.plot(x, [row["plain MB"] for row in plain], "s", color="tab:blue", label="plain run, fp32")
    axis.set(xscale="log", yscale="log", xlabel="megapixels in the batch", ylabel="peak over idle, MB")
    axis.legend()
    figure.tight_layout()
    figure.savefig(options.out / "sizes.png", dpi=110)


def bench_ladder(options: argparse.Namespace) -> None:
    """One 1600 x 1200 photograph, from the original with gradients to ours, beside the article's figures."""
    rows = []
    for rung, engine, allocator, height, width, article in RUNGS:
        figures = in_fresh_processes(options, engine, allocator, height, width)
        jobs = JOBS if engine == "queue" else 1
        row = {
            "rung": rung,
            "painted at": f"{width} x {height}",
            "peak MB": round(figures["later_peak"] / MB) if figures["peak"] > 0 else "does not fit",
            "s": figures["wall"] / jobs,
            "CPU-s": figures["cpu"] / jobs,
            "the article, T4": article,
        }
        rows.append(row)
        print(row, flush=True)
    print()
    print_table(rows)
    write(options, "ladder", rows)
    plot_ladder(options, rows)


def plot_ladder(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    names = [f"{row['rung']} ({row['painted at']})" for row in rows]
    colours = ["tab:red" if name.startswith("ours") else "tab:blue" for name in names]
    left.barh(names, [row["peak MB"] if row["peak MB"] != "does not fit" else 0 for row in rows], color=colours)
    right.barh(names, [row["s"] for row in rows], color=colours)
    left.set(xlabel="peak over idle, MB")
    left.locator_params(axis="x", nbins=5)
    right.set(xlabel="seconds")
    left.invert_yaxis()
    figure.tight_layout()
    figure.savefig(options.out / "ladder.png", dpi=110)


def bench_profile(options: argparse.Namespace) -> None:
    """Where one painting's time and memory go: torch.profiler, tracemalloc, and on CUDA a memory snapshot."""
    import tracemalloc

    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(options.threads)
    paint = ENGINE_MAKERS[options.engine](options)
    size = 1, options.side, options.side
    paint(*size)
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.memory._record_memory_history()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if has_cuda else [])
    with profile(activities=activities, profile_memory=True) as profiled:
        paint(*size)
    averages = profiled.key_averages()
    print(averages.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))
    options.out.mkdir(parents=True, exist_ok=True)
    profiled.export_chrome_trace(str(options.out / "trace.json"))
    tracemalloc.start()
    paint(*size)
    _, peak = tracemalloc.get_traced_memory()
    print(f"Python objects and NumPy arrays of one painting: {peak / MB:.1f} MB at most; the largest:")
    for line in tracemalloc.take_snapshot().statistics("lineno")[:5]:
        print(f"  {line}")
    if has_cuda:
        torch.cuda.memory._dump_snapshot(str(options.out / "cuda-memory.pickle"))
        print(f"CUDA memory: {options.out / 'cuda-memory.pickle'}, for pytorch.org/memory_viz")
    else:
        print("CUDA memory: no CUDA device here")
    print(f"the trace, for chrome://tracing or Perfetto: {options.out / 'trace.json'}")


def bench_soak(options: argparse.Namespace) -> None:
    """Mixed sizes, formats and aborted uploads through the real service; the private memory of each process."""
    from benchmarks.soak import Soak, slopes

    soak = Soak(options.requests, options.scratch)
    soak.run()
    print(dict(soak.outcomes))
    figures = slopes(soak.samples)
    rows = [
        {
            "process": name,
            "first MB": round(soak.samples[0][name] / MB),
            "last MB": round(soak.samples[-1][name] / MB),
            "most MB": round(max(sample[name] for sample in soak.samples) / MB),
            "last quarter, MB per 100 requests": slope,
        }
        for name, slope in figures.items()
    ]
    print_table(rows)
    write(options, "soak", rows, outcomes=dict(soak.outcomes), samples=soak.samples)
    plot_soak(options, soak.samples, list(figures))


def plot_soak(options: argparse.Namespace, samples: list[dict[str, Any]], names: list[str]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.5))
    for name in names:
        axis.plot([s["requests"] for s in samples], [s[name] / MB for s in samples], label=name)
    axis.set(xlabel="requests", ylabel="private memory, MB", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    figure.savefig(options.out / "soak.png", dpi=110)


def prepare_onnx(options: argparse.Namespace) -> None:
    options.scratch.mkdir(parents=True, exist_ok=True)
    if {"onnxruntime", "openvino"} & set(options.engines) and not exported(options).exists():
        command = [*ANIMEGAN, "export", options.style, "--onnx", str(exported(options))]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=run.__doc__)
        made.set_defaults(run=run)
        made.add_argument("--style", default="toon")
        made.add_argument("--threads", type=int, default=os.cpu_count())
        made.add_argument("--repeats", type=int, default=5, help="fresh processes for each figure")
        made.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
        made.add_argument("--scratch", type=Path, default=ROOT / "runs" / "bench")
        return made

    engines = command("engines", bench_engines)
    engines.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    engines.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    engines.add_argument("--allocators", nargs="+", default=list(ALLOCATORS), choices=list(ALLOCATORS))
    engines.add_argument("--contenders", type=float, default=1.5, help="times the best rival's CPU-seconds, at most")
    errors = command("errors", bench_errors)
    errors.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    errors.add_argument("--photo", type=Path, default=ROOT / "serve_app" / "web" / "page" / "samples" / "photo.jpg")
    command("sizes", bench_sizes)
    lanes = command("lanes", bench_lanes)
    lanes.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    lanes.add_argument("--paintings", type=int, default=4, help="of a batch in each process; the first is not timed")
    command("mixed", bench_mixed).add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    command("ladder", bench_ladder)
    profiled = command("profile", bench_profile)
    profiled.set_defaults(out=ROOT / "runs" / "profile")
    profiled.add_argument("--engine", default="strips", choices=list(ENGINE_MAKERS))
    profiled.add_argument("--side", type=int, default=512)
    command("soak", bench_soak).add_argument("--requests", type=int, default=2000)
    for name, module in (("batching", batching), ("service", service), ("scaling", scaling)):
        module.add_arguments(command(name, module.run))
    child = command("measure", measure)
    child.add_argument("--engine", required=True, choices=list(ENGINE_MAKERS))
    for name in ("height", "width", "batch", "paintings"):
        child.add_argument(f"--{name}", type=int, default=1)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
