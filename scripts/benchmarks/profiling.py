"""Where the time and the memory of one painting go: `scripts/bench profile`."""

import argparse
from typing import Any

from benchmarks.engines import ENGINE_MAKERS
from benchmarks.reporting import MB
from serve_app.frames import Size


def profile(options: argparse.Namespace) -> None:
    """Where one painting's time and memory go: torch.profiler, tracemalloc, and on CUDA a memory snapshot."""
    import tracemalloc

    import torch
    from torch.profiler import ProfilerActivity

    torch.set_num_threads(options.threads)
    paint = ENGINE_MAKERS[options.engine](options)
    size = Size(options.side, options.side)
    paint(1, size)
    cuda_memory: Any = torch.cuda.memory if torch.cuda.is_available() else None  # its recorder is private and untyped
    if cuda_memory:
        cuda_memory._record_memory_history()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda_memory else [])
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        paint(1, size)
    averages = profiled.key_averages()
    print(averages.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))
    options.out.mkdir(parents=True, exist_ok=True)
    trace = options.out / "trace.json"
    profiled.export_chrome_trace(str(trace))
    tracemalloc.start()
    paint(1, size)
    _, peak = tracemalloc.get_traced_memory()
    print(f"Python objects and NumPy arrays of one painting: {peak / MB:.1f} MB at most; the largest:")
    for line in tracemalloc.take_snapshot().statistics("lineno")[:5]:
        print(f"  {line}")
    if cuda_memory:
        snapshot = options.out / "cuda-memory.pickle"
        cuda_memory._dump_snapshot(str(snapshot))
        print(f"CUDA memory: {snapshot}, for pytorch.org/memory_viz")
    else:
        print("CUDA memory: no CUDA device here")
    print(f"the trace, for chrome://tracing or Perfetto: {trace}")
