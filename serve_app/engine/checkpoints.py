"""Reads checkpoint files, checks them, and saves and loads styles.

Public checkpoints are pickles. They are read with `weights_only=True`, checked against the generator's own keys and
shapes, and saved as safetensors.
"""

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.engine.generator import Generator
from serve_app.errors import StyleError
from serve_app.styles.catalogue import InstalledStyle, Style

Weights = Mapping[str, Tensor]


def read_checkpoint(data: bytes, name: str) -> Weights:
    """Returns the generator's weights from a checkpoint, in the format of PyTorch or of safetensors.

    Args:
        data: the bytes of the file.
        name: of the file, for error messages.

    Raises:
        StyleError: if the bytes are damaged, hold code, or are not this generator's weights.
    """
    weights = unpack(data, name)
    check_weights(weights, name)
    return weights


def unpack(data: bytes, name: str) -> Weights:
    """Returns the tensors in a checkpoint, unchecked.

    Raises:
        StyleError: if the bytes are damaged, hold code, or are not a plain state dict.
    """
    try:
        if data[8:9] == b"{":  # safetensors: eight bytes of header length, then JSON
            return load_safetensors(data)
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise StyleError(f"{name} is truncated or damaged: {error}") from error
    except Exception as error:  # on bytes that are not a checkpoint, the unpickler may raise anything
        if "Unsupported global" in str(error):
            raise StyleError(
                f"{name} holds something other than tensors, which could run code on loading; it was not read."
            ) from error
        raise StyleError(f"{name} is truncated, damaged, or not a PyTorch checkpoint.") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise StyleError(f"{name} is not a plain state dict of tensors.")
    return loaded


def check_weights(weights: Weights, name: str) -> None:
    """Checks that weights have the generator's keys and shapes, and finite values.

    Raises:
        StyleError: if they do not; it names the first key that is wrong.
    """
    with torch.device("meta"):
        expected = Generator().state_dict()
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    if missing or unknown:
        raise StyleError(
            f"{name} is not an AnimeGANv2 generator: "
            + "; ".join(
                f"{len(keys)} keys {what}, the first {keys[0]}"
                for keys, what in ((missing, "missing"), (unknown, "unknown"))
                if keys
            )
        )
    for key, weight in weights.items():
        if weight.shape != expected[key].shape:
            raise StyleError(f"{name}: {key} is {tuple(weight.shape)}, not {tuple(expected[key].shape)}")
        if weight.layout is not torch.strided or weight.is_meta or not weight.is_floating_point():
            raise StyleError(f"{name}: {key} is not a plain tensor of floating-point numbers")
        if not weight.isfinite().all():
            raise StyleError(f"{name}: {key} holds values that are not finite")


def save_style(weights: Weights, style: Style, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a style's file completely or not at all: a partial file never has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copied, because safetensors refuses tensors that share memory, and a checkpoint's weights may.
    tensors = {key: weight.detach().to("cpu", dtype, copy=True).contiguous() for key, weight in weights.items()}
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, partial, metadata=style.to_header())
        os.chmod(partial, 0o644)  # mkstemp lets only the owner read; other nodes and users read styles too
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def load_generator(style: InstalledStyle) -> Generator:
    """Returns the style's generator on the CPU, in eval mode, in float32.

    Raises:
        StyleError: if the file is damaged or holds other weights.
    """
    try:
        weights = load_file(style.path)
    except (OSError, SafetensorError) as error:
        raise StyleError(f"{style.path} is damaged: {error}") from error
    check_weights(weights, style.path.name)
    generator = Generator(style.resize, style.eps)
    generator.load_state_dict({key: weight.float() for key, weight in weights.items()})
    return generator.eval()
