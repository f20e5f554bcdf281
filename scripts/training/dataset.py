"""The training and validation sets: photographs with the teacher's paintings of them.

All randomness comes from torch's global generator; seed it before a call to get the same crops again.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2
from tqdm import tqdm

from serve_app.frames import Frame
from training.photographs import FRAME_TO_TENSOR, open_photo, shrink_to_fit
from training.teachers.recipes import Teacher

PaintedPhoto = tuple[Frame, Frame]  # a photograph and the teacher's painting of it

CROPS_PER_PHOTO = 12  # in each stage, or fewer where the stage uses fewer
MAX_PHOTO_SIDE = 1024  # pixels: no photograph is seen larger than this, the service's default `max_side`
VALIDATION_SIDE = 512  # pixels: the longer side of the validation photographs


def random_gamma(image: Tensor) -> Tensor:
    """Returns an image in [0, 1] after a random gamma curve and a random gain."""
    brightened: Tensor = v2.functional.adjust_gamma(image, gamma=uniform(0.6, 1.6), gain=uniform(0.75, 1.15))
    return brightened


RECOLOUR = v2.Compose(
    [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomChoice([v2.Identity(), v2.ColorJitter(hue=40 / 360), v2.ColorJitter(hue=0.5)]),
        v2.ColorJitter(saturation=(0.3, 1.4)),
        v2.Lambda(random_gamma),
        v2.ToDtype(torch.uint8, scale=True),
        v2.ToPILImage(),
    ]
)
MIRROR = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), FRAME_TO_TENSOR])


class PaintedCrops(Dataset[tuple[Tensor, Tensor]]):
    """Crops and their paintings as tensors (3, H, W) in [-1, 1]; each time, a pair is mirrored or not."""

    def __init__(self, pairs: list[PaintedPhoto]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        photo, painting = MIRROR(*self.pairs[index])
        return photo, painting


def training_set(photos: list[Path], teacher: Teacher, side: int, samples: int) -> PaintedCrops:
    """Returns random square crops of photographs, painted by the teacher, for a stage that uses `samples` of them."""
    count = min(CROPS_PER_PHOTO, math.ceil(samples / len(photos)))
    chosen = [photos[i] for i in torch.randperm(len(photos))[:samples]] if samples < len(photos) else photos
    crops = [crop for path in chosen for crop in random_crops(open_photo(path), side, count)]
    return PaintedCrops(with_paintings(crops, teacher, f"painting crops of {side} px"))


def validation_set(photos: list[Path], teacher: Teacher) -> list[PaintedPhoto]:
    """Returns whole photographs, unchanged but for their size, and the teacher's paintings."""
    whole = [shrink_to_fit(open_photo(path), VALIDATION_SIDE) for path in photos]
    return with_paintings(whole, teacher, "painting validation photographs")


def batches(crops: PaintedCrops, size: int, count: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Returns `count` random batches; every crop is used once before any is used again."""
    return DataLoader(crops, batch_size=size, sampler=RandomSampler(crops, num_samples=count * size))


def with_paintings(photos: list[Frame], teacher: Teacher, label: str) -> list[PaintedPhoto]:
    """Returns each photograph with the teacher's painting of it; `label` names the progress bar."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        paintings = tqdm(pool.map(teacher, photos), label, len(photos), mininterval=5)
        return list(zip(photos, paintings, strict=True))


def random_crops(photo: Image.Image, side: int, count: int) -> list[Frame]:
    """Returns square crops of `side` pixels at random scales, about half of them in other colours.

    The crops are cut at log-uniform sizes, up to the photograph's whole shorter side, and then resized. They are never
    enlarged, unless the photograph is smaller than `side`.
    """
    largest = min(photo.size)
    smallest = min(largest, max(side, side * max(photo.size) / MAX_PHOTO_SIDE))
    resize = v2.Resize((side, side), v2.InterpolationMode.LANCZOS)
    recolour = v2.RandomApply([RECOLOUR], p=0.5)
    crops = []
    for _ in range(count):
        cut_side = round(math.exp(uniform(math.log(smallest), math.log(largest))))
        crops.append(np.array(recolour(resize(v2.RandomCrop(cut_side)(photo)))))
    return crops


def uniform(low: float, high: float) -> float:
    """Returns a random number from torch's global generator, so that one seed covers it and the transforms."""
    return float(torch.empty(1).uniform_(low, high))
