"""Photographs from folders, frames to tensors and back, contact sheets."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

LEAST_SIDE = 32  # pixels: twice the reach of the SSIM window, with room
THINNEST = 8  # times as long as wide


def find_photos(folders: list[Path], least: int = 2) -> list[Path]:
    """Photographs in folders and below, each once; says which it leaves out because they are broken, small or thin."""
    endings = {".jpg", ".jpeg", ".png", ".webp"}
    found = {p.resolve(): p for folder in folders for p in sorted(folder.rglob("*")) if p.suffix.lower() in endings}
    photos = [p for p in sorted(found.values()) if p.is_file() and not p.name.startswith(".") and is_usable(p)]
    if len(photos) < least:
        raise SystemExit(f"{len(photos)} photographs in {', '.join(map(str, folders))}: at least {least} needed")
    return photos


def is_usable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            size = image.size
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        print(f"{path} is left out: {error}")
        return False
    if min(size) < LEAST_SIDE or max(size) > THINNEST * min(size):
        print(f"{path} is left out: {size[0]} x {size[1]} pixels are too small or too thin to learn from")
        return False
    return True


def open_photo(path: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def to_tensor(frames: list[Frame]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, H, W)


def to_frame(painted: Tensor) -> Frame:
    return ((painted.permute(1, 2, 0).numpy() + 1) * 127.5 + 0.5).clip(0, 255).astype(np.uint8)


def contact_sheet(rows: list[Frame]) -> Frame:
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


def fit(photo: Image.Image, side: int) -> Frame:
    """LANCZOS to a longer side of at most `side` pixels, then cropped to multiples of 4, as `tf` needs them."""
    photo = photo.copy()
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(photo.crop((0, 0, photo.width // 4 * 4, photo.height // 4 * 4)))
