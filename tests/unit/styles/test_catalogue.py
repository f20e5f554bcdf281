import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers import make_style
from pydantic import ValidationError
from safetensors.numpy import save_file
from shared import SHIPPED_STYLES
from torch import Tensor

from serve_app.engine.checkpoints import save_style
from serve_app.errors import StyleError, UnknownStyle
from serve_app.frames import ResizeMode
from serve_app.styles.catalogue import Style, default_eps, find_style, installed_styles, read_catalogue, read_installed

COMMIT = "25d7b017267208dfaf34026aa3425e518372aa2f"

# As published: bytes, sha256, git blob id, resize mode, eps.
OFFICIAL = {
    "face_paint_512_v2": (
        8_601_086,
        "06b88a204eb230889444ad868ee5608f4fce5d4ff7b7738acaa4209c2b8fdca7",
        "d75102f8f201ddaf8dbe6b913b1a97585b55f838",
        "align",
        1e-5,
    ),
    "face_paint_512_v1": (None, None, "19c1a1da4d9580186109a2b055d91044e5127de6", "align", 1e-5),
    "celeba_distill": (
        8_603_556,
        "a3740d98f99efe2ee6c332de2b800f542ddbb2d15e835c07e9bf667c29cef8a7",
        "3b7ea61b02254980831cc3bc77af30666dbc999c",
        "align",
        1e-5,
    ),
    "paprika": (
        8_603_556,
        "3eaba1b6d01e88ea32b16a6006b04eb3f60327c1dcc841de640d3196898da344",
        "58086c9db9fc7a9e5c2876ca31b8079599352643",
        "tf",
        1e-12,
    ),
}


def test_catalogue_holds_the_official_checkpoints_with_their_digests() -> None:
    assert {
        name: (entry.bytes, entry.sha256, entry.git_blob, entry.resize, entry.eps)
        for name, entry in read_catalogue().items()
    } == OFFICIAL


@pytest.mark.parametrize("name", OFFICIAL)
def test_catalogue_address_is_pinned_to_a_commit(name: str) -> None:
    assert read_catalogue()[name].source == (
        f"https://raw.githubusercontent.com/bryandlee/animegan2-pytorch/{COMMIT}/weights/{name}.pt"
    )


def test_catalogue_says_what_is_not_for_commerce() -> None:
    licences = {name: entry.licence for name, entry in read_catalogue().items()}
    assert licences.pop("paprika").startswith("non-commercial")
    assert set(licences.values()) == {"MIT"}


def test_catalogue_says_what_each_style_is_good_for_in_a_sentence() -> None:
    for entry in read_catalogue().values():
        assert entry.summary is not None, entry.name
        assert re.fullmatch(r"[A-Z][^.]{20,130}\.", entry.summary), entry.name


def test_saved_style_is_installed_with_all_that_it_said_of_itself(
    weights: Mapping[str, Tensor], styles_dir: Path
) -> None:
    style = make_style("mine", resize="tf", eps=1e-12, credit="Añejo 雨", psnr_bf16=51.5, summary="For 雨.")
    save_style(weights, style, styles_dir / "mine.safetensors")
    installed = installed_styles()["mine"]
    assert installed.model_dump(include=set(Style.model_fields)) == style.model_dump()
    assert installed.path == styles_dir / "mine.safetensors"


@pytest.mark.parametrize("psnr", [-1, float("nan"), float("inf"), "much"])
def test_psnr_of_a_style_is_a_number(psnr: object) -> None:
    with pytest.raises(ValidationError):
        make_style(psnr_bf16=psnr)


def test_header_of_a_style_that_was_not_measured_says_nothing_of_it() -> None:
    assert "psnr" not in str(make_style().to_header())
    assert '"psnr_bf16":51.5' in str(make_style(psnr_bf16=51.5).to_header())


def test_header_of_a_style_says_what_it_is_good_for_only_if_that_is_known() -> None:
    assert "summary" not in str(make_style().to_header())
    assert '"summary":"For tests."' in str(make_style(summary="For tests.").to_header())


def test_folder_in_the_settings_goes_before_the_environments(
    weights: Mapping[str, Tensor], styles_dir: Path, tmp_path: Path
) -> None:
    save_style(weights, make_style("theirs"), styles_dir / "theirs.safetensors")
    save_style(weights, make_style("mine"), tmp_path / "other" / "mine.safetensors")
    names = installed_styles(tmp_path / "other").keys()
    assert "mine" in names
    assert "theirs" not in names


def test_shipped_style_is_always_installed_and_a_local_one_of_its_name_goes_before_it(
    weights: Mapping[str, Tensor], styles_dir: Path
) -> None:
    assert installed_styles()["toon"].path.parent != styles_dir
    save_style(weights, make_style("toon"), styles_dir / "toon.safetensors")
    assert installed_styles()["toon"].path.parent == styles_dir


def test_local_folder_need_not_exist(tmp_path: Path) -> None:
    assert "toon" in installed_styles(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x10\0\0\0\0\0\0\0{"])
def test_damaged_style_is_left_out_and_named(styles_dir: Path, content: bytes) -> None:
    path = styles_dir / "hurt.safetensors"
    path.write_bytes(content)
    styles = installed_styles()
    assert list(styles) == SHIPPED_STYLES
    ((name, reason),) = styles.left_out
    assert name == "hurt"
    assert reason.startswith(f"{path} is damaged and cannot be read as a style: ")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)  # a hole, which takes no space


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_folder, "is a folder, not the file of a style."),
        (os.mkfifo, "is a pipe or a device, not the file of a style."),
        (make_loop, "cannot be read: Too many levels of symbolic links."),
        (make_dangling, "cannot be read: No such file or directory."),
        (make_large, f"has {2**31} bytes; a style has at most {2**26}."),
    ],
)
def test_what_is_no_file_of_a_style_is_left_out_and_named(
    styles_dir: Path, make: Callable[[Path], None], said: str
) -> None:
    path = styles_dir / "odd.safetensors"
    make(path)
    styles = installed_styles()
    assert list(styles) == SHIPPED_STYLES
    assert styles.left_out == [("odd", f"{path} {said}")]


def test_file_that_may_not_be_read_is_left_out_and_named(
    weights: Mapping[str, Tensor], styles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style("mine"), path)
    read_bytes = Path.read_bytes

    def refuse(file: Path) -> bytes:  # root, who may run the tests, may read everything
        if file == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert installed_styles().left_out == [("mine", f"{path} cannot be read: Permission denied.")]


def test_folder_that_cannot_be_listed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    styles = installed_styles(path)
    assert list(styles) == SHIPPED_STYLES
    assert [reason for _, reason in styles.left_out] == [f"{path} cannot be read: Not a directory."]


def test_of_two_files_of_one_style_the_one_with_its_name_is_served(
    weights: Mapping[str, Tensor], styles_dir: Path
) -> None:
    for name in ("a-copy", "mine", "z-copy"):
        save_style(weights, make_style("mine"), styles_dir / f"{name}.safetensors")
    styles = installed_styles()
    path = styles_dir / "mine.safetensors"
    assert styles["mine"].path == path
    assert styles.left_out == [
        (name, f"{styles_dir}/{name}.safetensors is the style mine, and so is {path}; remove one of them.")
        for name in ("a-copy", "z-copy")
    ]


def test_damaged_local_style_does_not_bring_back_the_shipped_one_of_its_name(styles_dir: Path) -> None:
    (styles_dir / "toon.safetensors").write_bytes(b"damaged")
    styles = installed_styles()
    others = [name for name in SHIPPED_STYLES if name != "toon"]
    assert list(styles) == others
    with pytest.raises(UnknownStyle) as caught:
        find_style(styles, "toon")
    assert str(caught.value) == (
        "The style 'toon' is left out, because its file cannot be used; the log says why. "
        f"Installed are: {', '.join(others) or 'none'}."
    )


def test_names_of_files_need_not_be_utf_8(
    weights: Mapping[str, Tensor], styles_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_style(weights, make_style("mine"), Path(os.fsdecode(os.fsencode(styles_dir) + b"/caf\xe9.safetensors")))
    Path(os.fsdecode(os.fsencode(styles_dir) + b"/\xff.safetensors")).touch()
    styles = installed_styles()
    assert styles.keys() == {*SHIPPED_STYLES, "mine"}
    (reason,) = caplog.messages
    assert f"{styles_dir}/\\xff.safetensors is damaged" in reason
    reason.encode()


def test_title_that_is_not_utf_8_is_left_out_and_named(styles_dir: Path) -> None:
    description = make_style("mine").model_dump_json().replace("Seeded", r"\ud800")
    path = styles_dir / "mine.safetensors"
    save_file({"weight": np.zeros(2, np.float32)}, path, metadata={"animegan_style": description})
    assert installed_styles().left_out == [
        ("mine", f"{path} does not describe itself as a style; install it with `animegan styles import`.")
    ]


def test_truncated_style_is_named(weights: Mapping[str, Tensor], styles_dir: Path) -> None:
    path = styles_dir / "half.safetensors"
    save_style(weights, make_style("half"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StyleError) as caught:
        read_installed(path)
    assert str(caught.value).startswith(f"{path} is damaged and cannot be read as a style: ")


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"format": "pt"},
        {"animegan_style": "not json"},
        {"animegan_style": "{}"},
        {"animegan_style": "[]"},
        {"animegan_style": '"toon"'},
        {"animegan_style": make_style().model_dump_json().replace("align", "stretch")},
        {"animegan_style": make_style().model_dump_json().replace("{", '{"path": "/elsewhere", ', 1)},
    ],
)
def test_file_that_does_not_describe_a_style_is_named(styles_dir: Path, header: dict[str, str] | None) -> None:
    path = styles_dir / "other.safetensors"
    save_file({"weight": np.zeros(2, np.float32)}, path, metadata=header)
    with pytest.raises(StyleError) as caught:
        read_installed(path)
    assert str(caught.value) == (
        f"{path} does not describe itself as a style; install it with `animegan styles import`."
    )


def test_unknown_style_names_those_that_are_installed(styles_dir: Path, weights: Mapping[str, Tensor]) -> None:
    save_style(weights, make_style("mine"), styles_dir / "mine.safetensors")
    styles = installed_styles()
    with pytest.raises(UnknownStyle) as caught:
        find_style(styles, "ghibli")
    assert str(caught.value) == f"There is no style 'ghibli' here; installed are: {', '.join(sorted(styles))}."
    assert find_style(styles, "mine").name == "mine"


def test_unknown_style_repeats_only_the_beginning_of_a_long_name() -> None:
    with pytest.raises(UnknownStyle) as caught:
        find_style({}, "x" * 10_000)
    assert f"'{'x' * 64}'" in str(caught.value)


@pytest.mark.parametrize(("resize", "multiple", "eps"), [("align", 1, 1e-5), ("half", 4, 1e-5), ("tf", 4, 1e-12)])
def test_resize_mode_decides_the_multiple_and_the_default_eps(resize: ResizeMode, multiple: int, eps: float) -> None:
    assert make_style(resize=resize).multiple == multiple
    assert default_eps(resize) == eps


def test_a_style_of_the_catalogue_that_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(UnknownStyle, match=r"`animegan styles pull paprika` and a restart install it\.$"):
        find_style({}, "paprika", read_catalogue())
