import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.postgres import PostgresServer, find_binaries
from jobstores import Bench, make_settings

from serve_app.jobs import outage, runner, work

MakeBench = Callable[..., Bench]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server of the whole session; tests get databases of their own in it."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed")
    server = PostgresServer(binaries)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty database, of each kind; None is SQLite's default."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres").new_database()
    return url


@pytest.fixture
def make_bench(tmp_path: Path, database_url: str | None) -> Iterator[MakeBench]:
    """Opens stores over one database, with settings as a test wants them."""
    opened: list[Bench] = []

    def make(**changes: Any) -> Bench:
        opened.append(Bench(make_settings(tmp_path / "data", database_url, **changes)))
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners that look, and try again, without long pauses."""
    monkeypatch.setattr(runner, "LOOK_S", 0.05)
    monkeypatch.setattr(runner, "PAUSE_S", 0.3)
    monkeypatch.setattr(work, "BACKOFF_S", (0.02,))
    monkeypatch.setattr(runner, "PROBE_S", 0.1)
    monkeypatch.setattr(outage, "FRESH_S", 0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
