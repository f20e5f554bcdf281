import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from helpers import make_style, torch_bytes
from safetensors.torch import save_file
from shared import ROOT
from torch import Tensor

from serve_app.engine.checkpoints import save_style
from serve_app.engine.fidelity import measure_psnr
from serve_app.engine.thumbnails import thumbnail_of
from serve_app.styles.catalogue import installed_styles, read_installed
from serve_app.web.keys import parse_keys

RunCommand = Callable[..., int]

pytestmark = pytest.mark.usefixtures("small_photograph")


@pytest.fixture
def file(tmp_path: Path, checkpoint: bytes) -> Path:
    path = tmp_path / "downloaded.pt"
    path.write_bytes(checkpoint)
    return path


@pytest.mark.parametrize(
    ("options", "eps"),
    [
        (["--resize", "tf"], 1e-12),
        (["--resize", "align"], 1e-5),
        (["--resize", "half"], 1e-5),
        (["--resize", "tf", "--eps", "1e-5"], 1e-5),
        (["--resize", "align", "--eps", "0.001"], 0.001),
    ],
)
def test_import_takes_eps_from_the_resize_mode_unless_it_is_given(
    file: Path, styles_dir: Path, animegan: RunCommand, options: list[str], eps: float
) -> None:
    assert animegan("styles", "import", file, "--name", "mine", *options) == 0
    style = installed_styles()["mine"]
    assert (style.resize, style.eps) == (options[1], eps)


def test_import_keeps_the_given_description_of_the_style(
    file: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--resize", "align", "--title", "My Style", "--licence", "CC0", "--credit", "me", "--summary", "For me."]
    assert animegan("styles", "import", file, "--name", "mine", *options) == 0
    style = read_installed(styles_dir / "mine.safetensors")
    assert (style.title, style.licence, style.credit, style.summary) == ("My Style", "CC0", "me", "For me.")
    assert style.source == "imported from downloaded.pt"
    assert capsys.readouterr().out == "mine is installed (licence: CC0); restart the service to paint with it\n"


def test_import_measures_the_style_in_bf16_and_keeps_the_figure(
    file: Path, styles_dir: Path, animegan: RunCommand, weights: Mapping[str, Tensor]
) -> None:
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "half") == 0
    style = installed_styles()["mine"]
    assert style.psnr_bf16 == measure_psnr(weights, style)


@pytest.mark.parametrize("options", [[], ["--summary", ""]])
def test_import_without_a_summary_says_nothing_of_it(
    file: Path, styles_dir: Path, animegan: RunCommand, options: list[str]
) -> None:
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "align", *options) == 0
    assert installed_styles()["mine"].summary is None


def test_import_paints_the_thumbnail_and_replaces_that_of_the_style_before(
    file: Path, styles_dir: Path, animegan: RunCommand, weights: Mapping[str, Tensor]
) -> None:
    command = ["styles", "import", file, "--name", "mine", "--resize", "align"]
    assert animegan(*command) == 0
    style = installed_styles()["mine"]
    assert style.thumbnail == (styles_dir / "mine.webp").read_bytes() == thumbnail_of(weights, style)
    file.write_bytes(torch_bytes({**weights, "out_layer.0.weight": -weights["out_layer.0.weight"]}))
    assert animegan(*command, "--force") == 0
    assert installed_styles()["mine"].thumbnail not in (b"", style.thumbnail)
    assert sorted(path.name for path in styles_dir.iterdir()) == ["mine.safetensors", "mine.webp"]


@pytest.mark.parametrize("name", ["Mine", "../mine", "", "mine.pt", "-mine", "m" * 65])
def test_import_refuses_a_bad_name(
    file: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert animegan("styles", "import", file, f"--name={name}", "--resize", "align") == 1
    assert capsys.readouterr().err.startswith("animegan: --name: lower case letters, digits, - and _")
    assert list(styles_dir.iterdir()) == []


def test_import_of_an_address_asks_for_the_file(
    styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["styles", "import", "https://example.org/mine.pt", "--name", "mine", "--resize", "align"]
    assert animegan(*command) == 1
    assert capsys.readouterr().err.endswith("mine.pt is an address; download the file and import that\n")


def test_import_refuses_weights_that_paint_nothing(
    styles_dir: Path,
    animegan: RunCommand,
    capsys: pytest.CaptureFixture[str],
    weights: Mapping[str, Tensor],
    tmp_path: Path,
) -> None:
    path = tmp_path / "zeros.pt"
    path.write_bytes(torch_bytes({key: torch.zeros_like(weight) for key, weight in weights.items()}))
    assert animegan("styles", "import", path, "--name", "mine", "--resize", "align") == 1
    assert "mine paints every photograph in one colour" in capsys.readouterr().err
    assert list(styles_dir.iterdir()) == []


@pytest.mark.parametrize("eps", ["0", "-1", "nan", "inf"])
def test_import_refuses_an_eps_that_no_norm_can_have(
    file: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str], eps: str
) -> None:
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "align", f"--eps={eps}") == 1
    assert capsys.readouterr().err.startswith("animegan: --eps: ")
    assert list(styles_dir.iterdir()) == []


def test_import_replaces_an_installed_style_only_by_force(
    file: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["styles", "import", file, "--name", "mine", "--resize", "align"]
    assert animegan(*command, "--title", "First") == 0
    assert animegan(*command, "--title", "Second") == 1
    assert capsys.readouterr().err == "animegan: a style mine is installed already; --force replaces it\n"
    assert installed_styles()["mine"].title == "First"
    assert animegan(*command, "--title", "Second", "--force") == 0
    assert installed_styles()["mine"].title == "Second"


def test_import_refuses_the_shipped_styles_name(file: Path, styles_dir: Path, animegan: RunCommand) -> None:
    assert animegan("styles", "import", file, "--name", "toon", "--resize", "align") == 1
    assert list(styles_dir.iterdir()) == []


def test_import_by_force_mends_a_damaged_style(file: Path, styles_dir: Path, animegan: RunCommand) -> None:
    (styles_dir / "mine.safetensors").write_bytes(b"damaged")
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "align") == 1
    assert "mine" not in installed_styles()
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "align", "--force") == 0
    assert "mine" in installed_styles()


def test_import_of_a_file_that_is_not_there_is_one_line(
    tmp_path: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gone.pt"
    assert animegan("styles", "import", path, "--name", "mine", "--resize", "align") == 1
    assert capsys.readouterr().err == f"animegan: {path} cannot be read: No such file or directory\n"


def test_import_of_a_file_that_is_no_checkpoint_is_one_line(
    tmp_path: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photo.pt"
    path.write_bytes(b"")
    assert animegan("styles", "import", path, "--name", "mine", "--resize", "align") == 1
    assert capsys.readouterr().err == "animegan: photo.pt is empty.\n"


def test_import_of_a_file_that_does_not_end_is_one_line(
    styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.cli.main.MAX_CHECKPOINT_BYTES", 1000)
    assert animegan("styles", "import", "/dev/zero", "--name", "mine", "--resize", "align") == 1
    assert capsys.readouterr().err == ("animegan: /dev/zero has more than 1000 bytes; save the generator by itself\n")


def test_import_of_a_file_whose_name_is_not_utf_8(
    file: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = file.rename(file.with_name(os.fsdecode(b"caf\xe9.pt")))
    assert animegan("styles", "import", odd, "--name", "mine", "--resize", "align") == 0
    assert installed_styles()["mine"].source == r"imported from caf\xe9.pt"
    odd.write_bytes(b"")
    assert animegan("styles", "import", odd, "--name", "mine", "--resize", "align", "--force") == 1
    assert capsys.readouterr().err == "animegan: caf\\xe9.pt is empty.\n"


@pytest.mark.parametrize("option", ["title", "summary", "licence", "credit"])
def test_import_refuses_a_description_that_is_not_utf_8(
    file: Path, styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    odd = os.fsdecode(b"--" + option.encode() + b"=caf\xe9")
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "align", odd) == 1
    assert capsys.readouterr().err == f"animegan: --{option}: is not UTF-8 text\n"
    assert list(styles_dir.iterdir()) == []


def test_import_into_a_folder_that_cannot_be_written_is_one_line(
    file: Path,
    animegan: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ANIMEGAN_STYLES_DIR", str(file / "below-a-file"))
    assert animegan("styles", "import", file, "--name", "mine", "--resize", "align") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file / "below-a-file") in line


def test_list_shows_the_shipped_style_the_catalogue_and_the_folder(
    styles_dir: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert animegan("styles", "list") == 0
    *rows, empty, folder = capsys.readouterr().out.splitlines()
    states = {row.split()[0]: " ".join(row.split()[1:4]) for row in rows if not row.startswith(" ")}
    toon = next(number for number, row in enumerate(rows) if row.startswith("toon "))
    assert rows[toon + 1].startswith("                   Mild and true to the photograph: ")
    assert states["toon"].startswith("installed tf")
    assert states["paprika"] == "can be pulled"
    assert not empty
    assert str(styles_dir) in folder


def run_list(styles_dir: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """`animegan styles list` in a process of its own, whose output is not pytest's."""
    script = "import sys; from serve_app.cli.main import main; sys.argv = ['animegan', 'styles', 'list']; main()"
    environment = os.environ | {"ANIMEGAN_STYLES_DIR": str(styles_dir)} | environment
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)


def test_list_shows_what_is_left_out_and_why(
    styles_dir: Path, weights: Mapping[str, Tensor], animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style("mine"), path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    save_file(dict(weights), styles_dir / "old.safetensors", metadata=make_style("old").to_header())
    assert animegan("styles", "list") == 0
    said = capsys.readouterr()
    assert f"\nleft out: {path} is damaged: its content does not match its digest, " in said.out
    assert "\nold                no digest      align  Seeded; licence: MIT\n" in said.out
    assert "\nno digest: an older version wrote the file" in said.out
    assert "\nmine" not in said.out
    assert said.err == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_list_shows_names_and_titles_that_the_terminal_cannot(
    tmp_path: Path, weights: Mapping[str, Tensor], encoding: str
) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9j\xe0")
    style = make_style("mine", title="Añejo 雨\x1b[2J", summary="雨\x1b[3J")
    save_style(weights, style, folder / "mine.safetensors")
    (folder / os.fsdecode(b"\xff.safetensors")).touch()
    listed = run_list(folder, PYTHONIOENCODING=encoding)
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert rb"\x1b[2J; licence: MIT" in listed.stdout
    assert rb"\x1b[3J" in listed.stdout
    assert b"left out: " in listed.stdout
    assert listed.stdout.decode(encoding)


def test_check_is_content_with_the_shipped_configs(animegan: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [ROOT / "configs" / "local.yaml", ROOT / "configs" / "prod.yaml"]
    assert animegan("check", *configs) == 0
    assert capsys.readouterr().out == f"fine: {configs[0]}, {configs[1]}\n"


def test_check_names_the_wrong_key_by_its_path_and_the_one_that_was_meant(
    tmp_path: Path, animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ROOT / "configs" / "local.yaml"
    broken = tmp_path / "broken.yaml"
    broken.write_text(good.read_text().replace("stuck_after_s", "stuck_afters"))
    assert animegan("check", good, broken) == 1
    assert capsys.readouterr().out == (
        f"{broken}: applications.0.deployments.2.user_config.stuck_afters: unknown key, did you mean stuck_after_s?\n"
    )


def test_new_key_is_printed_once_beside_its_line(animegan: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    assert animegan("keys", "new", "alice", "--share", "0.5") == 0
    out = capsys.readouterr().out
    (key,) = [word for word in out.split() if word.startswith("ag_")]
    (line,) = [word for word in out.split() if word.startswith("alice:sha256:")]
    assert out.count(key) == 1
    (known,) = parse_keys(line, "here")
    assert (known.digest, known.share) == (hashlib.sha256(key.encode()).digest(), 0.5)


@pytest.mark.parametrize("arguments", [["a:b"], [""], ["alice", "--share", "2"], ["alice", "--share", "0"]])
def test_key_that_could_not_be_in_a_key_file_is_refused_in_one_line(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert animegan("keys", "new", *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("animegan: a key's name has 1 to 64 letters")


def test_command_without_arguments_shows_how_it_is_used(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        animegan()
    assert caught.value.code == 2
    assert "usage: animegan" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_goes_away_is_no_error(unbuffered: str) -> None:
    """As `animegan styles list | head -1` does; a buffered line is written only at the end."""
    command = [
        sys.executable,
        "-c",
        "import sys; from serve_app.cli.main import main; sys.exit(main())",
        "styles",
        "list",
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
