"""Which precision images are painted in: by the setting, the device, the processor's instructions, and the style."""

from pathlib import Path

import pytest
import torch

from serve_app.engine.precision import (
    LEAST_PSNR_DB,
    Choice,
    bf16_instructions,
    choose_for_style,
    choose_precision,
    compute_dtype,
)
from serve_app.frames import Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CPUINFO = Path("/proc/cpuinfo")


def have(monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool) -> None:
    """Makes torch find these instructions and no others."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "precision", "reason"),
    [
        (True, True, "bf16", "auto is bf16 here: torch finds AVX512-BF16 and AMX"),
        (True, False, "bf16", "auto is bf16 here: torch finds AVX512-BF16"),
        (False, True, "bf16", "auto is bf16 here: torch finds AMX"),
        (False, False, "fp32", "auto is fp32 here: torch finds neither AVX512-BF16 nor AMX"),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, precision: Precision, reason: str
) -> None:
    have(monkeypatch, avx512_bf16, amx)
    assert choose_precision("auto", CPU) == Choice(precision, reason)
    assert compute_dtype("bf16", CPU) == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_on_cuda_is_fp16_in_every_style(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    have(monkeypatch, has_bf16, has_bf16)
    chosen = choose_precision("auto", CUDA)
    assert chosen == Choice("fp16", "auto is fp16 on CUDA")
    assert {choose_for_style("auto", chosen, psnr) for psnr in (None, 0, 99)} == {chosen}
    assert compute_dtype("fp16", CUDA) == torch.float16


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_setting_is_obeyed_for_every_style(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, device: torch.device, has_bf16: bool
) -> None:
    have(monkeypatch, has_bf16, has_bf16)
    chosen = choose_precision(precision, device)
    assert chosen.precision == precision
    assert {choose_for_style(precision, chosen, psnr) for psnr in (None, 0, 99)} == {chosen}


def test_reason_says_where_convolutions_run_in_float32_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, avx512_bf16=False, amx=False)
    assert choose_precision("bf16", CPU).reason == "bf16 is set, convolutions run in fp32"
    assert choose_precision("fp32", CPU).reason == "fp32 is set"
    have(monkeypatch, avx512_bf16=True, amx=False)
    assert choose_precision("bf16", CPU).reason == "bf16 is set"
    assert choose_precision("fp16", CPU).reason == "fp16 is set, convolutions run in fp32"


@pytest.mark.parametrize(
    ("psnr", "precision", "reason"),
    [
        (99.0, "bf16", "fast"),
        (LEAST_PSNR_DB, "bf16", "fast"),
        (47.9, "fp32", "its PSNR in bf16 is 47.9 dB, under 48"),
        (0.0, "fp32", "its PSNR in bf16 is 0.0 dB, under 48"),
        (None, "fp32", "its PSNR in bf16 is unknown until it is installed again"),
    ],
)
def test_style_that_bf16_does_not_suit_or_that_was_not_measured_is_painted_in_float32(
    psnr: float | None, precision: Precision, reason: str
) -> None:
    assert choose_for_style("auto", Choice("bf16", "fast"), psnr) == Choice(precision, reason)


def test_torch_without_onednn_has_no_use_for_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, avx512_bf16=True, amx=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bf16_instructions() == []
    assert choose_precision("auto", CPU).precision == "fp32"


@pytest.mark.skipif(not CPUINFO.exists(), reason="only Linux lists the processor's instructions so")
def test_instructions_are_those_that_the_kernel_lists() -> None:
    flags = set(CPUINFO.read_text().split())
    listed = {"AVX512-BF16": "avx512_bf16" in flags, "AMX": "amx_bf16" in flags}
    assert bf16_instructions() == [name for name, is_listed in listed.items() if is_listed]
