from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers import make_style
from safetensors.numpy import save_file
from torch import Tensor

from serve_app.engine.checkpoints import save_style
from serve_app.errors import StyleError, UnknownStyle
from serve_app.frames import ResizeMode
from serve_app.styles.catalogue import default_eps, find_style, installed_styles, read_catalogue, read_installed

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


def test_saved_style_is_installed_with_all_that_it_said_of_itself(
    weights: Mapping[str, Tensor], styles_dir: Path
) -> None:
    style = make_style("mine", resize="tf", eps=1e-12, credit="Añejo 雨")
    save_style(weights, style, styles_dir / "mine.safetensors")
    installed = installed_styles()["mine"]
    assert installed.model_dump(exclude={"path"}) == style.model_dump()
    assert installed.path == styles_dir / "mine.safetensors"


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
def test_damaged_style_is_named(styles_dir: Path, content: bytes) -> None:
    path = styles_dir / "hurt.safetensors"
    path.write_bytes(content)
    with pytest.raises(StyleError) as caught:
        installed_styles()
    assert str(caught.value).startswith(f"{path} is damaged and cannot be read as a style: ")


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
