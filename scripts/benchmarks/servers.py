"""Servers for the benchmarks: each starts in a process of its own, is waited for, and is stopped with its children."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.paths import READY_PATH
from benchmarks.processes import child_environment

READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 120
ANIMEGAN = [sys.executable, "-c", "import sys; from serve_app.cli.main import main; sys.exit(main())"]
DECODER = "decoder_process"  # its role
TITLE = re.compile(
    r"ray::ServeReplica:animegan:(\w+)|ray::(ProxyActor|ServeController)|serve_app\.images\.(decoder_process)"
)


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def paint_everything(config: dict[str, Any]) -> None:
    """Changes a config so that photographs which are sent again are painted again."""
    jobs = config["applications"][0].get("args", {}).get("jobs")
    if jobs is not None:
        jobs["keep_stylized_for_s"] = 0


@contextmanager
def running(command: list[str], port: int, log: Path, **variables: str) -> Iterator[psutil.Process]:
    """Runs a server while the block runs: yields its process once it is ready, and stops all its processes afterwards.

    Args:
        command: starts the server.
        port: of 127.0.0.1, where the server answers `READY_PATH`.
        log: receives what the server prints.
        variables: environment variables to set, beside those of this process.

    Raises:
        SystemExit: if the server ends, or is not ready after `READY_TIMEOUT_S`.
    """
    url = f"http://127.0.0.1:{port}{READY_PATH}"
    environment = child_environment() | {"ANIMEGAN_DATA_DIR": str(log.parent / "data")} | variables
    with log.open("w") as output:
        server = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=environment)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_ready(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start; see {log}")
            time.sleep(0.5)
        yield server
    finally:
        stop(server)


def is_ready(url: str) -> bool:
    """Returns whether a GET of the URL is answered with 200."""
    with suppress(requests.RequestException):
        return requests.get(url, timeout=5).status_code == 200
    return False


def stop(server: psutil.Process) -> None:
    """Ends a server with SIGTERM; kills those of its processes that are left."""
    with suppress(psutil.NoSuchProcess):
        tree = process_tree(server)
        server.send_signal(signal.SIGTERM)
        psutil.wait_procs([server], STOP_TIMEOUT_S)
        _, alive = psutil.wait_procs(tree, 10)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, 10)


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """Returns a process and all its descendants."""
    return [process, *process.children(recursive=True)]


def role(process: psutil.Process) -> str | None:
    """Returns the deployment that a process of the service is a replica of, Serve's proxy or controller, or a decoder.

    None for all other processes.
    """
    with suppress(psutil.Error):
        if found := TITLE.search(" ".join(process.cmdline())):
            return found[found.lastindex or 0]
    return None
