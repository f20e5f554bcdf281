"""Damaged copies of image files, thousands of them, against the processes that decode: `scripts/bench mutations`."""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paths import ROOT
from benchmarks.reporting import Row, print_table, write_json
from serve_app.errors import RequestError
from serve_app.frames import StylizeRequest
from serve_app.images import decoder_process, pool
from serve_app.images.header import ImageHeader, read_header
from serve_app.images.messages import DecodeTask, receive, send
from serve_app.settings import CodecSettings

FOLDERS = ["photos", "bad", "cases"]
REQUEST = StylizeRequest("toon", max_side=1024, multiple=4, format="jpeg")
SETTINGS = CodecSettings()
ACROSS = 6  # decodes at a time
MEASURE_S = 10  # CPU that one measured decode may take
SHOW_EVERY = 1000
NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF]  # at which decoders go wrong
HEADER_BYTES = 600  # half of all damage is done here

Mutation = Callable[[bytearray, random.Random], bytearray]


def place(data: bytearray, chance: random.Random) -> int:
    """Returns a place to do damage at."""
    end = len(data) if chance.random() < 0.5 else min(len(data), HEADER_BYTES)
    return chance.randrange(max(end, 1))


def set_bytes(data: bytearray, chance: random.Random) -> bytearray:
    """Sets a few bytes to random values."""
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        data[place(data, chance)] = chance.randrange(256)
    return data


def set_number(data: bytearray, chance: random.Random) -> bytearray:
    """Overwrites a number of 16 or 32 bits with one that is large, negative or zero."""
    start, size = place(data, chance), chance.choice([2, 4])
    number = chance.choice(NUMBERS) & (1 << 8 * size) - 1
    data[start : start + size] = number.to_bytes(size, chance.choice(["big", "little"]))
    return data


def cut(data: bytearray, chance: random.Random) -> bytearray:
    """Ends the file early."""
    return data[: max(place(data, chance), 1)]


def remove(data: bytearray, chance: random.Random) -> bytearray:
    """Takes a piece out."""
    start = place(data, chance)
    del data[start : start + chance.choice([1, 4, 12, 100, 5000])]
    return data


def repeat(data: bytearray, chance: random.Random) -> bytearray:
    """Repeats a piece, sometimes a hundred times."""
    start = place(data, chance)
    piece = data[start : start + chance.choice([1, 4, 12, 100, 1000])]
    data[start:start] = piece * chance.choice([1, 2, 10, 100])
    return data


def swap(data: bytearray, chance: random.Random) -> bytearray:
    """Copies a piece over another place."""
    start, target, size = place(data, chance), place(data, chance), chance.choice([4, 16, 256])
    piece = data[start : start + size]
    data[target : target + len(piece)] = piece
    return data


MUTATIONS: list[Mutation] = [set_bytes, set_bytes, set_number, set_number, cut, remove, repeat, swap]


def mutated(data: bytes, seed: int) -> bytes:
    """Returns a damaged copy; another seed damages it otherwise."""
    chance = random.Random(seed)
    copy = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        copy = chance.choice(MUTATIONS)(copy, chance) or bytearray(b"\0")
    return bytes(copy)


def sources(folders: Sequence[Path]) -> list[bytes]:
    """Returns all image files below some folders; those under 200 kB twice, since they are decoded quickly."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    files = [path.read_bytes() for path in paths if path.suffix not in (".md", ".yaml")]
    return [data for data in files if data for _ in range(2 if len(data) < 200_000 else 1)]


def mutations(files: Sequence[bytes], count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yields so many damaged copies, each with the number that it can be made again from."""
    for number in range(seed, seed + count):
        yield number, mutated(files[random.Random(number).randrange(len(files))], number)


@dataclass(frozen=True)
class Measured:
    """The memory of one decode.

    Attributes:
        outcome: `decoded`, the code of the refusal, or how the process has died.
        foretold_bytes: the prediction; while a file is opened, what is reserved for that.
        peak_bytes: the most by which the process had grown.
    """

    outcome: str
    foretold_bytes: int
    peak_bytes: int


def measure(data: bytes) -> Measured:
    """Decodes one file in a process of its own, as a decoder does, and measures the process."""
    try:
        header = read_header(data)
    except RequestError as refusal:
        return Measured(refusal.code, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        process = os.fork()
        if process == 0:
            try:
                ours.close()
                measure_here(data, header, theirs)
            finally:
                os._exit(0)
        theirs.close()
        opening = foretold = task_of(data, header).opening_bytes
        while True:
            message, _ = receive(ours)
            if message is None:
                break
            if "needed_bytes" in message:
                foretold = max(opening, message["needed_bytes"])
                send(ours, {"go_on": True})
            else:
                os.waitpid(process, 0)
                return Measured(message["outcome"], foretold, message["peak_bytes"])
    _, status = os.waitpid(process, 0)
    return Measured(f"died of {signal.Signals(os.WTERMSIG(status)).name}", foretold, 0)


def measure_here(data: bytes, header: ImageHeader, channel: socket.socket) -> None:
    """Decodes in this process, which is forked for it, and sends the outcome and the peak."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    shared = os.memfd_create("upload")
    os.pwrite(shared, data, 0)
    start = status_bytes("VmRSS")
    try:
        decoder_process.decode_limited(channel, task_of(data, header), shared)
        outcome = "decoded"
    except RequestError as refusal:
        outcome = refusal.code
    decoder_process.limit_memory(None)
    send(channel, {"outcome": outcome, "peak_bytes": max(status_bytes("VmHWM") - start, 0)})


def task_of(data: bytes, header: ImageHeader) -> DecodeTask:
    """Returns what a decoder with the default settings is told about a file."""
    most = SETTINGS.memory_bytes * 7 // 8
    return DecodeTask(len(data), header, REQUEST.max_side, REQUEST.multiple, None, SETTINGS.max_pixels, most, MEASURE_S)


def status_bytes(key: str) -> int:
    """Returns a figure of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


class Attack:
    """Sends damaged files through a pool, some at a time.

    Attributes:
        outcomes: files by outcome: `decoded`, the code of a refusal, or the name of an exception that is none.
        deaths: processes that have died of a file, by signal.
        faults: numbers of the files that were answered with an exception or a status of 500 and above.
        servers: process ids of the fork servers that were seen; more than one means that one was lost.
        slowest_s: the longest time that a file took.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.faults: list[int] = []
        self.servers: set[int] = set()
        self.slowest_s = 0.0

    async def run(self, files: Iterator[tuple[int, bytes]]) -> None:
        """Sends all files."""
        handler = logging.Handler()
        handler.emit = self._note  # type: ignore[method-assign]
        pool.logger.addHandler(handler)
        pool.logger.propagate = False
        decoders = pool.DecoderPool(SETTINGS.decoder_processes, SETTINGS.memory_bytes)
        try:
            await asyncio.gather(*(self._send_all(decoders, files) for _ in range(ACROSS)))
            self.servers.add(decoders.server.pid)
        finally:
            decoders.close()
            pool.logger.removeHandler(handler)

    def _note(self, record: logging.LogRecord) -> None:
        self.deaths[record.getMessage().removeprefix("a process that decodes has died: ")] += 1

    async def _send_all(self, decoders: pool.DecoderPool, files: Iterator[tuple[int, bytes]]) -> None:
        limits = pool.DecodeLimits(SETTINGS.max_pixels, SETTINGS.decode_timeout_s)
        for number, data in files:
            began = time.monotonic()
            try:
                async with decoders.decoded(data, read_header(data), REQUEST, limits):
                    outcome = "decoded"
            except RequestError as refusal:
                outcome = refusal.code
                if refusal.status >= 500:
                    self.faults.append(number)
            except Exception as error:  # whatever it is, the report tells of it
                outcome = type(error).__name__
                self.faults.append(number)
            self.outcomes[outcome] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.servers.add(decoders.server.pid)
            if self.outcomes.total() % SHOW_EVERY == 0:
                print(f"  {self.outcomes.total()} files: {dict(self.outcomes)}, deaths {dict(self.deaths)}", flush=True)


def measure_all(files: Iterator[tuple[int, bytes]]) -> list[Row]:
    """Measures the memory of each file; one row for each outcome."""
    rows: dict[str, Row] = {}
    for number, data in files:
        found = measure(data)
        row = rows.setdefault(
            found.outcome, {"outcome": found.outcome, "files": 0, "above prediction": 0, "largest part of it": 0.0}
        )
        row["files"] += 1
        if found.peak_bytes > found.foretold_bytes:
            row["above prediction"] += 1
            print(f"  file {number}: {found}", flush=True)
        if found.foretold_bytes:
            row["largest part of it"] = max(row["largest part of it"], found.peak_bytes / found.foretold_bytes)
    return sorted(rows.values(), key=lambda row: -int(row["files"]))


def run(options: argparse.Namespace) -> None:
    """Sends damaged image files through the processes that decode, and measures the memory of some of them."""
    files = sources(options.folders)
    whole = measure_all(enumerate(files))
    print("\nThe files as they are:")
    print_table(whole)
    measured = measure_all(mutations(files, options.measured, options.seed))
    print("\nDamaged copies, one process each:")
    print_table(measured)
    attack = Attack()
    began = time.monotonic()
    asyncio.run(attack.run(mutations(files, options.count, options.seed)))
    took_s = time.monotonic() - began
    print("\nDamaged copies through a pool:")
    rows = [{"outcome": outcome, "files": count} for outcome, count in attack.outcomes.most_common()]
    print_table(rows)
    more = {
        "took_s": round(took_s),
        "slowest_s": round(attack.slowest_s, 2),
        "deaths": dict(attack.deaths),
        "faults": attack.faults,
        "fork_servers": len(attack.servers),
    }
    print("\n" + json.dumps(more))
    write_json(options.out, "mutations", rows, measured=measured, whole=whole, **more)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    shared = Path(os.environ.get("ANIMEGAN_SHARED", ROOT.parent / "shared"))
    folders = [shared / folder for folder in FOLDERS]
    parser.add_argument("--folders", type=Path, nargs="+", default=folders, help="of image files to be damaged")
    parser.add_argument("--count", type=int, default=20_000, help="damaged files for the pool")
    parser.add_argument("--measured", type=int, default=2_000, help="damaged files whose memory is measured")
    parser.add_argument("--seed", type=int, default=1, help="number of the first file")
