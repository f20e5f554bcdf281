from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared import ROOT

from serve_app.engine.checkpoints import load_generator
from serve_app.styles.catalogue import installed_styles

pytest.importorskip("cv2", reason="the extra `train` is not installed: scripts/setup train")

Train = Callable[..., None]
Steps = list[tuple[int, int]]

OPTIONS = ["--name", "tiny", "--device", "cpu", "--seed", "7", "--data", "mine, CC0"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from training import train

        yield train


@pytest.fixture
def steps(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The (height, width) of every training step taken."""
    taken: Steps = []
    learn = script.Trainer.learn

    def counted(self: object, photo: torch.Tensor, target: torch.Tensor) -> float:
        taken.append((photo.shape[2], photo.shape[3]))
        loss: float = learn(self, photo, target)
        return loss

    monkeypatch.setattr(script.Trainer, "learn", counted)
    return taken


def trainer_in(script: ModuleType, folder: Path) -> Train:
    """Runs the script on folder/photos, three pictures, into folder/run; later options override earlier ones."""
    for seed in range(3):
        save_photo(folder / "photos" / f"{seed}.png", seed)

    def run(*options: object) -> None:
        places = ["--photos", folder / "photos", "--out", folder / "run", "--stages", "32:2:3:1e-3"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["train", *OPTIONS, *map(str, [*places, *options])])
            script.main()

    return run


@pytest.fixture
def train(script: ModuleType, tmp_path: Path) -> Train:
    return trainer_in(script, tmp_path)


@pytest.fixture(scope="module")
def trained(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the script has run to its end."""
    folder = tmp_path_factory.mktemp("trained")
    trainer_in(script, folder)()
    return folder


def save_photo(path: Path, seed: int, size: tuple[int, int] = (64, 48), **options: object) -> None:
    """A picture of soft spots: the same seed gives the same motif at any size."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC).save(path, **options)


def progress_of(run: Path) -> dict[str, Any]:
    progress: dict[str, Any] = torch.load(run / "checkpoint.pt", weights_only=True)["progress"]
    return progress


def test_training_ends_with_a_style_that_paints(trained: Path) -> None:
    style = installed_styles(trained / "run")["tiny"]
    assert (style.title, style.resize, style.eps, style.licence) == ("Tiny", "tf", 1e-5, "MIT")
    assert style.path.stat().st_size < 5_000_000  # 16 bits a weight
    with torch.inference_mode():
        assert load_generator(style)(torch.zeros(1, 3, 16, 16)).isfinite().all()


def test_contact_sheet_shows_the_photographs_kept_from_training(trained: Path) -> None:
    with Image.open(trained / "run" / "contact-sheet.png") as sheet:
        assert sheet.size == (3 * 64, 48 + 4)  # photograph, teacher and student, of one photograph


def test_card_tells_how_the_style_was_trained(trained: Path) -> None:
    card = (trained / "run" / "tiny.md").read_text()
    assert card.startswith("# tiny\n")
    assert "scripts/train --photos photos --out runs/tiny --name tiny --seed 7 \\\n" in card
    assert "        --stages 32:2:3:0.001\n" in card
    assert "- Photographs: 2 for training, 12 crops of each in every stage; 1 for\n  validation." in card
    assert "Sources and licences: mine, CC0\n" in card
    assert "| 32 px | 2 | 3 | 0.001 |" in card
    (entry,) = progress_of(trained / "run")["validation"]
    assert (entry["side"], entry["step"]) == (32, 3)
    assert f"| 32 px, 3 | {entry['l1']} | {entry['ssim']} | {entry['crispness']} |" in card


def test_same_command_again_trains_no_further(script: ModuleType, trained: Path, steps: Steps) -> None:
    progress = progress_of(trained / "run")
    style = (trained / "run" / "tiny.safetensors").read_bytes()
    assert progress["stage"] == 1
    trainer_in(script, trained)()
    assert steps == []
    assert progress_of(trained / "run") == progress
    assert (trained / "run" / "tiny.safetensors").read_bytes() == style


def test_interrupted_training_goes_on_where_it_was_saved(
    train: Train, steps: Steps, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages = ["--stages", "32:2:2:1e-3,40:2:1:1e-3"]
    with monkeypatch.context() as patch:
        save = script.Trainer.save

        def interrupt_after_the_first_stage(self: object) -> None:
            save(self)
            if progress_of(tmp_path / "run")["stage"] == 1:
                raise KeyboardInterrupt

        patch.setattr(script.Trainer, "save", interrupt_after_the_first_stage)
        with pytest.raises(KeyboardInterrupt):
            train(*stages)
    assert steps == [(32, 32)] * 2
    assert not (tmp_path / "run" / "tiny.safetensors").exists()
    steps.clear()
    train(*stages)
    assert steps == [(40, 40)]
    assert (tmp_path / "run" / "tiny.safetensors").exists()


def test_near_copy_of_a_held_out_photograph_is_refused_before_training(
    train: Train, steps: Steps, tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    save_photo(held_out / "other.png", 98)
    save_photo(held_out / "same.jpg", 1, size=(200, 150), quality=60)
    with pytest.raises(SystemExit) as caught:
        train("--held-out", held_out)
    assert str(caught.value) == (
        f"{tmp_path / 'photos' / '1.png'} is a near copy of the held-out {held_out / 'same.jpg'}: "
        "take it out of the training folder"
    )
    assert steps == []


def test_other_held_out_photographs_are_no_obstacle(train: Train, steps: Steps, tmp_path: Path) -> None:
    for seed in (98, 99):
        save_photo(tmp_path / "held-out" / f"{seed}.png", seed)
    train("--held-out", tmp_path / "held-out")
    assert len(steps) == 3


def test_one_held_out_photograph_is_enough(train: Train, tmp_path: Path) -> None:
    save_photo(tmp_path / "held-out" / "same.png", 2)
    with pytest.raises(SystemExit, match="is a near copy of the held-out"):
        train("--held-out", tmp_path / "held-out")


def test_held_out_check_knows_a_turned_copy_and_tells_flat_pictures_apart(
    script: ModuleType, train: Train, tmp_path: Path
) -> None:
    for name, colour in (("photos/black.png", "black"), ("held-out/pink.png", "pink")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(tmp_path / name)
    train("--held-out", tmp_path / "held-out")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    with Image.open(tmp_path / "photos" / "1.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "held-out" / "turned.jpg", exif=exif)
    with pytest.raises(SystemExit, match="is a near copy of the held-out"):
        train("--held-out", tmp_path / "held-out")


def test_unusable_photographs_are_named_and_left_out(
    script: ModuleType, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "broken.jpg").write_bytes((photos / "1.png").read_bytes()[:200])
    (photos / "folder.jpg").mkdir()
    (photos / ".hidden.jpg").write_bytes(b"")
    save_photo(photos / "thin.png", 4, size=(900, 40))
    save_photo(photos / "tiny.png", 4, size=(20, 20))
    found = script.find_photos([photos, photos])
    assert [path.name for path in found] == ["0.png", "1.png", "2.png"]
    left_out = capsys.readouterr().out.splitlines()
    assert [Path(line.split(" is left out: ")[0]).name for line in left_out] == ["broken.jpg", "thin.png", "tiny.png"]


@pytest.mark.parametrize("change", [["--seed", "8"], ["--stages", "32:2:3:2e-3"]])
def test_resuming_another_training_is_refused(
    script: ModuleType, trained: Path, steps: Steps, change: list[str]
) -> None:
    with pytest.raises(SystemExit, match="is of another training"):
        trainer_in(script, trained)(*change)
    assert steps == []


@pytest.mark.parametrize(
    "stages", ["30:2:3:1e-3", "12:2:3:1e-3", "32:0:3:1e-3", "32:2:0:1e-3", "32:2:3:1e-3,32:1:1:1e-3"]
)
def test_stages_that_cannot_be_trained_are_refused(
    train: Train, steps: Steps, capsys: pytest.CaptureFixture[str], stages: str
) -> None:
    with pytest.raises(SystemExit):
        train("--stages", stages)
    assert "--stages: " in capsys.readouterr().err
    assert steps == []


def test_folder_without_photographs_is_refused(train: Train, tmp_path: Path) -> None:
    for photo in (tmp_path / "photos").iterdir():
        photo.rename(photo.with_suffix(".txt"))
    with pytest.raises(SystemExit) as caught:
        train()
    assert str(caught.value) == f"0 photographs in {tmp_path / 'photos'}: at least 2 needed"


def test_name_that_no_style_can_bear_is_refused_before_training(train: Train, steps: Steps) -> None:
    with pytest.raises(SystemExit):
        train("--name", "My Style")
    assert steps == []


@pytest.mark.parametrize("size", [(28, 40), (33, 47), (8, 8)])
def test_teacher_keeps_shape_and_type_and_paints_the_same_twice(script: ModuleType, size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    before = photo.copy()
    painted = script.teach(photo)
    assert painted.shape == photo.shape
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, script.teach(photo))
    assert not np.array_equal(painted, photo)
    assert np.array_equal(photo, before)


def test_teacher_tells_no_more_than_the_student_can_see() -> None:
    """The student's first norm makes a photograph and the same at half the contrast about mid-grey one."""
    teacher = pytest.importorskip("training.teacher")
    bold = 127.5 + 100 * np.random.default_rng(0).uniform(-1, 1, (32, 32, 3))
    pale = 127.5 + (bold - 127.5) / 2
    taught = [teacher.expose(photo.astype(np.float32)) for photo in (bold, pale)]
    assert np.abs(taught[0] - taught[1]).max() < 1e-5


def test_student_starts_as_a_near_copy_of_its_photograph(script: ModuleType) -> None:
    torch.manual_seed(0)
    spots = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    photo = np.asarray(Image.fromarray(spots).resize((128, 96), Image.Resampling.BICUBIC))
    copy = script.carry_picture(script.Generator("tf"))
    with torch.inference_mode():
        tensor = script.to_tensor([photo])
        painted = copy(tensor)
    likeness = torch.corrcoef(torch.stack([tensor.flatten(), painted.flatten()]))[0, 1]
    assert likeness > 0.95


def test_crops_are_whole_and_of_one_size(script: ModuleType) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 333, 3), np.uint8))
    crops = list(script.cut(photo, 64, 12, script.random.Random(0)))
    assert [crop.shape for crop in crops] == [(64, 64, 3)] * 12
    assert len({crop.tobytes() for crop in crops}) == len(crops)


def test_likeness_of_a_picture_with_itself_and_with_a_blurred_one() -> None:
    from training.likeness import compare

    sharp = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert compare(sharp, sharp) == pytest.approx({"l1": 0, "ssim": 1, "crispness": 1}, abs=1e-5)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    marks = compare(blurred, sharp)
    assert marks["l1"] > 0.1
    assert marks["ssim"] < 0.8
    assert marks["crispness"] < 0.5


def test_ssim_agrees_with_the_definition_on_one_window() -> None:
    from training.likeness import ssim

    x, y = (np.random.default_rng(seed).uniform(-1, 1, (11, 11)) for seed in (0, 1))
    window = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(window, window) / window.sum() ** 2
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    variances = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
    expected = (2 * mean_x * mean_y + 4e-4) * (2 * covariance + 36e-4)
    expected /= (mean_x**2 + mean_y**2 + 4e-4) * (variances + 36e-4)
    pictures = [torch.from_numpy(plane).float().expand(1, 3, 11, 11) for plane in (x, y)]
    assert ssim(*pictures).item() == pytest.approx(expected, abs=1e-5)


def test_judge_measures_an_installed_style_and_draws_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import judge

    places = ["--photos", trained / "photos", "--styles-dir", trained / "run", "--sheet", tmp_path / "sheet.jpg"]
    monkeypatch.setattr("sys.argv", ["judge", "tiny", *map(str, places), "--side", "48"])
    judge.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["photograph", "---", "0", "1", "2", "mean of 3"]
    marks = np.array([[float(mark) for mark in line.split("|")[2:-1]] for line in lines[2:]])
    assert np.allclose(marks[:3].mean(axis=0), marks[3], atol=1e-3)
    assert (marks[:, 1] < 1).all()
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (3 * 48, 3 * (36 + 4))
