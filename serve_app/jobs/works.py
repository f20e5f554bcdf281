"""Names of what is painted and of what paints it. Works of the same digest need to be painted only once.

A painter is the code, a precision and the content of a style together. Whoever paints says its name in the receipt, and
a painting is kept only under the name of the painter that has really painted it.
"""

import hashlib
import json
from dataclasses import asdict

from serve_app.frames import Precision, StylizeRequest

# Raise it with every change of decoding, resizing, painting or encoding after which pixels or files are others.
PAINTER_VERSION = 1
# Fields of a request that leave its painting as it is; the style is in the name of the painter.
UNSEEN = {"style", "timeout_s"}
# Fields that came later, with defaults that leave the painting as it was before: then the digest is so too.
LATER = {"box": None}


def painter_name(style_digest: str, precision: Precision) -> str:
    """Returns the name of the painter of a style.

    Args:
        style_digest: of the style's content; empty if it is not known, and then so is the painter.
        precision: the setting. What `auto` chooses on different devices cannot be told apart by eye.
    """
    return f"{PAINTER_VERSION}-{precision}-{style_digest}" if style_digest else ""


def confirmed(painter: str) -> str:
    """Returns the name of a painter if this process has the same version of the code, else an empty one."""
    return painter if painter.startswith(f"{PAINTER_VERSION}-") else ""


def photo_digest(photo: bytes) -> str:
    """Returns the digest of a photograph's file, in hexadecimal."""
    return hashlib.sha256(photo).hexdigest()


def content_digest(name: str) -> str:
    """Returns the SHA-256 of the content of a blob, in hexadecimal, from its name."""
    return name.rsplit("/", 1)[-1].split("-")[0]


def work_digest(photo: str, painter: str, request: StylizeRequest) -> str | None:
    """Returns the digest of a photograph painted in one way, in hexadecimal; None if the painter is not known.

    Args:
        photo: digest of the photograph's file.
        painter: its name.
        request: what is asked of it.
    """
    if not painter:
        return None
    options = {name: value for name, value in asdict(request).items() if name not in UNSEEN}
    options = {name: value for name, value in options.items() if name not in LATER or value != LATER[name]}
    return hashlib.sha256(json.dumps([photo, painter, options], sort_keys=True).encode()).hexdigest()
