"""The whole service under a limit of memory, as in a container: `scripts/bench limit`.

It runs in a memory cgroup of its own: configs/container.yaml, with jobs in SQLite, as shipped and with the least that
`animegan plan` knows, each under the limit that the plan names; and configs/small.yaml under 2 GiB. The cgroup counts
every page that its processes touch, shared memory and files that they read included; the kernel takes back the latter
before it kills anything. Ray sees the limit, as in a container, and kills replicas at 95 % of it.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.load import run_load
from benchmarks.monitor import ProcessMonitor
from benchmarks.paths import ROOT, STYLIZE_PATH
from benchmarks.reporting import MB, Row, collect, report
from benchmarks.servers import ANIMEGAN, free_port, paint_everything, process_tree, role, running
from serve_app.cli.memory_plan import differences, saving
from serve_app.cli.plan import read_service

CONTAINER, SMALL = (ROOT / "configs" / name for name in ("container.yaml", "small.yaml"))
HIERARCHY = Path("/sys/fs/cgroup/memory")
# Inside a namespace of cgroups, so that Ray finds the limit where a container has it.
ENTER = """
echo $$ > "$0/cgroup.procs"
exec unshare --cgroup sh -c 'umount "$0" && mount -t cgroup -o memory cgroup "$0" && exec "$@"' {hierarchy} "$@"
"""
SMALL_BYTES = 2 * 2**30  # less than the memory plan promises anything for; docs/deploy.md
REPLICAS = ("Ingress", "Codec", "Stylizer", "JobRunner", "ProxyActor", "ServeController")


class MemoryCgroup:
    """A cgroup (version 1) with a limit of memory, for the processes that `command` starts.

    Args:
        limit_bytes: of all its processes together.

    Attributes:
        folder: where the kernel shows it.

    Raises:
        SystemExit: if it cannot be made here.
    """

    def __init__(self, limit_bytes: int) -> None:
        if os.geteuid() != 0 or not (HIERARCHY / "cgroup.procs").exists() or not shutil.which("unshare"):
            raise SystemExit(f"a limit needs root, unshare, and the memory cgroups of version 1 at {HIERARCHY}")
        self.folder = HIERARCHY / f"animegan-{os.getpid()}"
        self.folder.mkdir()
        self._write("memory.limit_in_bytes", limit_bytes)

    def command(self, command: list[str]) -> list[str]:
        """Returns a command that runs another one inside."""
        script = ENTER.format(hierarchy=HIERARCHY)
        return ["unshare", "--cgroup", "--mount", "sh", "-c", script, str(self.folder), *command]

    def forget_peak(self) -> None:
        """Begins to measure the peak anew."""
        self._write("memory.max_usage_in_bytes", 0)

    @property
    def peak_bytes(self) -> int:
        """The most that was in use, files that were read included."""
        return int(self._read("memory.max_usage_in_bytes"))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed for memory."""
        return int(self._read("memory.oom_control").split()[-1])

    def remove(self) -> None:
        """Removes it, once its processes have ended."""
        subprocess.run(["rmdir", str(self.folder)], check=False)

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))


def run(options: argparse.Namespace) -> None:
    """Measures the service under limits of memory, with the settings that the documentation names for each."""
    rows = collect(measured_rows(options))
    report(options.out, "limit", rows)
    if any(row["painted"] != options.count or row["killed"] or row["replaced"] for row in rows):
        raise SystemExit("something was not painted, or killed")


def measured_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each choice of settings."""
    for name, limit, config in cases():
        if not options.only or name.startswith(options.only):
            row = {"settings": name, "side": options.side, "limit MiB": limit // 2**20}
            yield row | measured(limit, config, options)


def cases() -> list[tuple[str, int, dict[str, Any]]]:
    """Returns the choices of settings: a name, the limit in bytes, and the config."""
    shipped = read_service(CONTAINER, cores=os.cpu_count() or 1)
    *_, least = saving(shipped)
    container, small = (yaml.safe_load(path.read_text()) for path in (CONTAINER, SMALL))
    return [
        ("container.yaml", shipped.limit_bytes("all"), container),
        ("container.yaml, the least", least.limit_bytes("all"), changed(container, differences(shipped, least))),
        ("small.yaml", SMALL_BYTES, small),
    ]


def measured(limit: int, config: dict[str, Any], options: argparse.Namespace) -> Row:
    """Paints under a limit."""
    folder = options.scratch.resolve() / "limit"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    path = folder / "limit.yaml"
    path.write_text(yaml.safe_dump(on_port(config, port)))
    with cgroup_of(limit) as cgroup:
        command = cgroup.command([*ANIMEGAN, "run", str(path)])
        with running(command, port, folder / "limit.log") as server:
            idle, before = cgroup.peak_bytes, replicas(server)
            cgroup.forget_peak()
            url = f"http://127.0.0.1:{port}{STYLIZE_PATH}"
            with ProcessMonitor(server) as monitor:
                load = run_load(url, options.side, options.seconds, options.count, clients=options.clients)
            peak, kills, lost = cgroup.peak_bytes, cgroup.kills, len(before - replicas(server))
    return {
        "start MB": round(idle / MB),
        "peak MB": round(peak / MB),
        "peak PSS MB": round(monitor.peak_pss / MB),
        "painted": load["statuses"].get("200", 0),
        "statuses": load["statuses"],
        "painted a s": round(load["throughput"], 3),
        "p99 s": load["p99_s"],
        "killed": kills,
        "replaced": lost,
    }


@contextmanager
def cgroup_of(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """Makes a cgroup, and removes it afterwards."""
    cgroup = MemoryCgroup(limit_bytes)
    try:
        yield cgroup
    finally:
        cgroup.remove()


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with settings changed by their names in a plan."""
    config = deepcopy(config)
    application = config["applications"][0]
    deployments = {each["name"]: each.setdefault("user_config", {}) for each in application["deployments"]}
    blocks = {"args": application["args"], "guard": config["guard"], "jobs": application["args"]["jobs"]} | deployments
    for name, value in changes.items():
        block, key = name.split(".")
        blocks[block][key] = value
    return config


def on_port(config: dict[str, Any], port: int) -> dict[str, Any]:
    """Returns a config on a port of the loopback, with jobs in SQLite."""
    config = deepcopy(config)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["metrics"] |= {"host": "127.0.0.1", "port": free_port()}
    config["applications"][0]["args"]["jobs"].pop("database_url", None)
    paint_everything(config)
    return config


def replicas(server: psutil.Process) -> set[psutil.Process]:
    """Returns the processes of the service that should live as long as it does."""
    return {process for process in process_tree(server) if role(process) in REPLICAS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `limit`."""
    parser.add_argument("--only", help="the settings whose name begins so")
    parser.add_argument("--side", type=int, default=1024, help="pixels of the photographs; paintings have 1024 at most")
    parser.add_argument("--count", type=int, default=24, help="photographs for each choice of settings")
    parser.add_argument("--clients", type=int, default=4, help="at a time")
    parser.add_argument("--seconds", type=float, default=600.0, help="after which nothing more is sent")
