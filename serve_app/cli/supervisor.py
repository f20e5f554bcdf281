"""`animegan run`: starts the serving process, makes the first SIGINT or SIGTERM its end, and waits for that."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

STOP_TIMEOUT_S = 90
# Until Ray is imported, which takes seconds, SIGINT simply ends it: interrupted imports print a page of traceback.
SERVING = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
from serve_app.cli.local_cluster import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def run(config: Path, dashboard: bool = False) -> int:
    """Serves a config file until SIGINT or SIGTERM; the exit status for the shell.

    Args:
        dashboard: start Ray's too.
    """
    command = [sys.executable, "-c", SERVING, str(config)]
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
    is_running = serving.poll() is None
    if is_running:
        serving.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            serving.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):  # also of one that has ended: a Ray whose start is interrupted leaves its agents
        os.killpg(serving.pid, signal.SIGKILL)
    serving.wait()
    if is_running:
        print("stopped", flush=True)  # Ray's own last line looks like a failure
