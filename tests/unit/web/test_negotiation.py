import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.frames import ImageFormat
from serve_app.images.encode import MEDIA_TYPES
from serve_app.web.negotiation import negotiate

FORMATS = list(MEDIA_TYPES)


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        (None, "jpeg"),
        ("", "jpeg"),
        ("*/*", "jpeg"),
        ("image/*", "jpeg"),
        ("image/webp", "webp"),
        ("IMAGE/WebP", "webp"),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "jpeg"),
        ("image/webp;q=0.5,image/png", "png"),
        ("image/webp, */*;q=0.1", "webp"),
        ("image/jpeg;q=0, image/webp", "webp"),
        ("image/jpeg;q=0, */*", "webp"),
        ("text/html", "jpeg"),
        ("application/json", "jpeg"),
        ("garbage", "jpeg"),
        ("image/webp, garbage", "webp"),
        ("image/webp,", "webp"),
    ],
)
def test_accept_decides_the_format_and_the_default_wins_ties(accept: str | None, format: ImageFormat) -> None:
    assert negotiate(accept, "jpeg") == format


@pytest.mark.parametrize("default", FORMATS)
def test_default_is_kept_where_the_client_does_not_care(default: ImageFormat) -> None:
    assert negotiate("image/avif,image/webp,image/*,*/*;q=0.8", default) == default
    assert negotiate("text/html", default) == default


def test_header_too_long_to_be_honest_is_not_parsed() -> None:
    assert negotiate("image/webp" + ", image/x" * 4_000, "jpeg") == "jpeg"


@given(accept=st.text(st.sampled_from('image/webpjng*;q=0.,"\\ é'), max_size=60))
def test_no_header_breaks_the_negotiation(accept: str) -> None:
    assert negotiate(accept, "jpeg") in FORMATS
