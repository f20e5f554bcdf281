"""The README's commands and code do what the README says, and its tables and those of the settings are complete."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from pictures import opened, photo_bytes
from service import command_line, port_answers, running, wait_for
from shared import ROOT

from serve_app.settings import (
    CodecSettings,
    IngressSettings,
    JobRunnerSettings,
    Settings,
    StrictModel,
    StylizerSettings,
)
from serve_app.styles.catalogue import read_catalogue

README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
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
