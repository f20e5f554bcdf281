"""How close a style's paintings in bf16 come to those in float32: the figure, and what it is measured with."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from helpers import make_style
from shared import SHIPPED_STYLES
from torch import Tensor

from serve_app.engine import fidelity
from serve_app.engine.checkpoints import load_generator
from serve_app.engine.fidelity import MOST_DB, measure_psnr, paint, photographs, psnr, with_psnr
from serve_app.engine.precision import LEAST_PSNR_DB
from serve_app.engine.streaming import StripGenerator
from serve_app.styles.catalogue import InstalledStyle, installed_styles, read_installed, shipped_dir

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def toon() -> InstalledStyle:
    return read_installed(shipped_dir() / "toon.safetensors")


def weights_of(style: InstalledStyle) -> dict[str, Tensor]:
    return dict(load_generator(style).state_dict())


def random_frames(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8))


@pytest.mark.parametrize("off", [1, 16, 255])
def test_psnr_is_the_peak_over_the_root_mean_square_error(off: int) -> None:
    black = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    assert psnr(black + off, black) == pytest.approx(20 * math.log10(255 / off))
    assert psnr(black, black + off) == psnr(black + off, black)


def test_psnr_of_equal_images_is_a_number() -> None:
    frames = random_frames(4, 4)
    assert psnr(frames, frames) == MOST_DB


def test_photographs_are_small_and_of_sides_that_every_resize_mode_takes() -> None:
    shapes = [tuple(photograph.shape) for photograph in photographs()]
    assert len(shapes) == 4
    assert {shape[0] for shape in shapes} == {1}
    assert {side % 4 for shape in shapes for side in shape[1:3]} == {0}
    assert {max(shape) for shape in shapes} == {256}
    assert all(photograph.dtype == torch.uint8 for photograph in photographs())


def test_emulation_paints_as_bf16_does(toon: InstalledStyle) -> None:
    """Torch runs bf16 on every CPU, only slowly without instructions for it."""
    generator, frames = load_generator(toon), random_frames(32, 48)
    exact = StripGenerator(generator, toon.resize)
    real = StripGenerator(generator, toon.resize, BF16, BF16)
    emulated = StripGenerator(generator, toon.resize, BF16, BF16, is_emulated=True)
    real_one, emulated_one, exact_one = (paint(each, frames) for each in (real, emulated, exact))
    assert psnr(real_one, emulated_one) > psnr(real_one, exact_one) + 2
    assert psnr(emulated_one, exact_one) == pytest.approx(psnr(real_one, exact_one), abs=0.5)


def test_figure_is_that_of_the_photograph_with_the_largest_error(
    toon: InstalledStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([51.26, 48.04, 60.0])
    monkeypatch.setattr(fidelity, "photographs", lambda: [random_frames(8, 8)] * 3)
    monkeypatch.setattr(fidelity, "psnr", lambda *_: next(figures))
    assert measure_psnr(weights_of(toon), toon) == 48.0


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED_STYLES)
def test_shipped_style_carries_its_figure_and_bf16_suits_it(name: str) -> None:
    style = installed_styles()[name]
    assert style.psnr_bf16 is not None
    assert style.psnr_bf16 >= LEAST_PSNR_DB
    assert measure_psnr(weights_of(style), style) == pytest.approx(style.psnr_bf16, abs=0.3)


@pytest.mark.usefixtures("small_photograph")
def test_style_that_is_too_steep_for_bf16_is_found_out(toon: InstalledStyle) -> None:
    steep = weights_of(toon)
    steep["out_layer.0.weight"] = 8 * steep["out_layer.0.weight"]
    measured = with_psnr(steep, toon).psnr_bf16
    assert measured is not None
    assert measured < LEAST_PSNR_DB < measure_psnr(weights_of(toon), toon)


@pytest.mark.usefixtures("small_photograph")
@pytest.mark.parametrize("resize", ["align", "half", "tf"])
def test_every_resize_mode_is_measured_and_nothing_but_the_figure_changes(
    weights: Mapping[str, Tensor], resize: str
) -> None:
    style = make_style(resize=resize)
    measured = with_psnr({key: weight.half() for key, weight in weights.items()}, style)
    assert measured.psnr_bf16 is not None
    assert 20 < measured.psnr_bf16 < MOST_DB
    assert measured.model_dump(exclude={"psnr_bf16"}) == style.model_dump(exclude={"psnr_bf16"})
