"""Files that services like this one were reported to get wrong, beside the pixels that browsers show."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decoding import decoded, mean_difference, on_white, refusal
from numpy.typing import NDArray
from PIL import Image
from shared import SHARED, needs_shared

from serve_app import Painter

CASES = sorted(path.with_name(path.name.replace(".want.png", "")) for path in (SHARED / "cases").glob("*.want.png"))


def case_of(stem: Path) -> Path:
    """The input that belongs to a wanted picture."""
    (found,) = (path for path in stem.parent.glob(f"{stem.name}.*") if not path.name.endswith(".want.png"))
    return found


def wanted(stem: Path) -> NDArray[np.uint8]:
    """The right pixels, (H, W, 4)."""
    return np.asarray(Image.open(f"{stem}.want.png").convert("RGBA"))


@pytest.fixture(scope="module")
def painter() -> Iterator[Painter]:
    with Painter("toon", threads=1) as made:
        yield made


@needs_shared
@pytest.mark.parametrize("stem", CASES, ids=lambda stem: stem.name)
def test_case_decodes_to_the_right_pixels(stem: Path) -> None:
    result = decoded(case_of(stem).read_bytes())
    want = wanted(stem)
    opacity = want[..., 3]
    assert result.frame.shape[:2] == want.shape[:2]
    assert mean_difference(result.frame, on_white(want[..., :3], opacity / 255)) <= 2
    assert mean_difference(opacity, 255 if result.alpha is None else result.alpha) <= 2


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("stem", CASES, ids=lambda stem: stem.name)
def test_case_is_painted_as_the_right_pixels_are(painter: Painter, stem: Path) -> None:
    ours, theirs = (
        np.asarray(painter.paint(source).convert("RGBA")) for source in (case_of(stem), Path(f"{stem}.want.png"))
    )
    assert mean_difference(ours, theirs) <= 2


@needs_shared
def test_raw_file_with_a_thumbnail_is_refused() -> None:
    refused = refusal((SHARED / "cases" / "raw_dng_like_thumbnail_first.dng").read_bytes())
    assert (refused.status, refused.code) == (415, "unsupported-format")
