"""Choice of the image format that a client is answered in."""

import contextlib

import mimeparse

from serve_app.frames import ImageFormat
from serve_app.images.encode import MEDIA_TYPES

MAX_ACCEPT_LENGTH = (
    1024  # characters: the parser takes quadratic time on hostile headers, and it runs in the event loop
)


def negotiate(accept: str | None, default: ImageFormat) -> ImageFormat:
    """Returns the format that an Accept header prefers; the default wins ties, and where nothing is acceptable."""
    if not accept or len(accept) > MAX_ACCEPT_LENGTH:
        return default
    ranges = []
    for part in accept.lower().split(","):
        with contextlib.suppress(mimeparse.MimeTypeParseException):
            ranges.append(mimeparse.parse_media_range(part))
    formats = [default, *(name for name in MEDIA_TYPES if name != default)]
    return max(formats, key=lambda name: mimeparse.quality_parsed(MEDIA_TYPES[name], ranges))
