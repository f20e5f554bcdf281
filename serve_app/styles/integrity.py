"""Checks the file of a style without torch: the digest of its content, its tensors, and their values.

A style is a safetensors file. Its header holds two strings: the description of the style, as JSON, and a digest. Any
bit that flips in the file breaks the format, or changes the digest.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize

from serve_app.errors import StyleError
from serve_app.styles.formats import identify

DESCRIPTION = "animegan_style"
DIGEST = "animegan_sha256"
# Other keys are refused: with a flipped bit, the key of the digest is one of them. Other programs write "format".
HEADER_KEYS = {DESCRIPTION, DIGEST, "format"}
NUMPY_DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
BF16_EXPONENT = 0x7F80  # all of its bits are set in infinities and NaNs

Shape = tuple[int, ...]


class RawTensor(NamedTuple):
    """A tensor as it lies in the file: its bytes are little-endian, in C order."""

    name: str
    dtype: str
    shape: Shape
    data: bytes


@dataclass(frozen=True)
class StyleContent:
    """The content of a style's file: the strings of its header, and its tensors."""

    header: dict[str, str]
    tensors: list[RawTensor]

    @property
    def has_digest(self) -> bool:
        """Whether the file carries a digest; files of older versions do not."""
        return DIGEST in self.header

    def digest(self) -> str:
        """Returns the digest that the content should have."""
        return style_digest(self.header.get(DESCRIPTION, ""), self.tensors)

    def verified_digest(self) -> str:
        """Returns the digest of a content that was verified: the one that it carries, if it does."""
        return self.header.get(DIGEST) or self.digest()


def style_digest(description: str, tensors: Iterable[RawTensor]) -> str:
    """Returns the digest of a style, in hexadecimal.

    It is the SHA-256 of these bytes, one after another: the description in UTF-8 as a JSON string, and a newline; then
    for each tensor, in the order of their names, the JSON list of its name, dtype and shape, a newline, and its raw
    little-endian bytes. JSON is written as `json.dumps` does by default.

    Args:
        description: the text of the style's description, as it stands in the header.
        tensors: in any order.
    """
    digest = hashlib.sha256(json.dumps(description).encode() + b"\n")
    for tensor in sorted(tensors):
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode() + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()


def parse(data: bytes) -> StyleContent:
    """Returns the content of a safetensors file.

    Raises:
        StyleError: if it is none, or is damaged; the text is a part of a sentence, without the name of the file.
    """
    try:
        tensors = [
            RawTensor(name, tensor["dtype"], tuple(tensor["shape"]), tensor["data"])
            for name, tensor in deserialize(data)  # type: ignore[no-untyped-call]
        ]
    except SafetensorError as error:
        what = identify(data)
        raise StyleError(f"it is {what}" if what else str(error)) from error
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])  # safetensors has checked it
    return StyleContent(header.get("__metadata__") or {}, tensors)


def with_sorted_header(data: bytes) -> bytes:
    """Returns a safetensors file with the strings of its header in the order of their keys.

    The library writes them in any order, and the same style should always be the same file.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def verify(content: StyleContent) -> None:
    """Checks a style's content against its digest, if it has one, and its tensors against the generator's.

    Raises:
        StyleError: if something is wrong; the text is a part of a sentence, without the name of the file.
    """
    unknown = content.header.keys() - HEADER_KEYS
    if unknown:
        raise StyleError(f"its header has an unknown key, {min(unknown)!r}")
    if content.has_digest and content.digest() != content.header[DIGEST]:
        raise StyleError("its content does not match its digest, so it has changed since it was installed")
    verify_tensors(content.tensors)
    if not content.has_digest:  # whoever wrote a digest has checked the values
        verify_values(content.tensors)


def verify_tensors(tensors: Iterable[RawTensor]) -> None:
    """Checks that tensors have the generator's names and shapes, and types of floating-point numbers.

    Raises:
        StyleError: naming the first that is not; the text is a part of a sentence.
    """
    found = {tensor.name: tensor for tensor in tensors}
    expected = generator_shapes()
    if different := name_differences(found, expected):
        raise StyleError(f"it is not an AnimeGANv2 generator: {different}")
    for name, tensor in found.items():
        if tensor.shape != expected[name]:
            raise StyleError(f"{name} is {tensor.shape}, not {expected[name]}")
        if tensor.dtype not in NUMPY_DTYPES:
            raise StyleError(f"{name} holds {tensor.dtype}, not floating-point numbers")


def verify_values(tensors: Iterable[RawTensor]) -> None:
    """Checks that float32 can hold the values of floating-point tensors, and that none is infinite or NaN.

    Raises:
        StyleError: naming the first tensor that has such a value; the text is a part of a sentence.
    """
    for tensor in tensors:
        if not is_finite(tensor):
            raise StyleError(f"{tensor.name} holds values that are not finite in float32")


def is_finite(tensor: RawTensor) -> bool:
    """Returns whether float32 can hold all values of a floating-point tensor, and none is infinite or NaN."""
    values = np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.dtype])
    if tensor.dtype == "BF16":  # NumPy has no such type; its exponents are those of float32
        return bool((values & BF16_EXPONENT != BF16_EXPONENT).all())
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32, copy=False)).all())


def name_differences(found: Iterable[str], expected: Iterable[str]) -> str:
    """Returns which tensors are missing and which are unknown, counted, with the first of each; empty if none."""
    found, expected = dict.fromkeys(found), dict.fromkeys(expected)  # ordered sets
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    return "; ".join(
        f"{len(names)} keys {what}, the first {names[0]}"
        for names, what in ((missing, "missing"), (unknown, "unknown"))
        if names
    )


def generator_shapes() -> dict[str, Shape]:
    """Returns the shape of each tensor of the generator, by its name in the state dict of `engine.generator`."""
    shapes: dict[str, Shape] = {}

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def conv_norm(name: str, channels: int, out: int, kernel: int = 3) -> None:
        shapes[f"{name}.1.weight"] = (out, channels, kernel, kernel)
        norm(f"{name}.2", out)

    def inverted_residual(name: str, channels: int, out: int) -> None:
        hidden = 2 * channels
        conv_norm(f"{name}.layers.0", channels, hidden, 1)
        shapes[f"{name}.layers.1.1.weight"], shapes[f"{name}.layers.1.1.bias"] = (hidden, 1, 3, 3), (hidden,)
        norm(f"{name}.layers.1.2", hidden)
        shapes[f"{name}.layers.2.weight"] = (out, hidden, 1, 1)
        norm(f"{name}.layers.3", out)

    conv_norm("block_a.0", 3, 32, 7)
    conv_norm("block_a.1", 32, 64)
    conv_norm("block_a.2", 64, 64)
    conv_norm("block_b.0", 64, 128)
    conv_norm("block_b.1", 128, 128)
    conv_norm("block_c.0", 128, 128)
    for index, channels in enumerate((128, 256, 256, 256), 1):
        inverted_residual(f"block_c.{index}", channels, 256)
    conv_norm("block_c.5", 256, 128)
    conv_norm("block_d.0", 128, 128)
    conv_norm("block_d.1", 128, 128)
    conv_norm("block_e.0", 128, 64)
    conv_norm("block_e.1", 64, 64)
    conv_norm("block_e.2", 64, 32, 7)
    shapes["out_layer.0.weight"] = (3, 32, 1, 1)
    return shapes
