"""The seeding rule of the golden tensors: every weight follows from its key's name alone."""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.generator import Generator
from serve_app.frames import ResizeMode


def seeded_generator(mode: ResizeMode, eps: float | None = None) -> Generator:
    """A generator with those weights."""
    generator = Generator(mode) if eps is None else Generator(mode, eps=eps)
    generator.load_state_dict(seeded_state(generator))
    return generator.eval()


def seeded_state(generator: Generator) -> dict[str, Tensor]:
    """A state dict for the generator, random but the same in every process: as lively as trained weights."""
    return {key: seeded_weight(key, tuple(weight.shape)) for key, weight in generator.state_dict().items()}


def seeded_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    values: Any = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        values = values * np.float32(np.sqrt(2 / (shape[1] * shape[2] * shape[3])))
    elif key.endswith("weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values = np.float32(0.1) * values
    return torch.from_numpy(values)
