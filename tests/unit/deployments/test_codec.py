"""The Codec's last step without Ray: what it says of a painting."""

import time

import numpy as np
import pytest

from serve_app.deployments.codec import Decoded, encoded
from serve_app.deployments.steps import Painted
from serve_app.frames import DecodedImage, Size, StylizeRequest
from serve_app.jobs import works
from serve_app.jobs.works import painter_name


def test_a_painter_of_another_version_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a rolling update, the Codec or the Stylizer may be the older one."""
    frame = np.zeros((16, 16, 3), np.uint8)
    decoded = Decoded(DecodedImage(frame, None, Size(16, 16)), time.perf_counter())
    painted = Painted(frame, 1.0, painter_name("ab" * 32, "auto"))
    request = StylizeRequest("toon", 64, 4, "png")
    assert encoded(painted, decoded, request).painter == painted.painter
    monkeypatch.setattr(works, "PAINTER_VERSION", works.PAINTER_VERSION + 1)
    assert encoded(painted, decoded, request).painter == ""
