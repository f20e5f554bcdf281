"""`animegan paint`: what is painted, skipped and told, over a backend that inverts, and what the real one paints."""

import errno
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
from paint_process import MAX_BYTES, InvertingBackend
from pictures import opened, photo_bytes
from service import wait_for
from shared import ROOT, files_of, name_of, needs_shared
from validators import module

from serve_app import Painter
from serve_app.cli.paint import command
from serve_app.errors import AnimeganError, OutOfMemory

RunCommand = Callable[..., int]

SIZE = {
    "type": "object",
    "properties": {"width": {"type": "integer", "minimum": 1}, "height": {"type": "integer", "minimum": 1}},
    "required": ["width", "height"],
    "additionalProperties": False,
}
LINE = {  # as docs/command-line.md has it
    "type": "object",
    "properties": {
        "photo": {"type": "string"},
        "status": {"enum": ["painted", "skipped", "failed"]},
        "painting": {"type": ["string", "null"]},
        "style": {"type": "string"},
        "original": SIZE,
        "painted": SIZE,
        "resized": {"type": "boolean"},
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "pattern": "^[a-z0-9-]+$"},
                "detail": {"type": "string", "pattern": r"\.$"},
                "limit": {"type": "number"},
                "actual": {"type": "number"},
                "unit": {"type": "string"},
            },
            "required": ["code", "detail"],
            "additionalProperties": False,
        },
    },
    "required": ["photo", "status", "painting"],
    "additionalProperties": False,
    "allOf": [
        {
            "if": {"properties": {"status": {"const": "painted"}}},
            "then": {"required": ["style", "original", "painted", "resized"]},
        },
        {
            "if": {"properties": {"status": {"const": "failed"}}},
            "then": {"required": ["error"], "properties": {"painting": {"type": "null"}}},
            "else": {"not": {"required": ["error"]}, "properties": {"painting": {"type": "string"}}},
        },
    ],
}
TIMEOUT_S = 300  # of whatever should end, on a machine that is busy
PROGRAM = [sys.executable, str(ROOT / "tests" / "support" / "paint_process.py")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> InvertingBackend:
    made = InvertingBackend()
    monkeypatch.setattr(command, "open_backend", lambda options: made)
    return made


def make_photos(count: int, folder: str = "in") -> list[Path]:
    paths = [Path(folder, f"{number}.png") for number in range(count)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed, path in enumerate(paths):
        path.write_bytes(photo_bytes(24, 32, seed=seed))
    return paths


def lines_of(out: str) -> dict[str, dict[str, Any]]:
    """The lines of JSON by photograph, each checked."""
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        module("jsonschema").validate(line, LINE)
    assert len({line["photo"] for line in lines}) == len(lines)
    return {line["photo"]: line for line in lines}


def statuses(out: str) -> Counter[str]:
    return Counter(line["status"] for line in lines_of(out).values())


def files_in(folder: str) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_folder_is_painted_past_a_broken_file_which_is_told_at_the_end(
    animegan: RunCommand, backend: InvertingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(3)
    Path("in/1.png").write_bytes(photo_bytes(24, 32)[:60])
    assert animegan("paint", "in", "absent.jpg", "-o", "out") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "2 painted, 0 skipped, 2 failed",
        "animegan: absent.jpg: There is no such file.",
        "animegan: in/1.png: The picture ends before it is complete; send the whole file.",
    ]
    assert files_in("out") == ["0.png", "2.png"]
    photo, painting = (np.asarray(opened(Path(folder, "2.png").read_bytes())) for folder in ("in", "out"))
    assert np.array_equal(painting, 255 - photo)


def test_lines_for_programs_say_what_came_of_each(
    animegan: RunCommand, backend: InvertingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.max_side = 16
    make_photos(2)
    Path("in/big.jpg").write_bytes(bytes(MAX_BYTES + 1))
    Path("out").mkdir()
    Path("out/1.png").write_bytes(b"painted before")
    assert animegan("paint", "in", "-o", "out", "--json") == 1
    assert lines_of(capsys.readouterr().out) == {
        "in/0.png": {
            "photo": "in/0.png",
            "status": "painted",
            "painting": "out/0.png",
            "style": "toon",
            "original": {"width": 32, "height": 24},
            "painted": {"width": 16, "height": 12},
            "resized": True,
        },
        "in/1.png": {"photo": "in/1.png", "status": "skipped", "painting": "out/1.png"},
        "in/big.jpg": {
            "photo": "in/big.jpg",
            "status": "failed",
            "painting": None,
            "error": {
                "code": "too-many-bytes",
                "detail": f"The file has more than the {MAX_BYTES} bytes that are read here.",
                "limit": MAX_BYTES,
                "unit": "bytes",
            },
        },
    }


def test_what_is_done_is_skipped_until_it_is_to_be_painted_again(
    animegan: RunCommand, backend: InvertingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(3)
    command = ["paint", "in", "-o", "out"]
    assert [animegan(*command), animegan(*command), backend.painted] == [0, 0, 3]
    Path("out/1.png").write_bytes(b"mine")
    assert animegan(*command, "--overwrite") == 0
    assert backend.painted == 6
    assert opened(Path("out/1.png").read_bytes()).size == (32, 24)
    assert capsys.readouterr().err.splitlines() == [
        "3 painted, 0 skipped, 0 failed",
        "0 painted, 3 skipped, 0 failed",
        "3 painted, 0 skipped, 0 failed",
    ]


def test_nothing_is_loaded_where_nothing_is_to_be_painted(
    animegan: RunCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "open_backend", lambda options: pytest.fail("loaded"))
    make_photos(1, "out")
    make_photos(1)
    Path("empty").mkdir()
    assert animegan("paint", "in", "-o", "out") == 0
    assert animegan("paint", "absent", "-o", "out") == 1
    assert animegan("paint", "empty", "-o", "out") == 1
    assert capsys.readouterr().err.endswith("\nanimegan: there are no photographs there\n")


def test_painting_that_cannot_be_written_leaves_no_file_and_the_others_are_painted(
    animegan: RunCommand,
    backend: InvertingBackend,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_photos(3)
    sync, synced = os.fsync, []

    def fail_once(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 1:
            raise OSError(errno.EIO, "the disk is odd")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    assert animegan("paint", "in", "-o", "out") == 1
    assert len(files_in("out")) == 2
    assert capsys.readouterr().err.count("the disk is odd.\n") == 1


def test_full_disk_ends_the_run(
    animegan: RunCommand,
    backend: InvertingBackend,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    make_photos(50)
    monkeypatch.setattr(os, "fsync", fail)
    assert animegan("paint", "in", "-o", "out") == 1
    assert backend.painted < 20
    assert files_in("out") == []
    assert capsys.readouterr().err.endswith(".png cannot be written: No space left on device\n")


def test_place_that_can_hold_no_painting_is_found_before_painting(
    animegan: RunCommand, backend: InvertingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(1, "in/deep")
    Path("out").mkdir()
    Path("out/deep").write_bytes(b"a file")
    assert animegan("paint", "in", "-o", "out") == 1
    assert backend.painted == 0
    assert f"in/deep/0.png: Not a directory ({Path.cwd() / 'out' / 'deep'})." in capsys.readouterr().err


def test_path_through_a_file_is_told_before_anything_is_loaded(
    animegan: RunCommand, backend: InvertingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(1)
    for output in ("in/0.png/out", "in/0.png/out.jpg"):
        assert animegan("paint", "in/0.png", "-o", output) == 1
        place = Path.cwd() / "in" / "0.png"
        assert capsys.readouterr().err == f"animegan: {output} cannot be written: {place} is a file\n"


def test_file_system_that_takes_no_files_is_told_from_a_folder_that_is_closed(
    animegan: RunCommand,
    backend: InvertingBackend,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_photos(1)
    with monkeypatch.context() as patch:
        patch.setattr("os.statvfs", lambda _: Namespace(f_flag=os.ST_RDONLY))
        assert animegan("paint", "in", "-o", "out") == 1
    assert f"in/0.png: Read-only file system ({Path.cwd()})." in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        assert animegan("paint", "in", "-o", "out") == 1
    assert f"in/0.png: Permission denied ({Path.cwd()})." in capsys.readouterr().err
    assert backend.painted == 0


def test_fault_of_painting_is_one_photographs_and_a_fault_of_the_backend_ends_the_run(
    animegan: RunCommand, backend: InvertingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(20)
    for fault, said in ((OutOfMemory("No memory."), "No memory."), (RuntimeError("odd"), "Painting it failed.")):
        backend.fault = fault
        assert animegan("paint", "in", "-o", "out") == 1
        assert capsys.readouterr().err.count(said) == 20
    backend.fault, backend.painted = AnimeganError("the key is wrong"), 0
    assert animegan("paint", "in", "-o", "out") == 1
    assert backend.painted <= backend.at_once
    assert capsys.readouterr().err.endswith("\nanimegan: the key is wrong\n")


def test_photographs_at_work_hold_no_more_bytes_than_are_set_aside(
    animegan: RunCommand, backend: InvertingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in make_photos(12):
        path.write_bytes(path.read_bytes().ljust(20_000, b" "))
    backend.together = 4
    assert animegan("paint", "in", "-o", "out") == 0
    assert backend.most == 4 * 20_000  # as long as nothing bounds them
    monkeypatch.setattr(command, "MAX_HELD_BYTES", 2 * 20_000)
    backend.most, backend.pause_s = 0, 0.02
    assert animegan("paint", "in", "-o", "out", "--overwrite") == 0
    assert 0 < backend.most <= 2 * 20_000
    assert backend.painted == 24


class Programs:
    """Runs of the command as programs of their own; none outlives its test."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(
        self,
        *arguments: str,
        most: int | None = None,
        command: Sequence[str] = PROGRAM,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> "subprocess.Popen[bytes]":
        environment = os.environ | ({} if most is None else {"PAINT_MOST": str(most)})
        run = subprocess.Popen([*command, *arguments], env=environment, stdin=stdin, stdout=stdout, stderr=stderr)
        self.started.append(run)
        return run


@pytest.fixture
def program() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    for run in programs.started:
        run.kill()
        run.wait()


@pytest.mark.slow
def test_run_that_was_killed_goes_on_without_painting_anything_twice(program: Programs) -> None:
    make_photos(12)
    killed = program("in", "-o", "out", most=5)
    wait_for(lambda: len(list(Path("out").glob("*.png"))) == 5, TIMEOUT_S)
    killed.kill()
    killed.wait(TIMEOUT_S)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("out").iterdir()}
    out, err = program("in", "-o", "out", "--json").communicate(timeout=TIMEOUT_S)
    assert (statuses(out.decode()), err) == ({"painted": 7, "skipped": 5}, b"7 painted, 5 skipped, 0 failed\n")
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("out").iterdir()}
    assert {name: after[name] for name in before} == before
    assert files_in("out") == files_in("in")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_run_at_once_and_leaves_no_half_file(program: Programs, number: signal.Signals) -> None:
    make_photos(12)
    stopped = program("in", "-o", "out", most=5)
    wait_for(lambda: len(list(Path("out").glob("*.png"))) == 5, TIMEOUT_S)
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=TIMEOUT_S)
    assert (stopped.returncode, out) == (128 + number, b"")
    assert err == b"5 painted, 0 skipped, 0 failed, 7 left\nanimegan: stopped; the same command goes on from here\n"
    assert len(files_in("out")) == 5


@pytest.mark.slow
def test_pipes_carry_a_photograph_in_and_its_painting_out(program: Programs) -> None:
    (photo,) = make_photos(1)
    inverted = 255 - np.asarray(opened(photo.read_bytes()))
    for arguments in (["-", "--format", "png"], ["-", "-o", "-", "--format", "png"], [str(photo), "-o", "-"]):
        with photo.open("rb") as file:
            painted = program(*arguments, stdin=file)
            out, err = painted.communicate(timeout=TIMEOUT_S)
        assert (painted.returncode, err) == (0, b"")
        assert np.array_equal(np.asarray(opened(out)), inverted)
    broken = program("-", "-o", "p.png", stdin=subprocess.PIPE)
    assert broken.communicate(photo.read_bytes()[:50], timeout=TIMEOUT_S)[1].endswith(
        b"animegan: -: The picture ends before it is complete; send the whole file.\n"
    )
    assert (broken.returncode, Path("p.png").exists()) == (1, False)


@pytest.mark.slow
def test_bar_is_shown_on_a_terminal_alone(program: Programs) -> None:
    make_photos(3)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows and columns
    shown = program("in", "-o", "out", "--json", stderr=theirs)
    out, _ = shown.communicate(timeout=TIMEOUT_S)
    os.close(theirs)
    said = b""
    while chunk := read_terminal(ours):
        said += chunk
    os.close(ours)
    assert b"3/3" in said
    assert b"photo" in said
    assert statuses(out.decode()) == {"painted": 3}
    piped = program("in", "-o", "again")
    assert piped.communicate(timeout=TIMEOUT_S) == (b"", b"3 painted, 0 skipped, 0 failed\n")


def read_terminal(descriptor: int) -> bytes:
    """What is left to read; a terminal whose other end is closed fails."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


@pytest.mark.slow
def test_picture_is_not_shown_as_text_on_a_terminal(program: Programs) -> None:
    make_photos(1)
    ours, theirs = pty.openpty()
    to_terminal = program("in/0.png", "-o", "-", stdout=theirs)
    assert to_terminal.communicate(timeout=TIMEOUT_S)[1].startswith(b"animegan: the painting would go to the terminal")
    from_terminal = program("-", "-o", "p.png", stdin=theirs)
    assert from_terminal.communicate(timeout=TIMEOUT_S)[1].startswith(b"animegan: - reads the photograph from a pipe")
    for descriptor in (ours, theirs):
        os.close(descriptor)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in", "-o", "-", "--json"], "a pipe carries one photograph"),
        (["in/0.png", "-o", "-", "--json"], "the painting and --json both need the standard output"),
        (["in", "-o", "out", "--url", "http://127.0.0.1:1", "--precision", "fp32"], "--precision is of painting here"),
        (["in", "-o", "out", "--style", "no-such-style"], "There is no style 'no-such-style' here; installed are: "),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    make_photos(1)
    assert animegan("paint", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"animegan: {said}")


@pytest.mark.parametrize(
    "option", ["--quality=0", "--quality=101", "--quality=x", "--max-side=7", "--max-side=16384", "--format=gif"]
)
def test_values_beyond_their_limits_are_refused(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        animegan("paint", "a.jpg", "-o", "out", option)
    assert caught.value.code == 2
    assert f"argument {option.split('=')[0]}: " in capsys.readouterr().err


WITHOUT_RAY = """
import sys
from serve_app.cli.main import main
status = main()
assert "torch" in sys.modules and "ray" not in sys.modules
sys.exit(status)
"""


@pytest.mark.slow
def test_real_painting_is_that_of_painter_and_needs_no_ray() -> None:
    make_photos(4)
    Path("in/clear.png").write_bytes(clear_bytes())
    Path("in/large.png").write_bytes(photo_bytes(200, 160))
    Path("in/small.png").write_bytes(photo_bytes(4, 40))
    options = ["--precision", "fp32", "--max-side", "96", "--json"]
    painted = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, "paint", "in", "-o", "out", *options], capture_output=True, text=True
    )
    assert "animegan: in/small.png: " in painted.stderr
    assert (painted.returncode, statuses(painted.stdout)) == (1, {"painted": 6, "failed": 1})
    with Painter(precision="fp32", max_side=96) as painter:
        for name in files_in("out"):
            ours, theirs = opened(Path("out", name).read_bytes()), painter.paint(Path("in", name))
            assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
            assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1


def clear_bytes() -> bytes:
    """A photograph with transparency."""
    image = opened(photo_bytes(32, 48))
    image.putalpha(image.getchannel("R"))
    image.save("clear.png")
    return Path("clear.png").read_bytes()


@pytest.mark.slow
def test_real_run_that_was_killed_takes_its_decoders_along(program: Programs) -> None:
    make_photos(200)
    command = [sys.executable, "-c", WITHOUT_RAY, "paint"]
    killed = program("in", "-o", "out", "--max-side", "32", command=command)
    wait_for(lambda: len(list(Path("out").glob("*.png"))) >= 3, TIMEOUT_S)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait(TIMEOUT_S)
    assert children
    wait_for(lambda: not any(child.is_running() for child in children), TIMEOUT_S)
    assert all(opened(path.read_bytes()).size == (32, 24) for path in Path("out").glob("*.png"))


KINDS = ("photos", "bad")
BAD = {"broken-image", "unsupported-format", "too-small", "too-many-pixels", "decode-memory", "decode-timeout"}


@needs_shared
@pytest.mark.slow
def test_every_shared_photograph_and_hostile_file_is_painted_or_refused_in_words(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    sources = {f"in/{name_of(path).replace('/', '-')}.jpg": path for kind in KINDS for path in files_of(kind)}
    assert len(sources) == sum(len(files_of(kind)) for kind in KINDS)
    for link, path in sources.items():
        Path(link).symlink_to(path)
    animegan("paint", "in", "-o", "out", "--max-side", "64", "--json", "--precision", "fp32")
    lines = lines_of(capsys.readouterr().out)
    assert lines.keys() == sources.keys()
    for name, line in lines.items():
        is_bad = sources[name].parents[1].name == "bad"
        if line["status"] == "painted":
            size = opened(Path(line["painting"]).read_bytes()).size
            assert size == (line["painted"]["width"], line["painted"]["height"])
        else:
            assert line["error"]["code"] in (BAD if is_bad else {"too-small", "unsupported-format"}), name
    assert len(files_in("out")) == sum(line["status"] == "painted" for line in lines.values())
