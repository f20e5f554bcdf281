"""The README's commands and code do what the README says, and its tables and those of the settings are complete."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pictures import opened, photo_bytes
from served import served
from service import command_line, port_answers, running, wait_for
from shared import ROOT
from starlette.staticfiles import StaticFiles

from serve_app.settings import (
    CodecSettings,
    IngressSettings,
    JobRunnerSettings,
    Settings,
    StrictModel,
    StylizerSettings,
)
from serve_app.styles.catalogue import installed_styles, read_catalogue
from serve_app.styles.downloads import MIRROR_VARIABLE

RunCommand = Callable[..., int]

README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def code_blocks(text: str, language: str) -> list[str]:
    return [block.strip() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


COMMANDS = code_blocks(README, "sh")


def test_newcomer_paints_a_photo_and_everything_ends_with_the_service(tmp_path: Path) -> None:
    if port_answers(8000):
        pytest.skip("port 8000, which the README names, is taken on this machine")
    run, curl = COMMANDS[:2]
    assert (run, curl.split()[0]) == ("scripts/run", "curl")
    (tmp_path / "photo.jpg").write_bytes(photo_bytes(60, 80, "JPEG"))
    environment = {"ANIMEGAN_DATA_DIR": str(tmp_path / "data")}
    # In the background of a shell, which makes its jobs ignore SIGINT.
    command = ["sh", "-c", f"trap '' INT; exec {run}"]
    with running(command, ADDRESS, tmp_path / "log", env=environment) as service:
        assert curl in service.console()
        started = psutil.Process(service.process.pid).children(recursive=True)
        assert any("raylet" in command_line(process) for process in started)
        assert not any("ray-dashboard" in command_line(process) for process in started)
        subprocess.run(curl, shell=True, check=True, cwd=tmp_path)
        assert opened((tmp_path / "painted.jpg").read_bytes()).size == (80, 60)
        come_back_for_the_painting(tmp_path)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(120) == 0
        assert service.console().endswith("\nstopped\n")
        wait_for(lambda: not any(process.is_running() for process in started), 30)


def come_back_for_the_painting(folder: Path) -> None:
    """Submits, polls and fetches as the README does."""
    submit, look, fetch = COMMANDS[2].splitlines()
    (folder / "painted.jpg").unlink()

    def run(command: str) -> str:
        return subprocess.run(command, shell=True, check=True, cwd=folder, stdout=subprocess.PIPE, text=True).stdout

    job = json.loads(run(submit))
    wait_for(lambda: json.loads(run(look))["status"] not in ("queued", "running"), 120)
    seen = json.loads(run(look))
    assert (seen["id"], seen["status"], seen["error"]) == (job["id"], "succeeded", None)
    run(fetch)
    assert opened((folder / "painted.jpg").read_bytes()).size == (80, 60)


def snippet(word: str, text: str = README) -> str:
    """The one block of commands with a word."""
    (block,) = [block for block in code_blocks(text, "sh") if word in block]
    return block


@pytest.fixture
def on_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which `animegan` can be run, and `curl -s` sends a photograph without a network."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "online.jpg").write_bytes(photo_bytes(60, 80, "JPEG"))
    curl = tmp_path / "bin" / "curl"
    curl.write_text(f'#!/bin/sh\ntest "$#:$1" = 2:-s && exec cat {shlex.quote(str(tmp_path / "online.jpg"))}\n')
    curl.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_command_line_of_the_readme_paints_a_photo_and_a_folder(tmp_path: Path, on_path: dict[str, str]) -> None:
    make_photos(tmp_path, "photo.jpg", "photos/a.jpg", "photos/deep/b.jpg")
    for line in snippet("animegan paint").splitlines():
        run_line(line.removeprefix(".venv/bin/"), tmp_path, on_path)
    assert painted_sizes(tmp_path, "painted.jpg", "painted/a.jpg", "painted/deep/b.jpg") == [(80, 60)] * 3


def test_command_line_of_its_own_page_paints_files_folders_patterns_and_pipes(
    tmp_path: Path, on_path: dict[str, str]
) -> None:
    make_photos(tmp_path, "photo.jpg", "photos/a.jpg", "photos/deep/b.jpg")
    shutil.copy(ROOT / "tests" / "data" / "heic_nclx_p3.heic", tmp_path / "holiday.heic")
    file, folder, pattern, pipe = snippet("animegan paint photo.jpg", COMMAND_LINE).splitlines()
    for line, paintings in (
        (file, ["painted.jpg"]),
        (folder, ["painted/a.jpg", "painted/deep/b.jpg"]),
        (pattern, ["painted/a.webp", "painted/deep/b.webp"]),
        (pipe, ["painted.jpg"]),
    ):
        (tmp_path / "painted.jpg").unlink(missing_ok=True)
        run_line(line, tmp_path, on_path)
        assert painted_sizes(tmp_path, *paintings) == [(80, 60)] * len(paintings)
    assert opened((tmp_path / "painted" / "holiday.jpg").read_bytes()).format == "JPEG"


def make_photos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo_bytes(60, 80, "JPEG"))


def run_line(line: str, folder: Path, environment: dict[str, str]) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True, cwd=folder, env=environment)


def painted_sizes(folder: Path, *names: str) -> list[tuple[int, int]]:
    return [opened((folder / name).read_bytes()).size for name in names]


@pytest.mark.usefixtures("small_photograph")
def test_commands_of_the_readme_install_styles(
    tmp_path: Path, styles_dir: Path, checkpoint: bytes, animegan: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull, add = map(shlex.split, snippet("animegan styles").splitlines())
    entry = read_catalogue()[pull[-1]]
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / entry.file).write_bytes(checkpoint)
    (tmp_path / "my_checkpoint.pt").write_bytes(checkpoint)
    digest = {"bytes": len(checkpoint), "sha256": hashlib.sha256(checkpoint).hexdigest(), "git_blob": None}
    monkeypatch.setattr("serve_app.cli.main.read_catalogue", lambda: {entry.name: entry.model_copy(update=digest)})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with served(StaticFiles(directory=tmp_path / "mirror")) as mirror:
        monkeypatch.setenv(MIRROR_VARIABLE, mirror)
        for program, *arguments in (pull, add):
            assert program == ".venv/bin/animegan"
            assert animegan(*arguments) == 0
    assert {entry.name, "mine"} <= installed_styles().keys()


def test_python_of_the_readme_paints_a_photo(tmp_path: Path) -> None:
    (snippet,) = code_blocks(README, "python")
    (tmp_path / "photo.jpg").write_bytes(photo_bytes(60, 80, "JPEG"))
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=tmp_path)
    assert opened((tmp_path / "painted.jpg").read_bytes()).size == (80, 60)


def test_python_of_its_own_page_paints_a_folder(tmp_path: Path) -> None:
    (snippet,) = code_blocks(PYTHON, "python")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, width in (("a", 80), ("b", 64)):
        (photos / f"{name}.jpg").write_bytes(photo_bytes(60, width, "JPEG"))
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=tmp_path)
    assert [opened((photos / f"{name}.png").read_bytes()).size for name in "ab"] == [(80, 60), (64, 60)]


def test_every_snippet_is_run_here() -> None:
    assert set(re.findall(r"^ *```(\w+)", README, re.MULTILINE)) == {"sh", "python"}
    run = ["scripts/run", "/v1/stylize", "/v1/jobs", "animegan styles", "animegan paint"]
    (tests,) = [block for block in COMMANDS if not any(word in block for word in run)]
    assert all(line.startswith("scripts/test") for line in tests.splitlines())


def test_every_command_exists() -> None:
    for command in (line.split()[0] for block in COMMANDS for line in block.splitlines()):
        assert command == "curl" or command.startswith(".venv/bin/") or (ROOT / command).is_file(), command


def shown(default: object) -> str:
    """How the table writes a default."""
    if isinstance(default, int) and default >= 2**20 and default % 2**20 == 0:
        return f"{default // 2**20} MiB"
    if isinstance(default, int) and default >= 10**6:
        return f"{default:,}"
    empty: dict[object, str] = {None: "", (): "[]"}
    return empty.get(default, f"{default}")


@pytest.mark.parametrize("model", [Settings, IngressSettings, CodecSettings, StylizerSettings, JobRunnerSettings])
def test_settings_table_names_every_setting(model: type[StrictModel]) -> None:
    for name, field in model.model_fields.items():
        if name == "jobs":  # a table of its own
            continue
        rows = [line for line in SETTINGS.splitlines() if f"| `{name}` |" in line]
        defaults = [row.split("|")[3].strip().strip("`") for row in rows]  # two deployments have a memory_bytes each
        assert shown(field.default) in defaults


def test_styles_table_names_every_style_of_the_catalogue() -> None:
    for name, entry in read_catalogue().items():
        (row,) = [line for line in README.splitlines() if line.startswith("| `") and f"`{name}`" in line]
        assert entry.licence.split()[0] in row
