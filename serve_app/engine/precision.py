"""Chooses the precision that images are painted in: for a device, and for each of its styles."""

from typing import NamedTuple

import torch

from serve_app.frames import Precision

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# From here on, paintings cannot be told from those in float32: the root mean square of the errors is one of 255 levels.
LEAST_PSNR_DB = 48


class Choice(NamedTuple):
    """A precision, and why it was chosen, as a part of a sentence for the log."""

    precision: Precision
    reason: str


def choose_precision(precision: Precision, device: torch.device) -> Choice:
    """Returns the precision of a device: for `auto` fp16 on CUDA, bf16 on CPUs that have it, and fp32 on others."""
    if precision != "auto":
        is_stored_only = compute_dtype(precision, device) != DTYPES[precision]
        return Choice(precision, f"{precision} is set" + ", convolutions run in fp32" * is_stored_only)
    if device.type == "cuda":
        return Choice("fp16", "auto is fp16 on CUDA")
    if instructions := bf16_instructions():
        return Choice("bf16", f"auto is bf16 here: torch finds {' and '.join(instructions)}")
    return Choice("fp32", "auto is fp32 here: torch finds neither AVX512-BF16 nor AMX")


def choose_for_style(precision: Precision, device: Choice, psnr_bf16: float | None) -> Choice:
    """Returns the precision of a style on a device.

    Args:
        precision: as it is set; what is not `auto` holds for every style.
        device: what was chosen for the device.
        psnr_bf16: of the style's paintings in bf16, in dB; None if it was not measured.
    """
    if precision != "auto" or device.precision != "bf16":
        return device
    if psnr_bf16 is None:
        return Choice("fp32", "its PSNR in bf16 is unknown until it is installed again")
    if psnr_bf16 < LEAST_PSNR_DB:
        return Choice("fp32", f"its PSNR in bf16 is {psnr_bf16:.1f} dB, under {LEAST_PSNR_DB}")
    return device


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the dtype of the convolutions: 16 bits on CUDA, and in bf16 on CPUs that have instructions for it."""
    if device.type == "cuda" or (precision == "bf16" and bf16_instructions()):
        return DTYPES[precision]
    return torch.float32


def bf16_instructions() -> list[str]:
    """Returns the names of the CPU's instructions that multiply bfloat16; none if torch could not use them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    found = {"AVX512-BF16": torch.cpu._is_avx512_bf16_supported(), "AMX": torch.cpu._is_amx_tile_supported()}
    return [name for name, is_found in found.items() if is_found]
