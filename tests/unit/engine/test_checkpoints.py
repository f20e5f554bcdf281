import os
import pickle
import re
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
    ("data", "said"),
    [
        (b"", "odd.pt is empty."),
        (np.random.default_rng(0).bytes(4096), DAMAGED),
        (b"<!DOCTYPE html><title>404</title>", "odd.pt is a web page; download the file itself, by its raw address."),
        (b'{"message": "Not Found"}', "odd.pt is a JSON document."),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "odd.pt is a Git LFS pointer, not the file itself; `git lfs pull` fetches that.",
        ),
    ],
    ids=["empty", "random", "html", "json", "lfs-pointer"],
)
def test_bytes_that_are_no_checkpoint_are_refused_without_a_warning_of_code(data: bytes, said: str) -> None:
    assert refusal(data) == said


def test_part_of_a_tensorflow_checkpoint_is_known_by_its_name() -> None:
    with pytest.raises(StyleError, match="is a TensorFlow file; convert the checkpoint"):
        read_checkpoint(np.random.default_rng(0).bytes(4096), "AnimeGANv2.ckpt.data-00000-of-00001")


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


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), {}], ids=["list", "tensor", "nothing"])
def test_checkpoint_that_is_no_plain_state_dict_is_refused(content: object) -> None:
    assert refusal(torch_bytes(content)) == "odd.pt is not a plain state dict of tensors."


def test_checkpoint_without_tensors_is_refused_with_its_keys() -> None:
    content = {"epoch": 3, "args": {"lr": 0.1}, 5: None, "a": 1, "b": 2, "c": 3}
    assert refusal(torch_bytes(content)) == (
        "odd.pt is not a plain state dict of tensors; it holds epoch, args, 5, a, b …."
    )


def prefixed(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {prefix + key: weight for key, weight in weights.items()}


OTHER = {"weight": torch.ones(3)}  # of another network


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "generator.", "netG.module.", "model._orig_mod.module."])
def test_prefix_of_all_keys_is_taken_off(weights: Weights, prefix: str) -> None:
    read = read_checkpoint(torch_bytes(prefixed(weights, prefix)), "good.pt")
    assert read.keys() == weights.keys()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights},
        lambda weights: {"model": weights, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        lambda weights: {"generator": dict(weights), "discriminator": OTHER},
        lambda weights: {"params_ema": weights, "params": {**weights, LAST: torch.zeros_like(weights[LAST])}},
        lambda weights: {"state_dict": prefixed(weights, "generator.") | prefixed(OTHER, "discriminator.")},
        lambda weights: {"n_averaged": torch.tensor(7)} | prefixed(weights, "module."),
        lambda weights: {"checkpoint": {"models": [OTHER, {"state_dict": prefixed(weights, "module.")}]}},
        lambda weights: {"step": 5, **weights},
        lambda weights: {"generator": weights, "again": weights},
    ],
    ids=["state_dict", "model", "gan", "ema", "lightning", "swa", "deep", "flat with a number", "the same twice"],
)
def test_weights_within_a_checkpoint_are_found(weights: Weights, wrap: Callable[[Weights], Any]) -> None:
    read = read_checkpoint(torch_bytes(wrap(weights)), "good.pt")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)


def test_average_that_was_taken_is_said(weights: Weights, caplog: pytest.LogCaptureFixture) -> None:
    copy = {key: weight.clone() for key, weight in weights.items()}
    read_checkpoint(torch_bytes({"student": weights, "average": copy}), "good.pt")
    assert caplog.messages == ["good.pt holds several generators; average was taken, an average"]


def test_two_generators_of_which_none_is_an_average_are_refused(weights: Weights) -> None:
    copy = {key: weight.clone() for key, weight in weights.items()}
    assert refusal(torch_bytes({"netG_A": weights, "netG_B": prefixed(copy, "module.")})) == (
        "odd.pt holds several generators (netG_A, netG_B.module); save the state dict of one of them by itself."
    )


def test_mapping_within_itself_is_read_once() -> None:
    content: dict[str, Any] = {"weight": torch.ones(3)}
    content["self"] = [content]
    assert refusal(torch_bytes(content)).startswith("odd.pt is not an AnimeGANv2 generator: ")


def test_error_names_the_inner_key_under_which_the_closest_weights_are(weights: Weights) -> None:
    without = {key: weight for key, weight in prefixed(weights, "module.").items() if not key.endswith(LAST)}
    assert refusal(torch_bytes({"optimizer": OTHER, "params_ema": without})) == (
        f"odd.pt is not an AnimeGANv2 generator, in params_ema.module: 1 keys missing, the first {LAST}"
    )
    assert refusal(torch_bytes({"state_dict": OTHER})) == (
        f"odd.pt is not an AnimeGANv2 generator, in state_dict: {len(weights)} keys missing, the first "
        f"{next(iter(weights))}; 1 keys unknown, the first weight"
    )


def test_wrong_weight_is_named_with_the_keys_that_lead_to_it(weights: Weights) -> None:
    content = {"params_ema": prefixed({**weights, LAST: torch.ones(4, 32, 1, 1)}, "module.")}
    assert refusal(torch_bytes(content)) == f"odd.pt: params_ema.module.{LAST} is (4, 32, 1, 1), not (3, 32, 1, 1)"


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


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_values_that_do_not_fit_float32_are_refused(weights: Weights, value: float) -> None:
    large = weights[LAST].double()
    large[0, 0] = value
    assert refusal(torch_bytes({**weights, LAST: large})) == f"odd.pt: {LAST} holds values that do not fit float32"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_other_floating_point_types_are_read(weights: Weights, dtype: torch.dtype) -> None:
    read = read_checkpoint(torch_bytes({**weights, LAST: weights[LAST].to(dtype)}), "good.pt")
    assert read[LAST].dtype == dtype


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "change",
    [
        Tensor.to_sparse,
        lambda weight: weight.to("meta"),
        Tensor.int,
        Tensor.bool,
        lambda weight: weight.to(torch.complex64),
    ],
    ids=["sparse", "meta", "integers", "booleans", "complex"],
)
def test_tensor_without_plain_values_is_refused(weights: Weights, change: Callable[[Tensor], Tensor]) -> None:
    assert LAST in refusal(torch_bytes({**weights, LAST: change(weights[LAST])}))


def test_weights_that_share_memory_are_saved(weights: Weights, tmp_path: Path) -> None:
    ones = torch.ones(64)
    tied = {key: ones if weight.shape == (64,) else weight for key, weight in weights.items()}
    path = tmp_path / "tied.safetensors"
    save_style(read_checkpoint(torch_bytes(tied), "tied.pt"), make_style("tied"), path)
    assert torch.equal(load_generator(read_installed(path)).state_dict()["block_a.2.2.bias"], ones)


def test_weights_that_do_not_fit_the_type_of_the_style_are_not_saved(weights: Weights, tmp_path: Path) -> None:
    large = {**weights, LAST: torch.full((3, 32, 1, 1), 70_000.0)}
    with pytest.raises(StyleError) as caught:
        save_style(large, make_style(), tmp_path / "seeded.safetensors", dtype=torch.float16)
    assert str(caught.value) == f"{LAST} of seeded holds values that do not fit float16"
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(os, "chmod", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_style(weights, make_style(title="New"), path)
    assert read_installed(path).title == "Old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("checksums", [True, False])
def test_flipped_bit_in_a_checkpoint_of_pytorch_is_noticed(weights: Weights, checksums: bool) -> None:
    torch.serialization.set_crc32_options(checksums)
    try:
        data = bytearray(torch_bytes(dict(weights)))
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(bytes(data), "odd.pt").keys() == weights.keys()
    data[data.index(weights[LAST].numpy().tobytes())] ^= 1
    if checksums:
        said = refusal(bytes(data))
        assert re.fullmatch(r"odd\.pt is damaged: \w+/data/\d+ in it does not match its checksum\.", said)


def test_same_style_is_always_the_same_file(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    files = set()
    for _ in range(8):
        save_style(weights, make_style(), path)
        files.add(path.read_bytes())
    assert len(files) == 1


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


def test_bit_that_flips_between_listing_and_loading_is_noticed(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(), path)
    style = read_installed(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StyleError, match="is damaged: its content does not match its digest"):
        load_generator(style)


def test_damaged_style_is_not_imported(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "seeded.safetensors"
    save_style(weights, make_style(), path)
    whole = path.read_bytes()
    assert read_checkpoint(whole, "odd.pt").keys() == weights.keys()
    assert refusal(whole[:-1] + bytes([whole[-1] ^ 1])) == ("odd.pt is damaged: its content does not match its digest.")
