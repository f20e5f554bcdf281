import os
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_style, torch_bytes
from safetensors.torch import save
from torch import Tensor, nn

from serve_app.engine.checkpoints import load_generator, read_checkpoint, save_style
from serve_app.errors import StyleError
from serve_app.styles.catalogue import read_installed

Weights = Mapping[str, Tensor]

LAST = "out_layer.0.weight"
DAMAGED = "odd.pt is truncated, damaged, or not a PyTorch checkpoint."
HOLDS_CODE = "odd.pt holds something other than tensors, which could run code on loading; it was not read."


def refusal(data: bytes) -> str:
    with pytest.raises(StyleError) as caught:
        read_checkpoint(data, "odd.pt")
    return str(caught.value)


def legacy_bytes(content: Any) -> bytes:
    return torch_bytes(content, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("pack", [torch_bytes, legacy_bytes, save], ids=["zip", "legacy", "safetensors"])
def test_checkpoint_is_read_in_each_container(weights: Weights, pack: Callable[[Any], bytes]) -> None:
    read = read_checkpoint(pack(weights), "good.pt")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)


@pytest.mark.parametrize("pack", [torch_bytes, legacy_bytes], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.0001, 0.5, 0.999])
def test_truncated_checkpoint_is_refused(weights: Weights, pack: Callable[[Any], bytes], keep: float) -> None:
    whole = pack(weights)
    assert refusal(whole[: int(keep * len(whole))]) == DAMAGED


@pytest.mark.parametrize("length", [50, 4_000_000])
def test_truncated_safetensors_is_refused(weights: Weights, length: int) -> None:
    assert refusal(save(dict(weights))[:length]).startswith("odd.pt is truncated or damaged: ")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        np.random.default_rng(0).bytes(4096),
        b"<!DOCTYPE html><title>404</title>",
        b'{"message": "Not Found"}',
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["empty", "random", "html", "json", "lfs-pointer"],
)
def test_bytes_that_are_no_checkpoint_are_refused_without_a_warning_of_code(data: bytes) -> None:
    assert refusal(data) == DAMAGED


class Trap:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "pack",
    [torch_bytes, legacy_bytes, partial(pickle.dumps, protocol=2)],
    ids=["zip", "legacy", "bare"],
)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, pack: Callable[[Any], bytes]) -> None:
    sprung = tmp_path / "sprung"
    data = pack({"weight": Trap(sprung)})
    assert refusal(data) == HOLDS_CODE
    assert not sprung.exists()


def test_trap_works_when_it_is_unpickled_without_care(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # noqa: S301 that is the point
    assert (tmp_path / "sprung").exists()


def test_pickled_module_is_refused() -> None:
    assert refusal(torch_bytes(nn.Conv2d(1, 1, 1))) == HOLDS_CODE


@pytest.mark.parametrize(
    "content",
    [[torch.ones(1)], torch.ones(1), {"state_dict": {"weight": torch.ones(1)}}, {"epoch": 3}],
    ids=["list", "tensor", "wrapped", "numbers"],
)
def test_checkpoint_that_is_no_plain_state_dict_is_refused(content: object) -> None:
    assert refusal(torch_bytes(content)) == "odd.pt is not a plain state dict of tensors."


def test_missing_and_unknown_keys_are_counted_and_the_first_named(weights: Weights) -> None:
    renamed = {f"model.{key}": weight for key, weight in weights.items()}
    first = next(iter(weights))
    assert refusal(torch_bytes(renamed)) == (
        f"odd.pt is not an AnimeGANv2 generator: {len(weights)} keys missing, the first {first}; "
        f"{len(weights)} keys unknown, the first model.{first}"
    )


def test_one_missing_key_is_named(weights: Weights) -> None:
    without = {key: weight for key, weight in weights.items() if key != LAST}
    assert refusal(torch_bytes(without)) == (f"odd.pt is not an AnimeGANv2 generator: 1 keys missing, the first {LAST}")


def test_one_extra_key_is_named(weights: Weights) -> None:
    assert refusal(torch_bytes({**weights, "discriminator.weight": torch.ones(1)})) == (
        "odd.pt is not an AnimeGANv2 generator: 1 keys unknown, the first discriminator.weight"
    )


def test_wrong_shape_is_named_with_the_right_one(weights: Weights) -> None:
    assert refusal(torch_bytes({**weights, LAST: torch.ones(4, 32, 1, 1)})) == (
        f"odd.pt: {LAST} is (4, 32, 1, 1), not (3, 32, 1, 1)"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(weights: Weights, value: float) -> None:
    poisoned = weights[LAST].clone()
    poisoned[0, 0] = value
    assert refusal(torch_bytes({**weights, LAST: poisoned})) == f"odd.pt: {LAST} holds values that are not finite"


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda weight: weight.to("meta")], ids=["sparse", "meta"])
def test_tensor_without_plain_values_is_refused(weights: Weights, change: Callable[[Tensor], Tensor]) -> None:
    assert LAST in refusal(torch_bytes({**weights, LAST: change(weights[LAST])}))


def test_weights_that_share_memory_are_saved(weights: Weights, tmp_path: Path) -> None:
    ones = torch.ones(64)
    tied = {key: ones if weight.shape == (64,) else weight for key, weight in weights.items()}
    path = tmp_path / "tied.safetensors"
    save_style(read_checkpoint(torch_bytes(tied), "tied.pt"), make_style("tied"), path)
    assert torch.equal(load_generator(read_installed(path)).state_dict()["block_a.2.2.bias"], ones)


def test_failed_save_leaves_nothing_behind(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        save_style(weights, make_style(), tmp_path / "seeded.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_failed_save_keeps_the_style_that_was_there(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(title="Old"), path)
    monkeypatch.setattr("serve_app.engine.checkpoints.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_style(weights, make_style(title="New"), path)
    assert read_installed(path).title == "Old"
    assert list(tmp_path.iterdir()) == [path]


def test_saved_style_can_be_read_by_other_users(weights: Weights, tmp_path: Path) -> None:
    save_style(weights, make_style(), tmp_path / "seeded.safetensors")
    assert (tmp_path / "seeded.safetensors").stat().st_mode & 0o777 == 0o644


def test_style_saved_in_16_bits_loads_as_32(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(), path, dtype=torch.float16)
    assert path.stat().st_size < 5_000_000
    state = load_generator(read_installed(path)).state_dict()
    assert {weight.dtype for weight in state.values()} == {torch.float32}
    for key, weight in weights.items():
        torch.testing.assert_close(state[key], weight, rtol=2**-11, atol=1e-7)


def test_generator_is_loaded_with_its_styles_eps_and_for_painting(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(resize="tf", eps=1e-12), path)
    generator = load_generator(read_installed(path))
    assert {norm.eps for norm in generator.modules() if isinstance(norm, nn.GroupNorm)} == {1e-12}
    assert not generator.training


def test_style_whose_file_was_damaged_after_installation_is_refused(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(), path)
    style = read_installed(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StyleError) as caught:
        load_generator(style)
    assert str(caught.value).startswith(f"{path} is damaged: ")
