"""Thumbnails of styles: what is painted, and what is written."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_style
from PIL import Image
from shared import SHIPPED_STYLES
from torch import Tensor

from serve_app.engine import thumbnails
from serve_app.engine.checkpoints import load_generator, save_style
from serve_app.engine.thumbnails import PHOTOGRAPH, save_with_thumbnail, thumbnail_of
from serve_app.errors import StyleError
from serve_app.styles.catalogue import InstalledStyle, installed_styles, read_installed, shipped_dir


@pytest.fixture(scope="module")
def toon() -> InstalledStyle:
    return read_installed(shipped_dir() / "toon.safetensors")


def pixels_of(thumbnail: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(thumbnail)) as picture:
        assert (picture.format, picture.size, picture.mode) == ("WEBP", (256, 256), "RGB")
        return np.asarray(picture).astype(int)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of two images, of 255 levels."""
    return float(np.abs(one - other).mean())


def inverted(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights that paint negatives."""
    return {**weights, "out_layer.0.weight": -weights["out_layer.0.weight"]}


def test_photograph_is_square_and_twice_as_wide_as_a_thumbnail() -> None:
    with Image.open(PHOTOGRAPH) as photograph:
        assert (photograph.format, photograph.size, photograph.mode) == ("JPEG", (484, 484), "RGB")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED_STYLES)
def test_shipped_thumbnail_is_the_one_that_is_painted(name: str) -> None:
    style = installed_styles()[name]
    thumbnail = thumbnail_of(load_generator(style).state_dict(), style)
    assert 2_000 < len(thumbnail) < 20_000
    assert difference(pixels_of(thumbnail), pixels_of(style.thumbnail)) < 1  # another processor rounds otherwise
    assert len(style.thumbnail) < 20_000


@pytest.mark.usefixtures("small_photograph")
def test_thumbnail_is_the_photograph_in_the_style_reduced(toon: InstalledStyle) -> None:
    generator = load_generator(toon)
    with Image.open(thumbnails.PHOTOGRAPH) as photograph:
        values = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        painted = ((generator(values)[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().numpy()
    reduced = Image.fromarray(painted).resize((256, 256), Image.Resampling.LANCZOS)
    thumbnail = pixels_of(thumbnail_of(generator.state_dict(), toon))
    assert difference(thumbnail, np.asarray(reduced).astype(int)) < 4


@pytest.mark.usefixtures("small_photograph")
def test_same_weights_give_the_same_file_and_others_another(weights: Mapping[str, Tensor]) -> None:
    style = make_style()
    first = thumbnail_of(weights, style)
    assert thumbnail_of(weights, style) == first
    assert thumbnail_of({key: weight.double() for key, weight in weights.items()}, style) == first
    assert thumbnail_of(inverted(weights), style) != first


@pytest.mark.usefixtures("small_photograph")
@pytest.mark.parametrize("resize", ["align", "half", "tf"])
def test_every_resize_mode_has_thumbnails(weights: Mapping[str, Tensor], resize: str) -> None:
    pixels_of(thumbnail_of(weights, make_style(resize=resize)))


@pytest.mark.usefixtures("small_photograph")
def test_style_is_written_with_its_thumbnail_and_nothing_else(weights: Mapping[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "new"
    save_with_thumbnail(weights, make_style(), folder / "mine.safetensors", torch.float16)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.safetensors", "mine.webp"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    installed = read_installed(folder / "mine.safetensors")
    assert installed.thumbnail == (folder / "mine.webp").read_bytes() == thumbnail_of(weights, make_style())
    assert installed.path.stat().st_size < 5_000_000  # 16 bits a weight


@pytest.mark.usefixtures("small_photograph")
def test_replaced_style_gets_a_thumbnail_of_its_own(weights: Mapping[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_with_thumbnail(weights, make_style(), path)
    first = read_installed(path).thumbnail
    save_with_thumbnail(inverted(weights), make_style(), path)
    assert read_installed(path).thumbnail not in (b"", first)


def test_replaced_style_loses_its_thumbnail_even_if_no_other_is_painted(
    weights: Mapping[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    path.with_suffix(".webp").write_bytes(b"RIFF....WEBP of the style before")
    save_style(weights, make_style(), path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.mark.usefixtures("small_photograph")
def test_thumbnail_that_cannot_be_written_leaves_none_of_the_style_before(
    weights: Mapping[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.safetensors"
    save_with_thumbnail(weights, make_style(title="Old"), path)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(thumbnails, "replace_file", refuse)
    with pytest.raises(OSError, match="No space left"):
        save_with_thumbnail(weights, make_style(title="New"), path)
    installed = read_installed(path)
    assert (installed.title, installed.thumbnail) == ("New", b"")


@pytest.mark.usefixtures("small_photograph")
def test_style_that_cannot_be_written_leaves_the_one_before_with_its_thumbnail(
    weights: Mapping[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    save_with_thumbnail(weights, make_style(), path)
    before = read_installed(path)
    large = {key: weight + 1e6 for key, weight in weights.items()}
    with pytest.raises(StyleError, match="do not fit float16"):
        save_with_thumbnail(large, make_style(), path, torch.float16)
    assert read_installed(path) == before
    assert before.thumbnail
