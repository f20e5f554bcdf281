"""The size that a photograph is painted at, and resizing to it."""

from PIL import Image

from serve_app.errors import TooSmall
from serve_app.frames import MIN_SIDE, Size


def painted_size(original: Size, max_side: int, multiple: int, box: Size | None = None) -> Size:
    """Fits a size into `max_side`, keeping its aspect and never enlarging it; sides are rounded down to `multiple`.

    With a `box`, it fits into that as well.

    Raises:
        TooSmall: if a side would be under the generator's minimum of 8 pixels.
    """
    painted = fitted_size(original, max_side, multiple, box)
    if min(painted) < MIN_SIDE:
        remedy = "Crop it, or ask for a larger max_side" if min(original) >= MIN_SIDE else "Send it larger"
        raise TooSmall(
            f"The picture is {original} pixels and would be painted at {painted}; each painted side needs at least "
            f"{MIN_SIDE} pixels. {remedy}.",
            MIN_SIDE,
            min(painted),
            "pixels",
        )
    return painted


def fitted_size(original: Size, max_side: int, multiple: int, box: Size | None = None) -> Size:
    """Returns what `painted_size` does, however small it is."""
    scale = min(1.0, max_side / original.longer_side)
    if box is not None:
        scale = min(scale, box.height / original.height, box.width / original.width)
    return Size(*(max(1, round(side * scale)) // multiple * multiple for side in original))


def resize(image: Image.Image, size: Size) -> Image.Image:
    """Resizes by LANCZOS; where there is alpha, Pillow premultiplies colours by it."""
    if image.size == (size.width, size.height):
        return image
    return image.resize((size.width, size.height), Image.Resampling.LANCZOS)
