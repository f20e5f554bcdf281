"""A real service for tests: `animegan run` in a process of its own, spoken to over HTTP."""

import copy
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from shared import ROOT

READY_TIMEOUT_S = 180
LOCAL_CONFIG = ROOT / "configs" / "local.yaml"
CHAOS = pytest.mark.skipif("ANIMEGAN_CHAOS" not in os.environ, reason="takes minutes: scripts/chaos runs it")
ANIMEGAN = [str(Path(sys.executable).parent / "animegan")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def changed_config(path: Path, target: Path, **user_configs: dict[str, Any]) -> str:
    """Writes a copy of a config on a free port, with deployments' keys replaced; returns the service's address.

    Photographs that are sent again are painted again.
    """
    config = copy.deepcopy(yaml.safe_load(path.read_text()))
    config["applications"][0].get("args", {}).get("jobs", {})["keep_stylized_for_s"] = 0
    config["http_options"] |= {"port": free_port(), "host": "127.0.0.1"}
    for deployment in config["applications"][0]["deployments"]:
        deployment |= user_configs.get(deployment["name"], {})
    target.write_text(yaml.safe_dump(config))
    return f"http://127.0.0.1:{config['http_options']['port']}"


def command_line(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended, even if its parent has not yet noticed."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Service:
    """A running service: its address, its console, its processes."""

    def __init__(self, address: str, process: "subprocess.Popen[str]", log: Path) -> None:
        self.address = address
        self.process = process
        self._log = log

    def console(self) -> str:
        return self._log.read_text(errors="replace")

    def replica(self, deployment: str) -> psutil.Process:
        """The process of a deployment's only replica."""
        (found,) = self.replicas(deployment)
        return found

    def replicas(self, deployment: str) -> list[psutil.Process]:
        title = f"ray::ServeReplica:animegan:{deployment}"
        tree = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in tree if title in command_line(process)]


@contextmanager
def running(
    command: list[str], address: str, log: Path, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> Iterator[Service]:
    """Starts a command, waits for its `ready:` line, and ends it by SIGTERM afterwards."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=os.environ | (env or {}), stdout=output, stderr=subprocess.STDOUT, text=True
        )
    service = Service(address, process, log)
    try:
        wait_for(lambda: "\nready: " in service.console() or process.poll() is not None, READY_TIMEOUT_S)
        assert process.poll() is None, service.console()
        yield service
    finally:
        process.terminate()
        process.wait(120)


def wait_for(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        time.sleep(0.2)
