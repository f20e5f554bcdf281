"""The Python API: what goes in, what comes out, and what it leaves behind."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers import make_style
from pictures import opened, photo_bytes
from PIL import Image
from torch import Tensor

from serve_app import Painter
from serve_app.engine.checkpoints import save_style
from serve_app.engine.memory import MemoryModel
from serve_app.errors import BrokenImage, TooLargeToPaint, TooSmall, UnknownStyle
from serve_app.frames import Size


@pytest.fixture(scope="module")
def painter() -> Iterator[Painter]:
    with Painter("toon", "fp32", max_side=96, threads=2) as made:
        yield made


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_every_kind_of_source_is_painted_alike(painter: Painter, tmp_path: Path) -> None:
    data = photo_bytes(64, 80)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    paintings = [painter.paint(source) for source in (data, path, str(path), opened(data), np.asarray(opened(data)))]
    assert {(image.mode, image.size) for image in paintings} == {("RGB", (80, 64))}
    assert max(difference(paintings[0], image) for image in paintings[1:]) <= 1
    assert difference(paintings[0], opened(data)) > 10


def test_large_image_is_fitted_and_the_callers_image_is_left_as_it_was(painter: Painter, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo_bytes(300, 400, "JPEG"))
    with Image.open(path) as image:
        assert painter.paint(image).size == (96, 72)
        assert image.size == (400, 300)


def test_transparency_comes_back(painter: Painter) -> None:
    image = opened(photo_bytes(64, 80))
    image.putalpha(Image.fromarray(np.tile(np.arange(80, dtype=np.uint8), (64, 1))))
    painting = painter.paint(image)
    assert painting.mode == "RGBA"
    assert np.array_equal(np.asarray(painting)[..., 3], np.asarray(image)[..., 3])


def test_many_images_of_mixed_sizes_come_back_in_order(painter: Painter) -> None:
    sizes = [(32 + 4 * (seed % 3), 48) for seed in range(20)]
    photos = [photo_bytes(*size, seed=seed) for seed, size in enumerate(sizes)]
    paintings = list(painter.paint_many(photos))
    assert [image.size for image in paintings] == [(width, height) for height, width in sizes]
    for photo, painting in zip(photos[::7], paintings[::7], strict=True):
        assert difference(painting, painter.paint(photo)) <= 1


def test_only_a_few_images_are_read_ahead(painter: Painter) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield photo_bytes(32, 32, seed=read)

    paintings = painter.paint_many(endless())
    for painted in range(1, 31):
        next(paintings)
        assert read <= painted + 24
    paintings.close()  # type: ignore[attr-defined]


def test_an_image_that_cannot_be_painted_is_raised_or_returned_in_its_place(painter: Painter, tmp_path: Path) -> None:
    good, broken, small = photo_bytes(32, 40), photo_bytes(32, 40)[:60], photo_bytes(4, 40)
    outcomes = list(painter.paint_many([good, broken, small, tmp_path / "absent.jpg", good], return_errors=True))
    assert [type(outcome) for outcome in outcomes] == [
        Image.Image,
        BrokenImage,
        TooSmall,
        FileNotFoundError,
        Image.Image,
    ]
    paintings = painter.paint_many([good, broken, good])
    next(paintings)
    with pytest.raises(BrokenImage):
        next(paintings)
    assert painter.paint(good).size == (40, 32)


def test_an_array_of_another_kind_is_refused_in_words(painter: Painter) -> None:
    with pytest.raises(ValueError, match=r"^an array must be uint8 \(H, W, 3\), not float64 \(8, 8\)$"):
        painter.paint(np.zeros((8, 8)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_image_over_the_memory_budget_is_refused_and_the_others_are_painted() -> None:
    with Painter("toon", max_side=2048, memory_bytes=60_000_000, threads=2) as small:
        sources = [photo_bytes(32, 40), photo_bytes(1200, 1200), photo_bytes(32, 40)]
        outcomes = list(small.paint_many(sources, return_errors=True))
    assert [type(outcome) for outcome in outcomes] == [Image.Image, TooLargeToPaint, Image.Image]


def test_image_that_would_fit_in_bf16_is_refused_in_a_style_that_was_never_measured(
    weights: Mapping[str, Tensor], styles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.engine.precision.bf16_instructions", lambda: ["AVX512-BF16"])
    save_style(weights, make_style("old"), styles_dir / "old.safetensors")
    budget = MemoryModel("bf16", "system").planned_bytes(Size(1024, 1024))
    photo = photo_bytes(1024, 1024)
    with Painter("old", memory_bytes=budget, threads=1) as painter:
        painter.stylist.allocator = "system"  # as planned above, whatever the tests run on
        with pytest.raises(TooLargeToPaint):
            painter.paint(photo)


def test_unknown_style_names_the_installed_ones() -> None:
    with pytest.raises(UnknownStyle, match=r"installed are: .*toon"):
        Painter("no-such-style")


@pytest.mark.slow
def test_torch_is_loaded_only_when_a_painter_is_asked_for() -> None:
    code = """
import sys, serve_app
assert "torch" not in sys.modules
from serve_app import Painter
assert "torch" in sys.modules and "ray" not in sys.modules
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
