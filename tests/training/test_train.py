from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from serve_app.engine.checkpoints import load_generator
from serve_app.engine.fidelity import measure_psnr
from serve_app.engine.thumbnails import thumbnail_of
from serve_app.styles.catalogue import installed_styles

pytest.importorskip("torchvision", reason="the extra `train` is not installed: scripts/setup train")

from training import compare, judge, train
from training.photographs import find_photos
from training.teachers.recipes import RECIPES

Train = Callable[..., None]

pytestmark = pytest.mark.usefixtures("small_photograph")

OPTIONS = ["toon", "--name", "tiny", "--device", "cpu", "--seed", "7", "--data", "mine, CC0", "--stages", "32:2:3:1e-3"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The photographs of each training step that was taken."""
    photos: list[Tensor] = []
    train_step = train.Trainer.train_step

    def recorded(self: train.Trainer, photo: Tensor, target: Tensor, decay: float) -> float:
        photos.append(photo)
        return train_step(self, photo, target, decay)

    monkeypatch.setattr(train.Trainer, "train_step", recorded)
    return photos


def run_in(folder: Path) -> Train:
    """Returns a function that trains on folder/photos, three images; later options override earlier ones."""
    for seed in range(3):
        save_photo(folder / "photos" / f"{seed}.png", seed)

    def run(*options: object) -> None:
        train.main([*OPTIONS, *map(str, ["--photos", folder / "photos", "--out", folder / "run", *options])])

    return run


@pytest.fixture
def run(tmp_path: Path) -> Train:
    return run_in(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_photograph: None) -> Path:
    """A folder in which a training has ended."""
    folder = tmp_path_factory.mktemp("trained")
    run_in(folder)()
    return folder


def save_photo(path: Path, seed: int, size: tuple[int, int] = (64, 48), quality: int = 75) -> None:
    """Saves an image of soft spots: the same seed gives the same motif at any size."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC).save(path, quality=quality)


def progress_of(folder: Path) -> dict[str, Any]:
    progress: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)["progress"]
    return progress


def are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_training_ends_with_a_style_that_paints(trained: Path) -> None:
    style = installed_styles(trained / "run")["tiny"]
    assert (style.title, style.resize, style.eps, style.licence) == ("Tiny", "tf", 1e-5, "MIT")
    assert style.path.stat().st_size < 5_000_000  # 16 bits a weight
    with torch.inference_mode():
        assert load_generator(style)(torch.zeros(1, 3, 16, 16)).isfinite().all()


def test_thumbnail_lies_beside_the_style(trained: Path) -> None:
    thumbnail = installed_styles(trained / "run")["tiny"].thumbnail
    assert thumbnail == (trained / "run" / "tiny.webp").read_bytes() != b""


def test_contact_sheet_shows_the_validation_photographs(trained: Path) -> None:
    with Image.open(trained / "run" / "contact-sheet.png") as sheet:
        assert sheet.size == (3 * 64, 48 + 4)  # photograph, teacher and student, of one photograph


def test_card_states_how_the_style_was_trained(trained: Path) -> None:
    card = (trained / "run" / "tiny.md").read_text()
    assert card.startswith("# tiny\n")
    assert "scripts/train toon --photos photos --out runs/tiny --name tiny \\\n" in card
    assert "        --seed 7 --stages 32:2:3:0.001\n" in card
    assert "- Photographs: 2 for training, 12 crops of each in every stage;\n  1 for validation." in card
    assert "Sources and licences: mine, CC0\n" in card
    assert "| 32 px | 2 | 3 | 0.001 |" in card
    (entry,) = progress_of(trained / "run")["validation"]
    assert (entry["side"], entry["step"]) == (32, 3)
    assert f"| 32 px, 3 | {entry['l1']} | {entry['ssim']} | {entry['crispness']} |" in card


def test_style_and_card_carry_the_figure_of_its_paintings_in_bf16(trained: Path) -> None:
    style = installed_styles(trained / "run")["tiny"]
    assert style.psnr_bf16 == measure_psnr(load_generator(style).state_dict(), style)
    assert f"- PSNR in bf16 to float32: {style.psnr_bf16} dB.\n" in (trained / "run" / "tiny.md").read_text()


def test_same_command_again_trains_no_further(trained: Path, seen: list[Tensor]) -> None:
    progress = progress_of(trained / "run")
    style = (trained / "run" / "tiny.safetensors").read_bytes()
    assert progress["stage"] == 1
    run_in(trained)()
    assert seen == []
    assert progress_of(trained / "run") == progress
    assert (trained / "run" / "tiny.safetensors").read_bytes() == style


@pytest.mark.slow
def test_same_seed_gives_the_same_crops_and_another_seed_others(run: Train, seen: list[Tensor], tmp_path: Path) -> None:
    crops = []
    for folder, seed in (("one", 7), ("two", 7), ("three", 8)):
        torch.rand(5)  # what was drawn before has no influence
        run("--out", tmp_path / folder, "--seed", seed)
        crops.append(seen.copy())
        seen.clear()
    assert are_equal(crops[0], crops[1])
    assert not are_equal(crops[0], crops[2])


@pytest.mark.slow
def test_interrupted_training_goes_on_where_it_was_saved(
    run: Train, seen: list[Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages = ["--stages", "32:2:2:1e-3,40:2:1:1e-3"]
    with monkeypatch.context() as patch:
        save = train.Trainer.save

        def interrupt_after_the_first_stage(self: train.Trainer) -> None:
            save(self)
            if progress_of(tmp_path / "run")["stage"] == 1:
                raise KeyboardInterrupt

        patch.setattr(train.Trainer, "save", interrupt_after_the_first_stage)
        with pytest.raises(KeyboardInterrupt):
            run(*stages)
    assert [photo.shape[2:] for photo in seen] == [(32, 32)] * 2
    assert not (tmp_path / "run" / "tiny.safetensors").exists()
    run(*stages)
    assert [photo.shape[2:] for photo in seen[2:]] == [(40, 40)]
    assert (tmp_path / "run" / "tiny.safetensors").exists()
    interrupted = seen.copy()
    seen.clear()
    run(*stages, "--out", tmp_path / "uninterrupted")
    assert are_equal(interrupted, seen)


@pytest.mark.slow
def test_stage_that_goes_on_draws_other_crops_than_before(
    run: Train, seen: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "VALIDATION_INTERVAL", 1)
    with monkeypatch.context() as patch:
        save = train.Trainer.save

        def interrupt(self: train.Trainer) -> None:
            save(self)
            raise KeyboardInterrupt

        patch.setattr(train.Trainer, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])


def test_near_copy_of_a_held_out_photograph_is_refused_before_training(
    run: Train, seen: list[Tensor], tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    save_photo(held_out / "other.png", 98)
    save_photo(held_out / "same.jpg", 1, size=(200, 150), quality=60)
    with pytest.raises(SystemExit) as caught:
        run("--held-out", held_out)
    assert str(caught.value) == (
        f"{tmp_path / 'photos' / '1.png'} is a near copy of the held-out {held_out / 'same.jpg'}: "
        "take it out of the training folder"
    )
    assert seen == []


def test_other_held_out_photographs_are_no_obstacle(run: Train, seen: list[Tensor], tmp_path: Path) -> None:
    for seed in (98, 99):
        save_photo(tmp_path / "held-out" / f"{seed}.png", seed)
    run("--held-out", tmp_path / "held-out")
    assert len(seen) == 3


def test_one_held_out_photograph_is_enough(run: Train, tmp_path: Path) -> None:
    save_photo(tmp_path / "held-out" / "same.png", 2)
    with pytest.raises(SystemExit, match="is a near copy of the held-out"):
        run("--held-out", tmp_path / "held-out")


def test_held_out_check_recognises_a_turned_copy_and_distinguishes_plain_images(run: Train, tmp_path: Path) -> None:
    for name, colour in (("photos/black.png", "black"), ("held-out/pink.png", "pink")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(tmp_path / name)
    run("--held-out", tmp_path / "held-out")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    with Image.open(tmp_path / "photos" / "1.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "held-out" / "turned.jpg", exif=exif)
    with pytest.raises(SystemExit, match="is a near copy of the held-out"):
        run("--held-out", tmp_path / "held-out")


def test_unusable_photographs_are_named_and_left_out(
    run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "broken.jpg").write_bytes((photos / "1.png").read_bytes()[:200])
    (photos / "folder.jpg").mkdir()
    (photos / ".hidden.jpg").write_bytes(b"")
    save_photo(photos / "thin.png", 4, size=(900, 40))
    save_photo(photos / "tiny.png", 4, size=(20, 20))
    found = find_photos([photos, photos])
    assert [path.name for path in found] == ["0.png", "1.png", "2.png"]
    left_out = capsys.readouterr().out.splitlines()
    assert [Path(line.split(" is left out: ")[0]).name for line in left_out] == ["broken.jpg", "thin.png", "tiny.png"]


@pytest.mark.parametrize("change", [["--seed", "8"], ["--stages", "32:2:3:2e-3"], ["--start", "toon"]])
def test_resuming_another_training_is_refused(trained: Path, seen: list[Tensor], change: list[str]) -> None:
    with pytest.raises(SystemExit, match="is of another training"):
        run_in(trained)(*change)
    assert seen == []


@pytest.mark.parametrize(
    "stages", ["30:2:3:1e-3", "12:2:3:1e-3", "32:0:3:1e-3", "32:2:0:1e-3", "32:2:3:1e-3,32:1:1:1e-3"]
)
def test_stages_that_cannot_be_trained_are_refused(
    run: Train, seen: list[Tensor], capsys: pytest.CaptureFixture[str], stages: str
) -> None:
    with pytest.raises(SystemExit):
        run("--stages", stages)
    assert "--stages: " in capsys.readouterr().err
    assert seen == []


def test_folder_without_photographs_is_refused(run: Train, tmp_path: Path) -> None:
    for photo in (tmp_path / "photos").iterdir():
        photo.rename(photo.with_suffix(".txt"))
    with pytest.raises(SystemExit) as caught:
        run()
    assert str(caught.value) == f"0 photographs in {tmp_path / 'photos'}: at least 2 needed"


def test_style_is_named_after_its_recipe(run: Train, tmp_path: Path) -> None:
    train.main(["ink", *OPTIONS[3:], "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "run")])
    style = installed_styles(tmp_path / "run")["ink"]
    assert (style.title, style.summary) == (RECIPES["ink"].title, RECIPES["ink"].summary)


def test_training_can_start_from_an_installed_style(run: Train, tmp_path: Path) -> None:
    run("--start", "toon", "--stages", "32:2:1:1e-9")
    card = (tmp_path / "run" / "tiny.md").read_text()
    assert "--name tiny --start toon \\\n" in card
    start, trained = (
        load_generator(installed_styles(tmp_path / "run")[name]).state_dict() for name in ("toon", "tiny")
    )
    assert all(torch.allclose(start[key], trained[key], atol=1e-3) for key in start)


def test_average_of_weights_forgets_the_start_soon_and_the_last_steps_slowly(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    decays: list[float] = []
    ema_decay = train.ema_decay

    def recorded(step: int) -> float:
        decays.append(ema_decay(step))
        return decays[-1]

    monkeypatch.setattr(train, "ema_decay", recorded)
    run("--stages", "32:2:2:1e-3,16:2:3:1e-3")
    assert [round(decay, 2) for decay in decays] == [0.1, 0.18, 0.25, 0.31, 0.36]
    assert ema_decay(10**6) == 0.995


def test_thumbnail_is_that_of_the_weights_as_written(run: Train, tmp_path: Path) -> None:
    run("--stages", "32:2:1:1e-3")
    style = installed_styles(tmp_path / "run")["tiny"]
    assert thumbnail_of(load_generator(style).state_dict(), style) == style.thumbnail


def test_start_that_is_not_installed_is_refused(run: Train, seen: list[Tensor]) -> None:
    with pytest.raises(SystemExit, match="no installed style nowhere"):
        run("--start", "nowhere")
    assert seen == []


def test_name_that_no_style_can_bear_is_refused_before_training(run: Train, seen: list[Tensor]) -> None:
    with pytest.raises(SystemExit):
        run("--name", "My Style")
    assert seen == []


def test_help_mentions_how_to_judge_a_style(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    assert "scripts/train judge STYLE" in capsys.readouterr().out


def test_judge_measures_an_installed_style_and_draws_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--photos", trained / "photos", "--styles-dir", trained / "run", "--sheet", tmp_path / "sheet.jpg"]
    judge.main(["tiny", "--recipe", "toon", *map(str, places), "--side", "48"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["photograph", "---", "0", "1", "2", "mean of 3"]
    values = np.array([[float(value) for value in line.split("|")[2:-1]] for line in lines[2:]])
    assert np.allclose(values[:3].mean(axis=0), values[3], atol=1e-3)
    assert (values[:, 1] < 1).all()
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (3 * 48, 3 * (36 + 4))


def test_judge_needs_a_recipe_for_a_style_of_another_name(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        judge.main(["tiny", "--photos", str(trained / "photos"), "--styles-dir", str(trained / "run")])
    assert "choose one with --recipe" in capsys.readouterr().err


def test_styles_are_compared_in_a_table_and_a_sheet(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--photos", trained / "photos", "--styles-dir", trained / "run", "--sheet", tmp_path / "sheet.jpg"]
    compare.main(["tiny", "toon", *map(str, places), "--side", "48"])
    head, _, photograph, tiny = capsys.readouterr().out.splitlines()
    assert head == "| | tiny | toon |"
    assert all(0 < float(cell) < 1 for cell in photograph.split("|")[2:4])
    first, second = tiny.split("|")[2:4]
    assert first.strip() == ""
    assert float(second) > 0
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (3 * 48, 3 * (36 + 4))
