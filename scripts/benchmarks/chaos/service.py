"""The service that `scripts/bench chaos` tests: configs/local.yaml with a disk, a database and a clock of its own."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import requests
import yaml

from benchmarks.paths import LOCAL_CONFIG, READY_PATH, ROOT, STYLIZE_PATH
from benchmarks.photographs import photograph
from benchmarks.postgres import PostgresServer, find_binaries
from benchmarks.processes import child_environment
from benchmarks.servers import ANIMEGAN, READY_TIMEOUT_S, free_port, is_ready, process_tree, role, stop
from serve_app.frames import Size

DISK_BYTES = 512 * 2**20  # of the small file system
STORED_BYTES = 256 * 2**20  # of all pictures on it
FREE_BYTES = 32 * 2**20  # that photographs leave free on it
RESTART_S = 5.0  # after the service has ended; as in the unit of docs/deploy.md
LOOK_S = 0.5
DAMAGED = "ink"  # the style whose file is damaged; the default one keeps the service from starting
FAKETIME = "libfaketimeMT.so.1"


class NotRecoveredError(Exception):
    """The service did not come back in time, or the run was stopped before."""


class Supervisor:
    """Starts a command again whenever it ends, as systemd does, while a `with` block runs.

    Args:
        command: to run.
        log: that its output is appended to.
        environment: of the command.

    Attributes:
        process: that runs now.
        starts: of the command so far.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.starts = 0
        self._command = command
        self._log = log
        self._environment = environment
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Supervisor":
        self._start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        stop(self.process)

    def _start(self) -> None:
        with self._log.open("a") as output:
            self.process = psutil.Popen(
                list(self._command), stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=self._environment
            )
        self.starts += 1

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            if self.process.poll() is not None and not self._over.wait(RESTART_S):
                self._start()


class ChaosService:
    """The service under test, what it depends on, and what is missing on this machine.

    Args:
        folder: for config, log, data and styles.
        ports: of the service, and of its metrics.
        disk: the small file system; None where none could be mounted.
        database: its PostgreSQL; None where there is none, and SQLite is used.
        stopping: set when the run is stopped before its end.
        change: changes its config further.

    Attributes:
        address: of the service.
        config: the path of its config file.
        style_file: of the style `DAMAGED`, a copy.
    """

    def __init__(
        self,
        folder: Path,
        ports: tuple[int, int],
        disk: Path | None,
        database: PostgresServer | None,
        stopping: threading.Event,
        change: Callable[[dict[str, Any]], None],
    ) -> None:
        port, self.metrics_port = ports
        self.stopping = stopping
        self.folder = folder
        self.address = f"http://127.0.0.1:{port}"
        self.disk = disk
        self.database = database
        self.config = folder / "chaos.yaml"
        self.log = folder / "chaos.log"
        self.clock = folder / "clock"
        self.faketime = next(iter(sorted(Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"))), None)
        styles = folder / "styles"
        self.style_file = styles / f"{DAMAGED}.safetensors"
        styles.mkdir()
        shutil.copy(ROOT / "weights" / self.style_file.name, self.style_file)
        self.set_clock(0)
        config = self._changed(yaml.safe_load(LOCAL_CONFIG.read_text()), port, styles)
        change(config)
        self.config.write_text(yaml.safe_dump(config))
        self.supervisor = Supervisor([*ANIMEGAN, "run", str(self.config)], self.log, child_environment())

    def _changed(self, config: dict[str, Any], port: int, styles: Path) -> dict[str, Any]:
        config["http_options"] |= {"host": "127.0.0.1", "port": port}
        config["metrics"] = {"host": "127.0.0.1", "port": self.metrics_port}
        application = config["applications"][0]
        application["args"] |= {"styles_dir": str(styles)}
        jobs = application["args"]["jobs"]
        jobs["data_dir"] = str((self.disk or self.folder) / "data")
        if self.disk is not None:
            jobs |= {"max_stored_bytes": STORED_BYTES, "min_free_bytes": FREE_BYTES}
        if self.database is not None:
            jobs["database_url"] = self.database.new_database()
        if self.faketime is not None:
            runner = next(each for each in application["deployments"] if each["name"] == "JobRunner")
            runner["ray_actor_options"]["runtime_env"] = {"env_vars": self._clock_variables()}
        return config

    def _clock_variables(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.faketime),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_CACHE_DURATION": "1",  # seconds; it reads the file so often
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_clock(self, offset_s: int) -> None:
        """Sets the clock of the JobRunner back (or ahead) by so many seconds from the machine's."""
        self.clock.write_text(f"{offset_s:+d}\n")

    def tree(self) -> list[psutil.Process]:
        """Returns all processes of the service, the supervised one first; none between two starts."""
        with suppress(psutil.Error):
            return process_tree(self.supervisor.process)
        return []

    def processes(self, name: str) -> list[psutil.Process]:
        """Returns the processes with a role."""
        return [process for process in self.tree() if role(process) == name]

    def session(self) -> list[psutil.Process]:
        """Returns everything that the supervised process has started: the serving process, Ray, and all replicas."""
        return self.tree()[1:]

    def kill(self, victims: Collection[psutil.Process]) -> None:
        """Kills processes at once (SIGKILL)."""
        for process in victims:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)

    def paints(self, style: str, seed: int) -> bool:
        """Returns whether a small photograph is painted now in a style."""
        photo = photograph(seed, Size(64, 64), "JPEG")
        with suppress(requests.RequestException):
            url = f"{self.address}{STYLIZE_PATH}?style={style}"
            return requests.post(url, data=photo, timeout=60).status_code == 200
        return False

    def is_ready(self) -> bool:
        """Returns whether the service says that it can paint."""
        return is_ready(f"{self.address}{READY_PATH}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Waits until a condition holds.

        Raises:
            NotRecoveredError: if it does not in time, or the run is stopped. `what` ends the sentence "after so many
                seconds".
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise NotRecoveredError(f"after {timeout_s:.0f} s {what}")
            if self.stopping.wait(LOOK_S):
                raise NotRecoveredError("the run was stopped")

    def is_clock_faked(self) -> bool:
        """Returns whether the JobRunner asks the clock that can be set."""
        runners = self.processes("JobRunner")
        return any(FAKETIME in region.path for process in runners for region in process.memory_maps())


def exit_on_signals(stopping: threading.Event) -> None:
    """Has the first SIGTERM or SIGINT set an event and end the program in order: no database and no mount is left."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        stopping.set()
        sys.exit("stopped")

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, on_signal)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mounts a file system of `DISK_BYTES` in memory at a folder; yields None where this user may not."""
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        yield None
        return
    options = f"size={DISK_BYTES},mode=0700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "animegan", folder], capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


@contextmanager
def postgres() -> Iterator[PostgresServer | None]:
    """Runs a PostgreSQL server of its own; yields None where its programs are not installed."""
    binaries = find_binaries()
    if binaries is None:
        yield None
        return
    server = PostgresServer(binaries)
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def chaos_service(
    folder: Path, change: Callable[[dict[str, Any]], None] = lambda config: None
) -> Iterator[ChaosService]:
    """Runs the service under test in an emptied folder; yields it once it is ready.

    Args:
        folder: for all its files.
        change: changes its config further.

    Raises:
        SystemExit: if it does not start.
    """
    stopping = threading.Event()
    exit_on_signals(stopping)
    disk_folder = folder / "disk"
    if disk_folder.is_mount():  # of a run that was killed
        subprocess.run(["umount", "--lazy", disk_folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(disk_folder))
        database = stack.enter_context(postgres())
        service = ChaosService(folder, (free_port(), free_port()), disk, database, stopping, change)
        stack.enter_context(service.supervisor)
        try:
            service.wait_until(service.is_ready, READY_TIMEOUT_S, "it was not ready")
        except NotRecoveredError as error:
            raise SystemExit(f"the service did not start: {error}; see {service.log}") from None
        yield service
