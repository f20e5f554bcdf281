"""Reads checkpoint files, checks them, and saves and loads styles.

Public checkpoints are pickles. They are read with `weights_only=True`, checked against the generator's own keys and
shapes, and saved as safetensors.
"""

import io
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save
from torch import Tensor

from serve_app.engine.generator import Generator
from serve_app.errors import StyleError
from serve_app.styles.catalogue import InstalledStyle, Style, read_file
from serve_app.styles.files import replace_file
from serve_app.styles.formats import damaged_member, identify, identify_by_name
from serve_app.styles.integrity import DIGEST, generator_shapes, name_differences, parse, verify, with_sorted_header
from serve_app.styles.text import printable
from serve_app.styles.thumbnails import thumbnail_path

logger = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]

AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])|average|shadow", re.I)  # names of averaged weights, which paint best
MAX_DEPTH = 5  # of mappings and lists within each other
NAMED_KEYS = 5  # of a checkpoint without weights, in the error


def read_checkpoint(data: bytes, name: str) -> Weights:
    """Returns the generator's weights from a checkpoint, in the format of PyTorch or of safetensors.

    The weights may lie deeper in the checkpoint (in `state_dict`, `params_ema` …), and their keys may share a prefix
    (`module.`, `generator.` …). Of several generators, the one that is named as an average is taken.

    Args:
        data: the bytes of the file.
        name: of the file, for error messages.

    Raises:
        StyleError: if the bytes are damaged, hold code, or are not this generator's weights.
    """
    name = printable(name)
    found = find_weights(unpack(data, name), name)
    check_weights(found.tensors, f"{name}: {found.place}")
    return found.tensors


def unpack(data: bytes, name: str) -> Any:
    """Returns what a checkpoint holds: a mapping of tensors, or whatever else was saved without code.

    Raises:
        StyleError: if the bytes are damaged, hold code, or are of another kind of file.
    """
    if what := identify(data):
        raise StyleError(f"{name} is {what}.")
    try:
        if data[8:9] == b"{":  # safetensors: eight bytes of header length, then JSON
            return load_verified(data, name)
        if data.startswith(b"PK") and (damaged := damaged_member(data)):
            raise StyleError(f"{name} is damaged: {printable(damaged)} in it does not match its checksum.")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise StyleError(f"{name} is truncated or damaged: {error}") from error
    except StyleError:
        raise
    except Exception as error:  # on bytes that are not a checkpoint, the unpickler may raise anything
        if "Unsupported global" in str(error):
            raise StyleError(
                f"{name} holds something other than tensors, which could run code on loading; it was not read."
            ) from error
        if what := identify_by_name(name):
            raise StyleError(f"{name} is {what}.") from error
        raise StyleError(f"{name} is truncated, damaged, or not a PyTorch checkpoint.") from error


def load_verified(data: bytes, name: str) -> Weights:
    """Returns the tensors of a safetensors file; if it is a style, only after checking its digest.

    Raises:
        StyleError: if it is a style whose content does not match its digest.
        SafetensorError: if it is damaged.
    """
    weights = load_safetensors(data)
    content = parse(data)
    if content.has_digest and content.digest() != content.header[DIGEST]:
        raise StyleError(f"{name} is damaged: its content does not match its digest.")
    return weights


@dataclass(frozen=True)
class Candidate:
    """Tensors of a checkpoint that may be the generator's.

    Attributes:
        place: what precedes their keys in the checkpoint, for example `state_dict.module.`.
        tensors: by the keys behind that.
        matches: how many of the keys are the generator's.
    """

    place: str
    tensors: Weights
    matches: int

    @property
    def differences(self) -> str:
        """Which of the generator's keys are missing and which keys are not the generator's; empty if none."""
        return name_differences(self.tensors, generator_shapes())


def find_weights(loaded: Any, name: str) -> Candidate:
    """Returns the generator's weights, wherever they are in a checkpoint.

    Raises:
        StyleError: if there are none, naming the place that has most of the generator's keys; or if there are several,
            and not exactly one of them is an average.
    """
    candidates = [each for place, tensors in state_dicts(loaded) for each in split_by_prefix(place, tensors)]
    if not candidates:
        raise StyleError(f"{name} is not a plain state dict of tensors{summary(loaded)}.")
    found = [candidate for candidate in candidates if not candidate.differences]
    if not found:
        closest = max(candidates, key=lambda candidate: candidate.matches)
        where = f", in {closest.place.rstrip('.')}" if closest.place else ""
        raise StyleError(f"{name} is not an AnimeGANv2 generator{where}: {closest.differences}")
    averages = [candidate for candidate in found if AVERAGE.search(candidate.place)]
    chosen = averages if len(found) > 1 else found
    if len(chosen) != 1:
        places = ", ".join(candidate.place.rstrip(".") or "the top" for candidate in found)
        raise StyleError(f"{name} holds several generators ({places}); save the state dict of one of them by itself.")
    if len(found) > 1:
        logger.warning("%s holds several generators; %s was taken, an average", name, chosen[0].place.rstrip("."))
    return chosen[0]


def state_dicts(loaded: Any) -> Iterator[tuple[str, Weights]]:
    """Yields the tensors of each mapping in a checkpoint, and the keys that lead to it, each with a dot behind it."""
    seen: set[int] = set()  # pickles may hold a mapping twice, and even within itself
    level: list[tuple[str, Any]] = [("", loaded)]
    for _ in range(MAX_DEPTH):
        level = [each for each in level if isinstance(each[1], Mapping | list | tuple) and id(each[1]) not in seen]
        inner: list[tuple[str, Any]] = []
        for place, container in level:
            if id(container) in seen:
                continue
            seen.add(id(container))
            items = container.items() if isinstance(container, Mapping) else enumerate(container)
            named = [(printable(key), value) for key, value in items]
            tensors = {key: value for key, value in named if isinstance(value, Tensor)}
            if tensors and isinstance(container, Mapping):
                yield place, tensors
            inner += [(f"{place}{key}.", value) for key, value in named]
        level = inner


def split_by_prefix(place: str, tensors: Weights) -> list[Candidate]:
    """Returns the tensors behind each prefix that precedes any of the generator's keys; all tensors if none does."""
    expected = generator_shapes()
    prefixes: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for index in range(len(parts)):
            if ".".join(parts[index:]) in expected:
                prefixes["".join(f"{part}." for part in parts[:index])] += 1
    return [
        Candidate(
            place + prefix,
            {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)},
            matches,
        )
        for prefix, matches in prefixes.items()
    ] or [Candidate(place, tensors, 0)]


def summary(loaded: Any) -> str:
    """Returns words on what a checkpoint without weights holds instead."""
    if not isinstance(loaded, Mapping) or not loaded:
        return ""
    keys = [printable(key) for key in itertools.islice(loaded, NAMED_KEYS + 1)]
    return f"; it holds {', '.join(keys[:NAMED_KEYS])}" + (" …" if len(keys) > NAMED_KEYS else "")


def check_weights(weights: Weights, where: str) -> None:
    """Checks that weights with the generator's keys have its shapes, and values that float32 can hold.

    Raises:
        StyleError: naming the first key that is wrong, with `where` before it.
    """
    expected = generator_shapes()
    for key, weight in weights.items():
        if weight.shape != expected[key]:
            raise StyleError(f"{where}{key} is {tuple(weight.shape)}, not {expected[key]}")
        if weight.layout is not torch.strided or weight.is_meta or not weight.is_floating_point():
            raise StyleError(f"{where}{key} is not a plain tensor of floating-point numbers")
        if not weight.float().isfinite().all():
            reason = "do not fit float32" if weight.double().isfinite().all() else "are not finite"
            raise StyleError(f"{where}{key} holds values that {reason}")


def save_style(weights: Weights, style: Style, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a style's file with its digest, completely or not at all: a partial file never has the final name.

    The thumbnail of a style that was there before is removed.

    Raises:
        StyleError: if weights are too large for the type.
    """
    # Copied, because safetensors refuses tensors that share memory, and a checkpoint's weights may.
    tensors = {key: weight.detach().to("cpu", dtype, copy=True).contiguous() for key, weight in weights.items()}
    if too_large := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise StyleError(f"{too_large[0]} of {style.name} holds values that do not fit {str(dtype).split('.')[-1]}")
    header = style.to_header()
    header[DIGEST] = parse(save(tensors, header)).digest()
    data = with_sorted_header(save(tensors, header))
    thumbnail_path(path).unlink(missing_ok=True)  # first: no style must ever be shown by the painting of another
    replace_file(path, data)


def build_generator(weights: Weights, style: Style) -> Generator:
    """Returns a generator with the weights of a style on the CPU, in eval mode, in float32."""
    generator = Generator(style.resize, style.eps)
    generator.load_state_dict({key: weight.detach().to("cpu", torch.float32) for key, weight in weights.items()})
    return generator.eval()


def load_generator(style: InstalledStyle) -> Generator:
    """Returns the style's generator on the CPU, in eval mode, in float32.

    Raises:
        StyleError: if the file is damaged, holds other weights, or was replaced since its description was read.
    """
    data = read_file(style.path)
    try:
        content = parse(data)
        verify(content)
    except StyleError as error:
        raise StyleError(f"{printable(style.path)} is damaged: {error}") from error
    if style.digest not in ("", content.verified_digest()):
        raise StyleError(f"{printable(style.path)} was replaced while it was being read; start again.")
    return build_generator(load_safetensors(data), style)
