"""The help that people read first, and completion in shells."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from helpers import make_style
from shared import SHIPPED_STYLES
from torch import Tensor

from serve_app.cli.main import GROUPS, make_parser
from serve_app.engine.checkpoints import save_style

RunCommand = Callable[..., int]

WIDTH = 80  # columns of a terminal


def commands() -> list[str]:
    (action,) = (action for action in make_parser()._actions if action.metavar == "COMMAND")
    assert isinstance(action.choices, dict)
    return list(action.choices)


def test_help_shows_every_command_once_in_its_group(animegan: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        animegan("--help")
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(commands())
    for title, names in GROUPS.items():
        start = lines.index(f"{title}:") + 1
        shown = lines[start : start + len(names)]
        assert [line.split()[0] for line in shown] == names
        assert all(len(line.split()) > 2 for line in shown)
        assert lines[start + len(names)] == ""
    assert lines[-1] == "  animegan run"


@pytest.mark.parametrize("command", [None, *commands()])
def test_help_fits_a_terminal(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with pytest.raises(SystemExit):
        animegan(*([] if command is None else [command]), "--help")
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > WIDTH] == []


def test_names_of_styles_are_printed_alone(
    animegan: RunCommand, styles_dir: Path, weights: Mapping[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    save_style(weights, make_style("mine"), styles_dir / "mine.safetensors")
    assert animegan("styles", "list", "--names") == 0
    assert capsys.readouterr().out.splitlines() == sorted([*SHIPPED_STYLES, "mine"])


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command `animegan` of this tree, and its completion scripts."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "animegan"
    code = "import sys; from serve_app.cli.main import main; sys.exit(main())"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    command.chmod(0o755)
    for shell in ("bash", "zsh"):
        printed = subprocess.run([command, "completion", shell], check=True, capture_output=True)
        (folder / f"completion.{shell}").write_bytes(printed.stdout)
    return folder


COMPLETE = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
entry=$(complete -p animegan)
[[ $entry =~ -F\\ ([^ ]+) ]] || exit 3
"${BASH_REMATCH[1]}" animegan "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pa", {"paint"}),
        ("paint --ov", {"--overwrite"}),
        ("paint --format ", {"jpeg", "webp", "png", "avif"}),
        ("paint --style ", set(SHIPPED_STYLES)),
        ("paint --style to", {"toon"}),
        ("export c", {"cel"}),
        ("styles im", {"import"}),
        ("paint in/", {"in/a.jpg", "in/b"}),
        ("paint in/a.jpg -o in", {"in"}),
        ("completion ", {"bash", "zsh"}),
    ],
)
def test_bash_completes(scripts: Path, styles_dir: Path, tmp_path: Path, words: str, offered: set[str]) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a.jpg").touch()
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", scripts / "completion.bash", "animegan", *words.split(" ")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.rstrip(" /") for line in done.stdout.splitlines()} - {"-h", "--help"} == offered


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_can_read_its_script(scripts: Path) -> None:
    script = scripts / "completion.zsh"
    subprocess.run(["zsh", "-n", script], check=True)
    assert script.read_text().startswith("#compdef animegan\n")
