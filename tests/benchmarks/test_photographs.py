"""The photographs that benchmarks send, and their sizes."""

import pytest
from benchmarks.photographs import VARIED_SIZES, photograph, random_sizes, varied_size

from serve_app.frames import Size
from serve_app.images.header import sniff


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_real_and_differ(format: str) -> None:
    one, other = (photograph(seed, Size(96, 64), format) for seed in (1, 2))
    assert sniff(one) == format
    assert one != other


def test_random_sizes_lie_around_the_side_and_differ() -> None:
    drawn = random_sizes(500, 0.2, 100, seed=1)
    assert all(400 <= side <= 600 for size in drawn for side in size)
    assert len(set(drawn)) > 90
    assert random_sizes(500, 0.0, 2) == [(500, 500)] * 2


def test_varied_sizes_all_differ_and_have_about_the_same_area() -> None:
    sizes = [varied_size(512 * 512, number) for number in range(VARIED_SIZES)]
    assert len(set(sizes)) == VARIED_SIZES
    assert all(side % 4 == 0 for size in sizes for side in size)
    assert all(size.pixels == pytest.approx(512 * 512, rel=0.02) for size in sizes)
    assert {size.height > size.width for size in sizes} == {True, False}
