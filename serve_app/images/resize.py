"""Which size a photograph is painted at, and getting it there."""

from PIL import Image

from serve_app.errors import TooSmall
from serve_app.frames import Size
from serve_app.settings import MIN_SIDE


def painted_size(original: Size, max_side: int, multiple: int) -> Size:
    """Fits a size into `max_side`, aspect kept, never enlarged, each side rounded down to the multiple.

    Raises:
        TooSmall: if a side ends under the generator's minimum of 8 pixels.
    """
    scale = min(1.0, max_side / max(original))
    height, width = (max(1, round(side * scale)) // multiple * multiple for side in original)
    if min(height, width) < MIN_SIDE:
        raise TooSmall(
            f"The picture is {original[1]} x {original[0]} pixels and would be painted at {width} x {height}; "
            f"each painted side needs at least {MIN_SIDE} pixels.",
            MIN_SIDE,
            min(height, width),
        )
    return Size(height, width)


def resize(image: Image.Image, size: Size) -> Image.Image:
    """LANCZOS to (height, width); colours are premultiplied by alpha on the way, where there is alpha."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)
