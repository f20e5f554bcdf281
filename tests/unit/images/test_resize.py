import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import TooSmall
from serve_app.frames import Size
from serve_app.images.resize import painted_size, resize


@pytest.mark.parametrize(
    ("original", "max_side", "multiple", "painted"),
    [
        ((768, 1024), 1024, 1, (768, 1024)),
        ((3024, 4032), 1024, 1, (768, 1024)),
        ((4032, 3024), 1024, 1, (1024, 768)),
        ((3025, 4031), 1024, 1, (768, 1024)),
        ((101, 203), 1024, 1, (101, 203)),
        ((101, 203), 1024, 4, (100, 200)),
        ((1023, 1023), 1024, 4, (1020, 1020)),
        ((5000, 3333), 1000, 4, (1000, 664)),
        ((100, 100), 9, 4, (8, 8)),
        ((8, 8), 1024, 4, (8, 8)),
        ((8, 1024), 1024, 1, (8, 1024)),
        ((64, 64), 64_000, 1, (64, 64)),
    ],
)
def test_painted_size_fits_keeps_the_aspect_and_never_enlarges(
    original: Size, max_side: int, multiple: int, painted: Size
) -> None:
    assert painted_size(Size(*original), max_side, multiple) == painted


@pytest.mark.parametrize(
    ("original", "box", "multiple", "painted"),
    [
        ((768, 1024), (1024, 1024), 1, (768, 1024)),
        ((3000, 4000), (1024, 1536), 1, (1024, 1365)),
        ((4000, 3000), (1024, 1536), 1, (1024, 768)),
        ((4000, 6000), (1024, 1536), 1, (1024, 1536)),
        ((3000, 4000), (1024, 1536), 4, (1024, 1364)),
        ((60, 80), (1024, 1536), 1, (60, 80)),
        ((6000, 6000), (4000, 5000), 1, (2000, 2000)),
    ],
)
def test_painted_size_fits_into_a_box_too(original: Size, box: Size, multiple: int, painted: Size) -> None:
    assert painted_size(Size(*original), 2000, multiple, Size(*box)) == painted


def test_image_that_a_box_makes_too_small_is_refused() -> None:
    with pytest.raises(TooSmall):
        painted_size(Size(60, 80), 1024, 1, Size(7, 80))


@pytest.mark.parametrize(
    ("original", "multiple", "painted", "remedy", "actual"),
    [
        ((7, 300), 1, "300 x 7", "Send it larger.", 7),
        ((3, 4000), 1, "1024 x 1", "Send it larger.", 1),
        ((4000, 28), 1, "7 x 1024", "Crop it, or ask for a larger max_side.", 7),
        ((11, 7), 4, "4 x 8", "Send it larger.", 4),
        ((1, 1), 4, "0 x 0", "Send it larger.", 0),
    ],
)
def test_image_that_is_too_small_before_or_after_fitting_is_refused(
    original: Size, multiple: int, painted: str, remedy: str, actual: int
) -> None:
    height, width = original
    with pytest.raises(TooSmall) as caught:
        painted_size(Size(*original), 1024, multiple)
    assert str(caught.value) == (
        f"The picture is {width} x {height} pixels and would be painted at {painted}; each painted side needs at least "
        f"8 pixels. {remedy}"
    )
    assert (caught.value.limit, caught.value.actual, caught.value.unit) == (8, actual, "pixels")


@given(
    original=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    max_side=st.integers(8, 4096),
    multiple=st.sampled_from([1, 4]),
)
def test_painted_size_keeps_bound_multiple_and_aspect(original: Size, max_side: int, multiple: int) -> None:
    try:
        painted = painted_size(Size(*original), max_side, multiple)
    except TooSmall:
        assume(False)
    scale = min(1, max_side / max(original))
    assert max(painted) <= max_side
    for side, painted_side in zip(original, painted, strict=True):
        assert painted_side >= 8
        assert painted_side % multiple == 0
        assert -(multiple - 1) - 0.5 <= painted_side - side * scale <= 0.5
        assert painted_side <= side


@given(original=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), max_side=st.integers(8, 4096))
def test_only_images_that_would_end_below_the_minimum_are_refused(original: Size, max_side: int) -> None:
    shorter = min(original) * min(1, max_side / max(original))
    assume(abs(shorter - 7.5) > 0.01)  # rounding at the very edge is Python's
    try:
        painted_size(Size(*original), max_side, 1)
    except TooSmall:
        assert shorter < 7.5
    else:
        assert shorter > 7.5


def test_resize_takes_height_first() -> None:
    assert resize(Image.new("RGB", (64, 48)), Size(24, 32)).size == (32, 24)


def test_image_of_the_right_size_is_not_resampled() -> None:
    image = Image.new("RGB", (64, 48))
    assert resize(image, Size(48, 64)) is image


def test_colour_hidden_by_alpha_does_not_bleed_into_what_is_seen() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (32, 0, 64, 64))
    resized = np.asarray(resize(image, Size(16, 16)))
    seen = resized[resized[..., 3] > 32]
    assert len(seen)
    assert seen[:, 0].max() <= 8  # red
