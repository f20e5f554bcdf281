"""Paints the thumbnails of styles, all of the same photograph, so that styles can be compared."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from serve_app.engine.checkpoints import Weights, build_generator, save_style
from serve_app.engine.fidelity import paint
from serve_app.engine.streaming import StripGenerator
from serve_app.styles.catalogue import Style
from serve_app.styles.files import replace_file
from serve_app.styles.thumbnails import thumbnail_path

PHOTOGRAPH = Path(__file__).parent / "photographs" / "thumbnail" / "portrait.jpg"
SIDE = 256  # of a thumbnail, in pixels; the photograph is painted at nearly twice that, and reduced
QUALITY = 80


def thumbnail_of(weights: Weights, style: Style) -> bytes:
    """Returns the thumbnail of a style, a WebP file of 256 x 256 pixels. Painting it takes some seconds."""
    generator = StripGenerator(build_generator(weights, style), style.resize)
    with Image.open(PHOTOGRAPH) as photograph:
        frames = torch.from_numpy(np.array(photograph.convert("RGB")))[None]
    painting = Image.fromarray(paint(generator, frames)[0].numpy())
    buffer = io.BytesIO()
    painting.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def save_with_thumbnail(weights: Weights, style: Style, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a style's file as `save_style` does, and its thumbnail beside it.

    Raises:
        StyleError: if weights are too large for the type.
    """
    thumbnail = thumbnail_of(weights, style)
    save_style(weights, style, path, dtype)
    replace_file(thumbnail_path(path), thumbnail)
