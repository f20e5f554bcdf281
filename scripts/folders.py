"""Photographs from folders, frames to tensors and back, contact sheets."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Frame = NDArray[np.uint8]  # (H, W, 3) RGB


def find_photos(folders: list[Path], least: int = 2) -> list[Path]:
    endings = {".jpg", ".jpeg", ".png", ".webp"}
    photos = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in endings)
    if len(photos) < least:
        raise SystemExit(f"{len(photos)} photographs in {', '.join(map(str, folders))}: {least} at least are needed")
    return photos


def open_photo(path: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def to_tensor(frames: list[Frame]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, H, W)


def to_frame(painted: Tensor) -> Frame:
    return ((painted.permute(1, 2, 0).numpy() + 1) * 127.5 + 0.5).clip(0, 255).astype(np.uint8)


def contact_sheet(rows: list[Frame]) -> Frame:
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


def fit(photo: Image.Image, side: int, multiple: int = 4) -> Frame:
    """LANCZOS to a longer side of at most `side` pixels, then cropped to multiples of 4, as `tf` needs them."""
    photo = photo.copy()
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(photo.crop((0, 0, photo.width // multiple * multiple, photo.height // multiple * multiple)))
