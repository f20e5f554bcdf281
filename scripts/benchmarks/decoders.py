"""What it costs to decode in processes of their own: `scripts/bench decoders`."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.photographs import photograph
from benchmarks.reporting import MB, Row, report
from serve_app.frames import Size, StylizeRequest
from serve_app.images.decode import decode
from serve_app.images.header import read_header
from serve_app.images.pool import ENVIRONMENT, DecodeLimits, DecoderPool
from serve_app.settings import CodecSettings

REQUEST = StylizeRequest("toon", max_side=1024, multiple=4, format="jpeg")
SETTINGS = CodecSettings()
ALLOCATORS = {
    "as in the decoders": ENVIRONMENT,
    "as in the Codec's config": {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576"},
}


def cpu_ms(process: psutil.Process) -> float:
    """Returns the CPU time of a process, to the nanosecond, which its threads add up to."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


async def compare(data: bytes, count: int) -> Row:
    """Decodes a photograph in this process and in a pool by turns; returns median and least milliseconds of CPU."""
    pool = DecoderPool(SETTINGS.decoder_processes, SETTINGS.memory_bytes)
    limits = DecodeLimits(SETTINGS.max_pixels, SETTINGS.decode_timeout_s)
    server, here = psutil.Process(pool.server.pid), psutil.Process()
    header = read_header(data)
    figures: dict[str, list[float]] = {"in this process": [], "in the pool": []}
    for _ in range(count):
        began = cpu_ms(here)
        decode(data, REQUEST, SETTINGS.max_pixels)
        figures["in this process"].append(cpu_ms(here) - began)
        processes = [here, server, *server.children()]
        began = sum(map(cpu_ms, processes))
        async with pool.decoded(data, header, REQUEST, limits):
            pass
        figures["in the pool"].append(sum(map(cpu_ms, processes)) - began)
    row: Row = {}
    for name, values in figures.items():
        row |= {f"{name}, median ms": median(values), f"{name}, least ms": min(values)}
    pss = sorted(process.memory_full_info().pss / MB for process in [server, *server.children()])
    pool.close()
    return row | {"processes": len(pss), "PSS MB, each": f"{pss[0]:.0f}-{pss[-1]:.0f}", "PSS MB, together": sum(pss)}


def restart_ms() -> float:
    """Returns the milliseconds until another fork server is ready."""
    began = time.perf_counter()
    DecoderPool(1, SETTINGS.memory_bytes).close()
    return 1000 * (time.perf_counter() - began)


def run(options: argparse.Namespace) -> None:
    """Compares decoding in the process of the Codec with decoding in a pool of processes: CPU and memory."""
    data = options.photo.read_bytes() if options.photo else photograph(1, Size(992, 1536), "JPEG")
    if options.here:
        print(json.dumps(asyncio.run(compare(data, options.count)) | {"start ms": restart_ms()}))
        return
    rows = []
    for name, environment in ALLOCATORS.items():
        output = subprocess.check_output(
            [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--here"], env=os.environ | environment, text=True
        )
        rows.append({"bytes": len(data), "allocator of this process": name} | json.loads(output.splitlines()[-1]))
    report(options.out, "decoders", rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--photo", type=Path, help="file to decode; default, a JPEG of 1536 x 992 pixels")
    parser.add_argument("--count", type=int, default=200, help="times that it is decoded in each way")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
