"""Thousands of mixed requests through the real service, and the memory of its processes: `scripts/bench soak`."""

import argparse
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import requests
import yaml

from benchmarks import plots
from benchmarks.paths import LOCAL_CONFIG, STYLIZE_PATH
from benchmarks.photographs import photograph
from benchmarks.reporting import MB, Row, report
from benchmarks.servers import ANIMEGAN, DECODER, free_port, paint_everything, role, running
from serve_app.frames import Size

CLIENTS = 4
SAMPLE_EVERY = 5  # requests: the Codec's memory follows the images in progress, and a slope takes many samples
SHOW_EVERY = 200
ABORTED = 0.05  # of the uploads: the connection is closed half-way
BROKEN = 0.02  # of the uploads: the file is cut short
ASPECTS = [56, 67, 75, 100]  # per cent of the longer side: few, so that some images share a size
FORMATS = ["JPEG", "PNG", "WEBP"]
RESPONSE_FORMATS = ["jpeg", "webp", "png"]


class Soak:
    """A long load on a service of its own, which runs configs/local.yaml on a free port.

    Args:
        count: requests to send.
        folder: for the config and what the service prints.

    Attributes:
        outcomes: requests by HTTP status, or `aborted`, or `failed`.
        samples: requests sent, seconds, and private bytes of each process.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.folder = folder.resolve()
        self.outcomes: Counter[str] = Counter()
        self.samples: list[Row] = []

    def run(self) -> None:
        """Starts the service, sends all requests, and stops it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load(LOCAL_CONFIG.read_text())
        paint_everything(config)
        port = config["http_options"]["port"] = free_port()
        path = self.folder / "soak.yaml"
        path.write_text(yaml.safe_dump(config))
        self.address = ("127.0.0.1", port)
        with running([*ANIMEGAN, "run", str(path)], port, self.folder / "soak.log") as service:
            self._send_all(service)

    def _send_all(self, service: psutil.Process) -> None:
        roles = {role(process): process for process in service.children(recursive=True)}
        processes = {
            name: process for name, process in roles.items() if name and name != DECODER
        }  # decoders come and go
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            for done, outcome in enumerate(clients.map(self._send, range(self.count)), 1):
                self.outcomes[outcome] += 1
                if done % SAMPLE_EVERY == 0:
                    figures = {name: private_bytes(process) for name, process in processes.items()}
                    self.samples.append({"requests": done, "s": time.monotonic() - began} | figures)
                    if done % SHOW_EVERY == 0:
                        megabytes = {name: round(value / MB) for name, value in figures.items()}
                        print(f"{done} requests, {time.monotonic() - began:.0f} s: {megabytes}", flush=True)

    def _send(self, number: int) -> str:
        chance = random.Random(number)
        side = 1024 if chance.random() < 0.1 else chance.randrange(128, 641, 32)
        size = Size(side, side * chance.choice(ASPECTS) // 100)
        if chance.random() < 0.5:
            size = size.transposed
        photo = photograph(number, size, chance.choice(FORMATS))
        kind = chance.random()
        if kind < ABORTED:
            self._abort(photo)
            return "aborted"
        if kind < ABORTED + BROKEN:
            photo = photo[: len(photo) // 2]
        host, port = self.address
        url = f"http://{host}:{port}{STYLIZE_PATH}?format={chance.choice(RESPONSE_FORMATS)}"
        with suppress(requests.RequestException):
            return str(requests.post(url, data=photo, timeout=300).status_code)
        return "failed"

    def _abort(self, photo: bytes) -> None:
        with socket.create_connection(self.address) as connection:
            head = f"POST {STYLIZE_PATH} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(photo)}\r\n\r\n"
            connection.sendall(head.encode() + photo[: len(photo) // 2])


def private_bytes(process: psutil.Process) -> int:
    """Returns a process's USS without Ray's object store, whose pages look private when one process maps them."""
    return sum(
        region.private_clean + region.private_dirty
        for region in process.memory_maps(grouped=True)
        if not region.path.startswith("/dev/shm")
    )


def slopes(samples: list[Row]) -> dict[str, float]:
    """Returns MB for each 100 requests over the last quarter of the samples, by process (least squares)."""
    last = samples[-len(samples) // 4 :]
    requests_sent = [sample["requests"] for sample in last]
    names = [name for name in samples[0] if name not in ("requests", "s")]
    return {name: float(np.polyfit(requests_sent, [s[name] for s in last], 1)[0]) * 100 / MB for name in names}


def run(options: argparse.Namespace) -> None:
    """Mixed sizes, formats and aborted uploads through the real service; the private memory of each process."""
    soak = Soak(options.requests, options.scratch)
    soak.run()
    print(dict(soak.outcomes))
    rows = [
        {
            "process": name,
            "first MB": round(soak.samples[0][name] / MB),
            "last MB": round(soak.samples[-1][name] / MB),
            "most MB": round(max(sample[name] for sample in soak.samples) / MB),
            "last quarter, MB per 100 requests": slope,
        }
        for name, slope in slopes(soak.samples).items()
    ]
    report(options.out, "soak", rows, outcomes=dict(soak.outcomes), samples=soak.samples)
    plots.soak(options.out, soak.samples, [row["process"] for row in rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scripts/bench soak`."""
    parser.add_argument("--requests", type=int, default=2000)
