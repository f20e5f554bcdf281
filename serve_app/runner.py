"""`animegan run`: `serve run` with its eyes open. It waits until the service is ready and says how to use it; it ends
with a reason when the deployment fails, on which `serve run` alone sleeps on; and it stops what it started.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import requests
import yaml

from serve_app.config_lint import lint
from serve_app.errors import AnimeganError

POLL_S = 0.5
DASHBOARD_PORTS = range(8265, 8316)  # of which a Ray takes the first that is free
STATUS_EVERY_S = 5  # `serve status` takes seconds of a core that the replicas want while they start
READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 90


class StartError(AnimeganError):
    """The service did not come up."""


def run(config: Path) -> int:
    """Serves a config file until SIGINT or SIGTERM; the exit status for the shell.

    Raises:
        StartError: if the config is wrong, its port is taken, or the deployment fails or takes too long.
    """
    if findings := lint(config):
        raise StartError("\n".join(findings))
    host, port = http_address(config)
    if port_is_taken(host, port):
        raise StartError(
            f"port {port} of {host} is taken; stop what listens there, or set http_options.port in {config}"
        )
    # Before the child starts: a shell's background jobs ignore SIGINT, and the child would inherit that and never stop.
    ignore_signals = raise_on_signals()
    serve = None
    try:
        # A session of its own: a terminal's Ctrl-C reaches this process alone, and stopping happens once, in order.
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
        serve = subprocess.Popen(command, start_new_session=True, env=child_environment())
        wait_until_ready(serve, f"http://{host}:{port}", config)
        print_welcome(f"http://{host}:{port}")
        return serve.wait()
    except Stop:
        print("\nstopping ...", flush=True)
        return 0
    finally:
        ignore_signals()
        if serve is not None:
            stop(serve)


class Stop(BaseException):
    """SIGINT or SIGTERM came."""


def raise_on_signals() -> Callable[[], None]:
    """Turns the first SIGINT or SIGTERM into `Stop`; returns a function that makes later ones harmless."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        ignore()
        raise Stop

    def ignore() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return ignore


def child_environment() -> dict[str, str]:
    """A Ray of its own unless RAY_ADDRESS names one: left to itself Ray joins whatever ran last, dead or not."""
    return {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"} | os.environ


def http_address(config: Path) -> tuple[str, int]:
    options = yaml.safe_load(config.read_text(encoding="utf-8")).get("http_options") or {}
    host = options.get("host", "127.0.0.1")
    return ("127.0.0.1" if host in ("0.0.0.0", "::") else host), options.get("port", 8000)


def port_is_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def wait_until_ready(serve: "subprocess.Popen[bytes]", address: str, config: Path) -> None:
    print(f"starting {config} ...", flush=True)
    deadline = time.monotonic() + READY_TIMEOUT_S
    asked = time.monotonic()
    while time.monotonic() < deadline:
        if serve.poll() is not None:
            raise StartError(
                f"`serve run` ended with status {serve.returncode} before the service was ready; see above"
            )
        if answers(f"{address}/readyz"):
            return
        if time.monotonic() - asked > STATUS_EVERY_S:
            if reason := failure(dashboard_address(serve.pid)):
                raise StartError(f"the deployment failed:\n{reason}")
            asked = time.monotonic()
        time.sleep(POLL_S)
    raise StartError(f"the service was not ready after {READY_TIMEOUT_S} s")


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def dashboard_address(pid: int) -> str | None:
    """That of the Ray which a process has started; None of one that has joined a cluster or starts none.

    `serve status` by itself asks at port 8265, whoever's Ray that is.
    """
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            if any(part.endswith("dashboard/dashboard.py") for part in process.cmdline()):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port in DASHBOARD_PORTS:
                        return f"http://127.0.0.1:{connection.laddr.port}"
    return None


def failure(dashboard: str | None) -> str | None:
    """Why an application failed to deploy, as `serve status` tells it; None while it has not.

    Args:
        dashboard: address of a Ray; None is the one that the environment names.
    """
    command = [sys.executable, "-m", "ray.serve.scripts", "status"]
    # A Ray started on this machine guards its dashboard with a token that its own commands find in the home folder.
    environment = {"RAY_AUTH_MODE": "token"} | os.environ
    if dashboard:
        environment["RAY_DASHBOARD_ADDRESS"] = dashboard
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment).stdout
        applications: dict[str, Any] = yaml.safe_load(output)["applications"]
    except (subprocess.TimeoutExpired, yaml.YAMLError, TypeError, KeyError):
        return None  # Ray is not up yet
    for application in applications.values():
        if application.get("status") == "DEPLOY_FAILED":
            deployments = application.get("deployments", {}).values()
            messages = [application.get("message"), *(deployment.get("message") for deployment in deployments)]
            return "\n".join(dict.fromkeys(filter(None, messages)))
    return None


def print_welcome(address: str) -> None:
    print(
        f"""
ready: {address}           (a page to drop photographs on; API at {address}/docs)

  curl --fail-with-body --data-binary @photo.jpg '{address}/v1/stylize' -o painted.jpg

Ctrl-C stops it.
""",
        flush=True,
    )


def stop(serve: "subprocess.Popen[bytes]") -> None:
    """SIGINT makes `serve run` shut the application and its Ray down in order; a process that hangs is killed."""
    if serve.poll() is None:
        serve.send_signal(signal.SIGINT)
        try:
            serve.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(serve.pid, signal.SIGKILL)
            serve.wait()
        print("stopped", flush=True)  # Ray's own last line looks like a failure
