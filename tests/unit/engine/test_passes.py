"""The passes between convolutions: torch's and the compiled ones do the same, in bfloat16 rounded once."""

import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeding import seeded_generator
from torch import Tensor

from serve_app.engine import passes as module
from serve_app.engine.passes import CompiledPasses, Passes, TorchPasses, choose_passes
from serve_app.engine.streaming import StripGenerator

BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture(params=["torch", "compiled"])
def passes(request: pytest.FixtureRequest) -> Passes:
    if request.param == "torch":
        return TorchPasses()
    compiled = choose_passes("cpu", BF16, BF16)
    assert isinstance(compiled, CompiledPasses)
    return compiled


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads share a pass, however small it is."""
    monkeypatch.setattr(module, "VALUES_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return int(request.param)


def expected(plane: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(plane.double() * scale.double() + shift.double(), slope)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(
    ("batch", "rows", "width", "channels"), [(1, 5, 7, 32), (2, 4, 3, 5), (3, 1, 1, 3), (1, 0, 4, 8)]
)
@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_rows_are_normalised_and_activated(
    passes: Passes, threads: int, dtype: torch.dtype, batch: int, rows: int, width: int, channels: int, slope: float
) -> None:
    torch.manual_seed(rows)
    whole = torch.randn(batch, rows + 3, width, channels).to(BF16)
    plane = whole[:, 1 : 1 + rows]
    target = torch.full((batch, 2 * rows + 2, 2 * width + 3, channels), 7, dtype=dtype)
    scale, shift = torch.randn(2, batch, 1, 1, channels)
    passes.normalise(plane, target[:, 2::2, 3::2], scale, shift, slope)
    exact = expected(plane, scale, shift, slope)
    made = target[:, 2::2, 3::2].double()
    # Half a unit of bfloat16's last place for one rounding; float32's own errors beside it.
    unit = 2.0**-8 if dtype == BF16 else 2.0**-22
    assert ((made - exact).abs() <= unit * exact.abs() + 2e-6).all()
    target[:, 2::2, 3::2] = 7
    assert (target == 7).all(), "it wrote beside the rows"


def test_rounding_is_to_even(passes: Passes) -> None:
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 2**-130, 3.4e38, -0.0], dtype=torch.float32)
    rows = torch.empty(1, 1, 1, len(halves), dtype=BF16)
    ones = torch.ones_like(rows)
    passes.normalise(ones, rows, torch.zeros(1, 1, 1, len(halves)), halves.view(1, 1, 1, -1), 1)
    assert torch.equal(rows.flatten(), halves.to(BF16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_visible(passes: Passes, value: float) -> None:
    plane = torch.full((1, 1, 2, 16), value, dtype=BF16)
    rows = torch.zeros_like(plane)
    passes.normalise(plane, rows, torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16), 0.2)
    np.testing.assert_array_equal(rows.float().numpy(), np.full((1, 1, 2, 16), value))


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 33, 40, 32), (3, 1, 1, 1)])
def test_sums_are_those_of_each_image(passes: Passes, threads: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(shape[1])
    plane = (torch.randn(shape) + 0.5).to(BF16)
    sums = passes.sums(plane)
    exact = plane.double().flatten(1)
    assert (sums.dtype, sums.shape) == (torch.float64, (2, shape[0]))
    torch.testing.assert_close(sums, torch.stack([exact.sum(1), exact.square().sum(1)]), rtol=2e-5, atol=2e-3)


def test_a_picture_is_as_good_with_compiled_passes() -> None:
    frames = torch.randint(0, 256, (2, 40, 52, 3), dtype=torch.uint8)
    generator = seeded_generator("tf")
    exact = StripGenerator(generator, "tf").paint(frames, 8).double()
    errors = []
    for passes in (TorchPasses(), choose_passes("cpu", BF16, BF16)):
        model = StripGenerator(generator, "tf", BF16, BF16, is_emulated=True, passes=passes)
        errors.append(float((model.paint(frames, 8) - exact).square().mean()))
    assert errors[0] != errors[1], "it painted with the same passes twice"
    assert errors[1] <= 1.25 * errors[0]


def test_compiled_passes_are_for_bfloat16_on_a_cpu() -> None:
    kinds = itertools.product(["cpu", "cuda"], [F32, torch.float16, BF16], [F32, torch.float16, BF16])
    chosen = {kind for kind in kinds if isinstance(choose_passes(*kind), CompiledPasses)}
    assert chosen == {("cpu", BF16, BF16)}


def test_without_numba_torch_makes_the_passes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "serve_app.engine.kernels", raising=False)
    choose_passes.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert isinstance(choose_passes("cpu", BF16, BF16), TorchPasses)
    finally:
        choose_passes.cache_clear()
    assert "numba" in caplog.text
