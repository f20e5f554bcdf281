import numpy as np
import pytest

from serve_app.deployments.steps import SMALL_BYTES, fetch, hand_over, is_small


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What lies in an object store that is a dictionary."""
    stored: dict[str, object] = {}

    def put(pixels: object) -> str:
        stored[f"ref {len(stored)}"] = pixels
        return f"ref {len(stored) - 1}"

    monkeypatch.setattr("ray.put", put)
    monkeypatch.setattr("ray.get", stored.__getitem__)
    return stored


def test_small_frame_travels_in_the_answer_as_a_copy(store: dict[str, object]) -> None:
    frame = np.full((64, 64, 3), 7, np.uint8)  # of a decoder, which uses its memory again
    handed = hand_over(frame)
    frame[:] = 0
    assert store == {}
    assert is_small(handed)
    assert (fetch(handed) == 7).all()


def test_large_frame_stays_in_the_object_store(store: dict[str, object]) -> None:
    frame = np.zeros((SMALL_BYTES // 3 + 1, 1, 3), np.uint8)
    handed = hand_over(frame)
    assert not is_small(handed)
    assert list(store) == ["ref 0"]
    assert fetch(handed) is frame
