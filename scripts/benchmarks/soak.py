"""Thousands of mixed requests through the real service, and the memory of its processes; for `scripts/bench soak`."""

import io
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import yaml
from PIL import Image

from benchmarks import ROOT
from benchmarks.servers import ANIMEGAN, free_port, role, running

CLIENTS = 4
SAMPLE_EVERY = 5  # requests: the Codec swings by what it has in hand, and a slope takes many samples
SHOW_EVERY = 200
ABORTED = 0.05  # of the uploads, broken off half-way
BROKEN = 0.02  # of the uploads, cut short
SHAPES = [56, 67, 75, 100]  # per cent of the longer side: few, so that some meet others of their size
FORMATS = ["JPEG", "PNG", "WEBP"]
ANSWERS = ["jpeg", "webp", "png"]


class Soak:
    """A service of its own, started from configs/local.yaml on a free port.

    Args:
        count: requests to send.
        folder: for the config and the service's console.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.folder = folder.resolve()
        self.outcomes: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self._sent = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
        port = config["http_options"]["port"] = free_port()
        path = self.folder / "soak.yaml"
        path.write_text(yaml.safe_dump(config))
        self.address = ("127.0.0.1", port)
        with running([*ANIMEGAN, "run", str(path)], port, self.folder / "soak.log") as service:
            self._send_all(service)

    def _send_all(self, service: psutil.Process) -> None:
        processes = {name: process for process in service.children(recursive=True) if (name := role(process))}
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            for done, outcome in enumerate(clients.map(self._send, range(self.count)), 1):
                self.outcomes[outcome] += 1
                if done % SAMPLE_EVERY == 0:
                    figures = {name: private_bytes(process) for name, process in processes.items()}
                    self.samples.append({"requests": done, "s": time.monotonic() - began} | figures)
                    if done % SHOW_EVERY == 0:
                        megabytes = {name: round(value / 1e6) for name, value in figures.items()}
                        print(f"{done} requests, {time.monotonic() - began:.0f} s: {megabytes}", flush=True)

    def _send(self, number: int) -> str:
        chance = random.Random(number)
        side = 1024 if chance.random() < 0.1 else chance.randrange(128, 641, 32)
        height, width = side, side * chance.choice(SHAPES) // 100
        if chance.random() < 0.5:
            height, width = width, height
        photo = photograph(number, height, width, chance.choice(FORMATS))
        kind = chance.random()
        if kind < ABORTED:
            self._abort(photo)
            return "aborted"
        if kind < ABORTED + BROKEN:
            photo = photo[: len(photo) // 2]
        url = f"http://{self.address[0]}:{self.address[1]}/v1/stylize?format={chance.choice(ANSWERS)}"
        with suppress(requests.RequestException):
            return str(requests.post(url, data=photo, timeout=300).status_code)
        return "failed"

    def _abort(self, photo: bytes) -> None:
        with socket.create_connection(self.address) as connection:
            head = f"POST /v1/stylize HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(photo)}\r\n\r\n"
            connection.sendall(head.encode() + photo[: len(photo) // 2])


def photograph(seed: int, height: int, width: int, format: str) -> bytes:
    """Smooth patches of random colours: compresses and paints like a photograph."""
    patches = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def private_bytes(process: psutil.Process) -> int:
    """USS without Ray's object store, whose pages count as private to whoever maps them alone."""
    return sum(
        region.private_clean + region.private_dirty
        for region in process.memory_maps(grouped=True)
        if not region.path.startswith("/dev/shm")
    )


def slopes(samples: list[dict[str, Any]]) -> dict[str, float]:
    """MB for each 100 requests over the last quarter of the samples, by process: least squares."""
    last = samples[-len(samples) // 4 :]
    requests_sent = [sample["requests"] for sample in last]
    names = [name for name in samples[0] if name not in ("requests", "s")]
    return {name: float(np.polyfit(requests_sent, [s[name] for s in last], 1)[0]) * 100 / 1e6 for name in names}
