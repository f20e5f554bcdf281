import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_style
from safetensors.torch import load_file, save_file
from shared import SHIPPED_STYLES
from torch import Tensor

from serve_app.engine.checkpoints import load_generator, save_style
from serve_app.engine.generator import Generator
from serve_app.errors import StyleError
from serve_app.styles.catalogue import installed_styles, read_installed, read_style, shipped_dir
from serve_app.styles.integrity import DESCRIPTION, DIGEST, generator_shapes, parse

KEY = "out_layer.0.weight"
SHIPPED = (shipped_dir() / "toon.safetensors").read_bytes()
HEADER_END = 8 + int.from_bytes(SHIPPED[:8], "little")
TENSORS_BEGIN = SHIPPED.index(b'"block_a')


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refusal(path: Path) -> str:
    with pytest.raises(StyleError) as caught:
        read_installed(path)
    return str(caught.value)


def test_shipped_style_carries_its_digest() -> None:
    style, content = read_style(shipped_dir() / "toon.safetensors")
    assert content.header[DIGEST] == content.digest()
    assert style.source == "trained by scripts/train"
    assert style.summary == "Mild and true to the photograph: flat colours, clean contours, lifted shadows."


def test_digest_is_the_documented_one(weights: Mapping[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(), path)
    header = parse(path.read_bytes()).header
    stated = json.dumps(header[DESCRIPTION]) + "\n"
    expected = hashlib.sha256(stated.encode())
    for key, tensor in sorted(load_file(path).items()):
        expected.update((json.dumps([key, "F32", list(tensor.shape)]) + "\n").encode() + tensor.numpy().tobytes())
    assert header[DIGEST] == expected.hexdigest()


@pytest.mark.parametrize(
    ("first", "end", "count"),
    [
        (0, 8, 20),
        (8, TENSORS_BEGIN, 60),
        (TENSORS_BEGIN, HEADER_END, 40),
        (HEADER_END - 8, HEADER_END, 20),
        (HEADER_END, len(SHIPPED), 60),
    ],
    ids=["length", "description", "names of tensors", "padding", "tensors"],
)
def test_one_flipped_bit_is_named_wherever_it_is(styles_dir: Path, first: int, end: int, count: int) -> None:
    path = styles_dir / "toon.safetensors"
    for bit in random.Random(end).sample(range(8 * first, 8 * end), count):
        path.write_bytes(flipped(SHIPPED, bit))
        assert refusal(path).startswith(f"{path} is damaged"), bit


@pytest.mark.parametrize("key", [DIGEST, DESCRIPTION])
def test_flipped_bit_in_a_key_of_the_header_is_no_style_of_an_older_version(styles_dir: Path, key: str) -> None:
    path = styles_dir / "toon.safetensors"
    place = 8 * SHIPPED.index(key.encode())
    for bit in range(place, place + 5):  # the lowest bits of the first letter
        path.write_bytes(flipped(SHIPPED, bit))
        assert refusal(path).startswith(f"{path} is damaged"), bit


def test_style_with_a_flipped_bit_is_left_out_and_named_and_the_others_are_served(
    weights: Mapping[str, Tensor], styles_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style("mine"), path)
    path.write_bytes(flipped(path.read_bytes(), 8 * (path.stat().st_size - 100)))
    styles = installed_styles()
    assert list(styles) == SHIPPED_STYLES
    assert [left_out.name for left_out in styles.left_out] == ["mine"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        f"a style is left out: {path} is damaged: its content does not match its digest, so it has changed since it "
        "was installed; install it again."
    )


def test_style_whose_figure_was_changed_is_left_out(weights: Mapping[str, Tensor], styles_dir: Path) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style("mine", psnr_bf16=41.5), path)
    assert installed_styles()["mine"].psnr_bf16 == 41.5
    content = path.read_bytes()
    assert content.count(b"41.5") == 1
    path.write_bytes(content.replace(b"41.5", b"51.5"))
    assert list(installed_styles()) == SHIPPED_STYLES


def write(path: Path, weights: Mapping[str, Tensor]) -> None:
    """A style as older versions wrote it, without a digest."""
    save_file(dict(weights), path, metadata=make_style(path.stem).to_header())


def test_style_of_an_older_version_is_served_and_its_missing_digest_is_said(
    weights: Mapping[str, Tensor], styles_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = styles_dir / "old.safetensors"
    write(path, weights)
    styles = installed_styles()
    assert styles["old"].path == path
    assert styles.without_digest == {"old"}
    assert caplog.messages == [
        f"{path} has no digest, because an older version wrote it. Damage to it would go unnoticed: install it again."
    ]
    save_style(weights, make_style("old"), path)
    assert installed_styles().without_digest == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({KEY: None}, f"it is not an AnimeGANv2 generator: 1 keys missing, the first {KEY}"),
        ({"more": torch.ones(1)}, "it is not an AnimeGANv2 generator: 1 keys unknown, the first more"),
        ({KEY: torch.ones(4, 32, 1, 1)}, f"{KEY} is (4, 32, 1, 1), not (3, 32, 1, 1)"),
        ({KEY: torch.ones(3, 32, 1, 1, dtype=torch.int32)}, f"{KEY} holds I32, not floating-point numbers"),
        *(
            ({KEY: torch.full((3, 32, 1, 1), value, dtype=dtype)}, f"{KEY} holds values that are not finite in float32")
            for value, dtype in [
                (float("nan"), torch.float32),
                (float("inf"), torch.float16),
                (float("-inf"), torch.bfloat16),
                (float("nan"), torch.bfloat16),
                (1e300, torch.float64),
            ]
        ),
    ],
)
def test_weights_that_the_generator_cannot_take_are_refused_without_torch(
    weights: Mapping[str, Tensor], styles_dir: Path, changes: Mapping[str, Tensor | None], said: str
) -> None:
    path = styles_dir / "old.safetensors"
    write(path, {key: weight for key, weight in {**weights, **changes}.items() if weight is not None})
    assert refusal(path) == f"{path} is damaged: {said}; install it again."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_taken(
    weights: Mapping[str, Tensor], styles_dir: Path, dtype: torch.dtype
) -> None:
    write(styles_dir / "old.safetensors", {key: weight.to(dtype) for key, weight in weights.items()})
    assert read_installed(styles_dir / "old.safetensors").name == "old"


def test_shapes_are_the_generators() -> None:
    state = Generator().state_dict()
    assert generator_shapes() == {key: tuple(weight.shape) for key, weight in state.items()}
    assert sum(int(np.prod(shape)) for shape in generator_shapes().values()) == 2_143_552


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (lambda data: b"<!DOCTYPE html>\n<title>Sign in</title>", "it is a web page"),
        (lambda data: data[: len(data) // 2], "Error while deserializing"),
        (lambda data: data + b"\0", "Error while deserializing"),
        (lambda data: bytes(len(data)), "Error while deserializing"),
    ],
    ids=["empty", "lfs", "html", "truncated", "longer", "zeros"],
)
def test_file_that_is_no_whole_style_is_named(styles_dir: Path, spoil: Callable[[bytes], bytes], said: str) -> None:
    path = styles_dir / "mine.safetensors"
    path.write_bytes(spoil(SHIPPED))
    assert refusal(path).startswith(f"{path} is damaged and cannot be read as a style: {said}")


def test_an_installed_style_knows_its_digest_even_if_its_file_carries_none(
    weights: Mapping[str, Tensor], styles_dir: Path
) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style("mine"), path)
    first = read_installed(path)
    assert first.digest == read_style(path)[1].header[DIGEST]
    write(path, weights)
    assert not read_style(path)[1].has_digest
    assert read_installed(path).digest == first.digest


def test_an_installed_style_notices_that_its_file_was_replaced(weights: Mapping[str, Tensor], styles_dir: Path) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style(), path)
    style = read_installed(path)
    assert style.is_current
    save_style(weights, make_style(title="Retrained"), path)
    assert not style.is_current
    assert read_installed(path).digest != style.digest
    path.unlink()
    assert not style.is_current


def test_weights_are_not_loaded_of_a_file_that_was_replaced(weights: Mapping[str, Tensor], styles_dir: Path) -> None:
    path = styles_dir / "mine.safetensors"
    save_style(weights, make_style(), path)
    style = read_installed(path)
    load_generator(style)
    save_style(weights, make_style(title="Retrained"), path)
    with pytest.raises(StyleError, match="was replaced"):
        load_generator(style)
