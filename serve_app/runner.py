"""`animegan run`: starts the serving process, makes the first SIGINT or SIGTERM its end, and waits for that."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STOP_TIMEOUT_S = 90


def run(config: Path, dashboard: bool = False) -> int:
    """Serves a config file until SIGINT or SIGTERM; the exit status for the shell.

    Args:
        dashboard: start Ray's too.
    """
    command = [sys.executable, "-m", "serve_app.serving", str(config)]
    if dashboard:
        command.append("--dashboard")
    # Before the child starts: a shell's background jobs ignore SIGINT, and the child would inherit that and never stop.
    ignore_signals = raise_on_signals()
    serving = None
    try:
        # A session of its own: a terminal's Ctrl-C reaches this process alone, and stopping happens once, in order.
        serving = subprocess.Popen(command, start_new_session=True)
        return serving.wait()
    except Stop:
        print("\nstopping ...", flush=True)
        return 0
    finally:
        ignore_signals()
        if serving is not None:
            stop(serving)


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


def stop(serving: "subprocess.Popen[bytes]") -> None:
    """SIGINT makes it shut the application and its Ray down in order; a process that hangs is killed."""
    if serving.poll() is None:
        serving.send_signal(signal.SIGINT)
        try:
            serving.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()
        print("stopped", flush=True)  # Ray's own last line looks like a failure
