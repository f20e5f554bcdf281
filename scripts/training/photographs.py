"""Finds photographs in folders, converts frames to tensors and back, and draws contact sheets."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from serve_app.frames import Frame

MIN_SIDE = 32  # pixels: enough for the 11 x 11 window of SSIM, with room to spare
MAX_ASPECT_RATIO = 8

FRAME_TO_TENSOR = v2.Compose(
    [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        v2.ToPureTensor(),
    ]
)


def find_photos(folders: list[Path], least: int = 2) -> list[Path]:
    """Returns the photographs in folders and their subfolders, each once; prints which it leaves out, and why.

    Raises:
        SystemExit: there are fewer than `least`.
    """
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    found = {p.resolve(): p for folder in folders for p in sorted(folder.rglob("*")) if p.suffix.lower() in suffixes}
    photos = [p for p in sorted(found.values()) if p.is_file() and not p.name.startswith(".") and is_usable(p)]
    if len(photos) < least:
        raise SystemExit(f"{len(photos)} photographs in {', '.join(map(str, folders))}: at least {least} needed")
    return photos


def is_usable(path: Path) -> bool:
    """Returns whether a photograph can be decoded, is large enough and not too long; prints why not."""
    try:
        with Image.open(path) as image:
            size = image.size
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        print(f"{path} is left out: {error}")
        return False
    if min(size) < MIN_SIDE or max(size) > MAX_ASPECT_RATIO * min(size):
        print(f"{path} is left out: {size[0]} x {size[1]} pixels are too few or too narrow to train on")
        return False
    return True


def open_photo(path: Path) -> Image.Image:
    """Returns a photograph as an upright RGB image."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def to_batch(frames: list[Frame]) -> Tensor:
    """Returns frames of one size as a tensor (N, 3, H, W) in [-1, 1]."""
    return torch.stack([FRAME_TO_TENSOR(frame) for frame in frames])


def to_frame(painted: Tensor) -> Frame:
    """Returns a tensor (3, H, W) in [-1, 1] as a frame.

    It rounds to the nearest value as the service does, which `v2.ToDtype` does not.
    """
    return ((painted.permute(1, 2, 0).numpy() + 1) * 127.5 + 0.5).clip(0, 255).astype(np.uint8)


def contact_sheet(rows: list[Frame]) -> Frame:
    """Returns rows of any sizes below each other on black; `torchvision.utils.make_grid` needs images of one size."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


def shrink_to_fit(photo: Image.Image, max_side: int) -> Frame:
    """Returns the photograph with a longer side of at most `max_side` pixels, cropped to multiples of 4.

    The resize mode `tf` needs multiples of 4. `v2.Resize` would also enlarge small photographs.
    """
    photo = photo.copy()
    photo.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return np.array(photo.crop((0, 0, photo.width // 4 * 4, photo.height // 4 * 4)))
