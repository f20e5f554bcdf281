"""The generator against the reference implementation, and a real checkpoint against its reference images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from painting import paint_all
from PIL import Image
from pydantic import TypeAdapter
from seeding import seeded_generator
from shared import SHARED, needs_shared

from serve_app.engine.checkpoints import load_generator, read_checkpoint, save_style
from serve_app.engine.generator import Generator
from serve_app.engine.streaming import Frames, StripGenerator
from serve_app.engine.stylist import Stylist
from serve_app.frames import ResizeMode
from serve_app.settings import Settings
from serve_app.styles.catalogue import Style, installed_styles

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def mode_of(path: Path) -> ResizeMode:
    """The resize mode that a golden file's name begins with."""
    return TypeAdapter[ResizeMode](ResizeMode).validate_python(path.name.split("_")[0])


def to_input(photo: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(photo.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_golden_data_is_there() -> None:
    assert {mode_of(path) for path in GOLDEN} == {"align", "half", "tf"}


def test_generator_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in Generator().parameters()) == 2_143_552


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@torch.inference_mode()
def test_generator_equals_reference(path: Path) -> None:
    golden = np.load(path)
    painted = seeded_generator(mode_of(path))(to_input(golden["photo"])).numpy()
    assert np.abs(painted - golden["painted"]).max() <= 1e-4


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_strips_equal_reference(path: Path) -> None:
    golden = np.load(path)
    mode = mode_of(path)
    photo = torch.from_numpy(golden["photo"].copy())
    painted = np.full(golden["painted"].shape, np.nan, np.float32)

    def sink(at: int, strip: torch.Tensor) -> None:
        painted[:, :, at : at + strip.shape[1]] = strip.permute(0, 3, 1, 2).numpy()

    StripGenerator(seeded_generator(mode), mode).run(Frames(photo), photo, 8, sink)
    assert np.abs(painted - golden["painted"]).max() <= 1e-4


@torch.inference_mode()
def test_batch_equals_its_single_runs() -> None:
    generator = seeded_generator("align")
    photos = to_input(np.load(Path(__file__).parent / "golden" / "align_batch2_40x48.npz")["photo"])
    batch = generator(photos)
    singles = torch.cat([generator(photo[None]) for photo in photos])
    assert (batch - singles).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def hayao(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a styles folder with the real checkpoint, imported."""
    folder = tmp_path_factory.mktemp("styles")
    checkpoint = SHARED / "weights" / "hayao_99.pt"
    style = Style(
        name="hayao", title="Hayao", resize="tf", eps=1e-12, licence="non-commercial", source="test", credit="test"
    )
    save_style(read_checkpoint(checkpoint.read_bytes(), checkpoint.name), style, folder / "hayao.safetensors")
    return folder


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["portrait", "street"])
def test_real_checkpoint_paints_its_reference_image(hayao: Path, name: str) -> None:
    photo = np.asarray(Image.open(SHARED / "golden" / f"hayao_99_{name}_photo.png").convert("RGB"))
    reference = np.asarray(Image.open(SHARED / "golden" / f"hayao_99_{name}_painted.png").convert("RGB"))
    styles = {"hayao": installed_styles(hayao)["hayao"]}
    (painted,) = paint_all(Stylist(styles, Settings(device="cpu", threads="host")), "hayao", [photo])
    assert isinstance(painted, np.ndarray)
    assert np.abs(painted.astype(float) - reference).mean() <= 1.0


@pytest.mark.slow
@needs_shared
def test_other_resize_mode_misses_the_reference_image(hayao: Path) -> None:
    """The test above does distinguish the modes."""
    photo = np.asarray(Image.open(SHARED / "golden" / "hayao_99_portrait_photo.png").convert("RGB"))[:256, :256]
    style = installed_styles(hayao)["hayao"]
    right, wrong = (
        load_generator(style.model_copy(update={"resize": mode}))(to_input(photo[None])).detach()
        for mode in ("tf", "align")
    )
    assert (right - wrong).abs().mean() * 127.5 > 1.0
