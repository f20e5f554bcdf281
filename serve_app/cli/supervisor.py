"""`animegan run`: starts the serving process, and stops it in order at the first SIGINT or SIGTERM."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

STOP_TIMEOUT_S = 90  # after requests in hand


def run(config: Path, dashboard: bool = False, drain_s: float = 0) -> int:
    """Serves a config file until SIGINT or SIGTERM, and returns the exit status for the shell.

    Args:
        config: a Serve config file.
        dashboard: start Ray's dashboard too.
        drain_s: how long requests in hand may take before it stops; a second signal ends the wait.
    """
    # Of this user alone. At a short path, because the names of Unix sockets in it may have 107 characters at most.
    ray_folder = tempfile.mkdtemp(prefix="animegan-", dir="/tmp")  # nosec B108 # made anew, with mode 0700
    command = [sys.executable, "-m", "serve_app.cli.local_cluster", str(config), "--ray-folder", ray_folder]
    command += ["--drain", str(drain_s)]
    if dashboard:
        command.append("--dashboard")
    # Before the child starts: background jobs of a shell ignore SIGINT, and a child that inherits that never stops.
    ignore_signals = raise_on_signals()
    serving = None
    try:
        # In a session of its own: Ctrl-C in a terminal then reaches only this process, which stops the child in order.
        serving = subprocess.Popen(command, start_new_session=True)  # noqa: S603 # nosec B603 # our own module
        return serving.wait()
    except Stop:
        print("\nstopping ...", flush=True)
        return 0
    finally:
        ignore_signals()
        if serving is not None:
            stop(serving, drain_s)
        shutil.rmtree(ray_folder, ignore_errors=True)


class Stop(BaseException):
    """Raised in the main thread by the first SIGINT or SIGTERM."""


def raise_on_signals() -> Callable[[], None]:
    """Makes the first SIGINT or SIGTERM raise `Stop`, and returns a function that ignores later ones."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        ignore()
        raise Stop

    def ignore() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return ignore


def pass_on_the_next_signal(serving: "subprocess.Popen[bytes]") -> None:
    """Sends SIGINT to the serving process at the next SIGINT or SIGTERM, and ignores later ones."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        with suppress(ProcessLookupError):
            serving.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def kill_session(session: int) -> None:
    """Kills every process of a session, whatever process groups they have made."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session:
                process.kill()


def stop(serving: "subprocess.Popen[bytes]", drain_s: float) -> None:
    """Sends SIGINT, on which it shuts down the application and its Ray in order; a process that hangs is killed."""
    is_running = serving.poll() is None
    if is_running:
        serving.send_signal(signal.SIGINT)
        pass_on_the_next_signal(serving)
        with suppress(subprocess.TimeoutExpired):
            serving.wait(drain_s + STOP_TIMEOUT_S)
    kill_session(serving.pid)  # also after it has ended: an interrupted start, or a Ray that died, leaves processes
    serving.wait()
    if is_running:
        print("stopped", flush=True)  # because the last line that Ray prints looks like a failure
