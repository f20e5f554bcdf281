"""Thumbnails of styles: small sample paintings, each in a WebP file beside the file of its style."""

import logging
import stat
from pathlib import Path

from serve_app.styles.text import printable

logger = logging.getLogger(__name__)

MAX_THUMBNAIL_BYTES = 64_000  # of a file that is served; those that are painted here have some 10 kB


def thumbnail_path(style_file: Path) -> Path:
    """Returns the file of a style's thumbnail."""
    return style_file.with_suffix(".webp")


def read_thumbnail(style_file: Path) -> bytes:
    """Returns the thumbnail of a style, a WebP file; empty if there is none.

    It is only for show, so one that cannot be served is logged and does no harm otherwise.

    Args:
        style_file: beside which it lies.
    """
    path = thumbnail_path(style_file)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return without(path, "it is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_THUMBNAIL_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        return without(path, f"it cannot be read: {error.strerror}")
    if len(data) == MAX_THUMBNAIL_BYTES:
        return without(path, f"it must have less than {MAX_THUMBNAIL_BYTES} bytes")
    return data if is_webp(data) else without(path, "it is no WebP file")


def is_webp(data: bytes) -> bool:
    """Returns whether a file begins as a WebP."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def without(path: Path, reason: str) -> bytes:
    """Logs why a thumbnail is not served, and returns none."""
    logger.warning("the thumbnail %s is not served: %s", printable(path), reason)
    return b""
