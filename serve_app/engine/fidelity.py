"""Measures how close a style's paintings in bf16 come to those in float32, whatever processor this is."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serve_app.engine.checkpoints import Weights, build_generator
from serve_app.engine.memory import strip_rows
from serve_app.engine.streaming import StripGenerator
from serve_app.errors import StyleError
from serve_app.frames import Size
from serve_app.styles.catalogue import Style

PHOTOGRAPHS = Path(__file__).parent / "photographs"
MOST_DB = 99.0  # of two paintings that are equal: JSON has no infinity


def with_psnr(weights: Weights, style: Style) -> Style:
    """Returns the description of a style with its PSNR in bf16, measured in a second or two."""
    return style.model_copy(update={"psnr_bf16": measure_psnr(weights, style)})


def measure_psnr(weights: Weights, style: Style) -> float:
    """Returns the PSNR of paintings in bf16 to those in float32: the lowest of several photographs, in dB.

    The convolutions in bf16 are emulated, so every machine measures the same.

    Raises:
        StyleError: if all that it paints is one colour.
    """
    generator = build_generator(weights, style)
    exact = StripGenerator(generator, style.resize)
    rounded = StripGenerator(generator, style.resize, torch.bfloat16, torch.bfloat16, is_emulated=True)
    pairs = [(paint(rounded, frames), paint(exact, frames)) for frames in photographs()]
    if all(painted.min() == painted.max() for _, painted in pairs):
        raise StyleError(
            f"{style.name} paints every photograph in one colour: these are not the weights of a trained generator"
        )
    return round(min(psnr(*pair) for pair in pairs), 1)


def paint(generator: StripGenerator, frames: Tensor) -> Tensor:
    """Returns the painting of frames in the usual strips."""
    return generator.paint(frames, strip_rows(Size(*frames.shape[1:3])))


def psnr(painted: Tensor, reference: Tensor) -> float:
    """Returns the peak signal-to-noise ratio of two uint8 images, in dB; `MOST_DB` at most."""
    error = (painted.double() - reference.double()).square().mean().item()
    return min(10 * math.log10(255**2 / error), MOST_DB) if error else MOST_DB


def photographs() -> list[Tensor]:
    """Returns the photographs that styles are measured with, each (1, H, W, 3) uint8; sides are multiples of 4."""
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))
    return [torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None] for path in paths]
