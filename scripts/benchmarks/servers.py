"""Servers for the benchmarks: started in a process of their own, waited for, and ended in order."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

from benchmarks import child_environment
from benchmarks.rivals import READY_PATH

READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 120
ANIMEGAN = [sys.executable, "-c", "import sys; from serve_app.cli.main import main; sys.exit(main())"]
TITLE = re.compile(r"ray::ServeReplica:animegan:(\w+)|ray::(ProxyActor|ServeController)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, log: Path, **variables: str) -> Iterator[psutil.Process]:
    """A server from when it says that it is ready; every process of it has ended afterwards."""
    url = f"http://127.0.0.1:{port}{READY_PATH}"
    with log.open("w") as output:
        server = psutil.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=child_environment() | variables
        )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start; see {log}")
            time.sleep(0.5)
        yield server
    finally:
        stop(server)


def answers(url: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(url, timeout=5).status_code == 200
    return False


def stop(server: psutil.Process) -> None:
    """In order, then by force what is left."""
    with suppress(psutil.NoSuchProcess):
        tree = family(server)
        server.send_signal(signal.SIGTERM)
        psutil.wait_procs([server], STOP_TIMEOUT_S)
        _, alive = psutil.wait_procs(tree, 10)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, 10)


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def role(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        if found := TITLE.search(" ".join(process.cmdline())):
            return found[1] or found[2]
    return None
