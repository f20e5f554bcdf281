"""Trains the generator on a folder of photographs to paint like a teacher.

    scripts/train cel --photos DIR [--photos DIR] --out runs/cel

The first argument is a recipe of `teachers/recipes.py`. The generator has no skip connection. It starts as a near copy
of its photograph (see `head_start.py`), or as another style, and is trained on random crops at random scales, small
crops first. The teacher paints each crop by itself, since the student's GroupNorm sees no more of the photograph. You
can stop at any time; the same command continues from the last checkpoint. At the end it writes the style (16-bit
safetensors), its thumbnail and its model card.

To measure a style against the teacher: scripts/train judge STYLE --photos DIR (see scripts/train judge --help).
"""

import argparse
import copy
import platform
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from serve_app.engine.checkpoints import load_generator
from serve_app.engine.fidelity import with_psnr
from serve_app.engine.generator import Generator
from serve_app.engine.precision import bf16_instructions
from serve_app.engine.thumbnails import save_with_thumbnail
from serve_app.frames import ResizeMode
from serve_app.styles.catalogue import Style, installed_styles
from training.dataset import CROPS_PER_PHOTO, VALIDATION_SIDE, PaintedPhoto, batches, training_set, validation_set
from training.head_start import initialise_as_copy
from training.likeness import painting_loss, scores
from training.photographs import contact_sheet, find_photos, open_photo, to_batch, to_frame
from training.teachers.recipes import RECIPES, Recipe

VALIDATION_INTERVAL = 100  # steps
EMA_DECAY = 0.995  # of the exponential moving average of the weights, after some 2000 steps
# `align` stretches the image by some 3 pixels across its width, and the student cannot know where in the image it is:
# its contours become soft or doubled. `tf` leaves every pixel in its place.
RESIZE_MODE: ResizeMode = "tf"


@dataclass(frozen=True)
class Stage:
    """A part of the training with crops of one size."""

    side: int  # of the square crops, in pixels
    batch: int
    steps: int
    learning_rate: float


STAGES = [Stage(128, 2, 1600, 8e-4), Stage(256, 1, 400, 4e-4)]  # many small batches teach more than few large ones


@dataclass
class Progress:
    """What a checkpoint holds besides weights: enough to continue, and to write the card."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    finished: str = ""
    validation: list[dict[str, float]] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a style and writes it; arguments default to the command line's."""
    options = parse_options(arguments)
    style = new_style(options.name, RECIPES[options.recipe])
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    photos = find_photos(options.photos)
    refuse_held_out(photos, options.held_out)
    validation, training = photos[::12], [p for i, p in enumerate(photos) if i % 12]
    trainer = Trainer(options, training, validation)
    trainer.train()
    trainer.export(style, options.out / f"{options.name}.safetensors")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of `scripts/train`."""
    parser = argparse.ArgumentParser(
        "scripts/train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=RECIPES, help="of the teacher: one of %(choices)s", metavar="recipe")
    parser.add_argument("--photos", type=Path, action="append", required=True, help="folder of photographs")
    parser.add_argument(
        "--held-out",
        type=Path,
        help="folder of photographs to judge by: refuses to train on any of them, or on a near copy",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, contact sheet, style and card")
    parser.add_argument("--name", help="name of the style; default: the recipe's")
    parser.add_argument("--start", metavar="STYLE", help="an installed style to start from, instead of a near copy")
    parser.add_argument("--stages", type=parse_stages, default=STAGES, help="side:batch:steps:learning_rate,...")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and batches (%(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="a device of torch (%(default)s)"
    )
    parser.add_argument("--data", default="not stated", help="sources and licences of the photographs, for the card")
    parser.add_argument(
        "--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of convolutions (%(default)s)"
    )
    options = parser.parse_args(arguments)
    options.name = options.name or options.recipe
    return options


def new_style(name: str, recipe: Recipe) -> Style:
    """Returns the style to be trained; made before the training, so that a bad name does not cost hours."""
    try:
        return Style(
            name=name,
            title=recipe.title if RECIPES.get(name) is recipe else name.capitalize(),
            summary=recipe.summary,
            resize=RESIZE_MODE,
            eps=1e-5,
            licence="MIT",
            source="trained by scripts/train",
            credit="the animegan-serve authors",
        )
    except ValidationError as error:
        raise SystemExit(f"--name: {error.errors()[0]['msg']}") from None


def parse_stages(text: str) -> list[Stage]:
    """Returns the stages of a text such as `128:8:450:8e-4,256:2:850:6e-4`."""
    stages = []
    for part in text.split(","):
        side, batch, steps, rate = part.split(":")
        stages.append(Stage(int(side), int(batch), int(steps), float(rate)))
    if any(s.side % 4 or s.side < 16 or s.batch < 1 or s.steps < 1 or s.learning_rate <= 0 for s in stages):
        raise argparse.ArgumentTypeError("sides must be multiples of 4, at least 16; the other numbers positive")
    if len({stage.side for stage in stages}) < len(stages):
        raise argparse.ArgumentTypeError("each stage needs a different side")
    return stages


def refuse_held_out(photos: list[Path], held_out: Path | None) -> None:
    """Exits if a photograph is also in the folder `held_out`, though resized or recompressed.

    Two photographs count as the same where their difference hashes differ in at most 10 of 256 bits and their
    thumbnails have similar colours.
    """
    if held_out is None:
        return
    forbidden = {path: fingerprint(path) for path in find_photos([held_out], least=1)}
    for photo in photos:
        own = fingerprint(photo)
        for path, other in forbidden.items():
            if np.count_nonzero(own[0] != other[0]) <= 10 and np.abs(own[1] - other[1]).mean() < 24:
                raise SystemExit(f"{photo} is a near copy of the held-out {path}: take it out of the training folder")


def fingerprint(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    """Returns the difference hash, (16, 16), and a thumbnail, (16, 17, 3), since all plain images have one hash."""
    thumbnail = open_photo(path).resize((17, 16), Image.Resampling.BOX)
    grey = np.asarray(thumbnail.convert("L"), np.int16)
    return grey[:, 1:] > grey[:, :-1], np.asarray(thumbnail, np.int16)


class Trainer:
    """Trains a student in stages and saves a checkpoint after each validation; continues from one if it exists."""

    def __init__(self, options: argparse.Namespace, training: list[Path], validation: list[Path]) -> None:
        self.options, self.training, self.validation = options, training, validation
        self.device = torch.device(options.device)
        self.bf16 = runs_bf16(self.device) if options.precision == "auto" else options.precision == "bf16"
        self.teacher = RECIPES[options.recipe].teacher
        student = load_start(options.start) if options.start else initialise_as_copy(Generator(RESIZE_MODE))
        # oneDNN differentiates float32 convolutions faster without channels last (0.6 of the time on AVX2)
        self.layout = torch.channels_last if self.bf16 or self.device.type == "cuda" else torch.contiguous_format
        self.student = student.to(self.device).to(memory_format=self.layout)
        self.average = copy.deepcopy(self.student)
        self.progress = Progress()
        self.checkpoint = options.out / "checkpoint.pt"
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3, betas=(0.9, 0.99))
        if self.checkpoint.exists():
            self.resume()

    def train(self) -> None:
        """Runs the stages that are left."""
        validation = validation_set(self.validation, self.teacher)
        while self.progress.stage < len(self.options.stages):
            self.train_stage(self.options.stages[self.progress.stage], validation)
            self.progress.stage, self.progress.step = self.progress.stage + 1, 0
            self.progress.finished = date.today().isoformat()
            self.save()

    def train_stage(self, stage: Stage, validation: list[PaintedPhoto]) -> None:
        """Runs the steps of a stage that are left, on crops that follow from the seed, the stage and the first step."""
        torch.manual_seed(zlib.crc32(f"{self.options.seed}/{stage.side}/{self.progress.step}".encode()))
        crops = training_set(self.training, self.teacher, stage.side, stage.steps * stage.batch)
        steps = range(self.progress.step, stage.steps)
        before = sum(earlier.steps for earlier in self.options.stages[: self.progress.stage])
        began = time.monotonic()
        bar = tqdm(
            zip(steps, batches(crops, stage.batch, len(steps)), strict=True),
            desc=f"{stage.side} px",
            initial=self.progress.step,
            total=stage.steps,
            mininterval=5,
        )
        for step, (photo, target) in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.learning_rate * one_cycle(step / stage.steps)
            loss = self.train_step(photo, target, ema_decay(before + step))
            bar.set_postfix(loss=f"{loss:.4f}")
            if (step + 1) % VALIDATION_INTERVAL == 0 or step + 1 == stage.steps:
                self.progress.seconds += time.monotonic() - began
                began = time.monotonic()
                self.progress.step = step + 1
                self.validate(stage, validation)
                self.save()

    def train_step(self, photo: Tensor, target: Tensor, decay: float) -> float:
        """Updates the student and the average of its weights on one batch; returns the loss."""
        photo, target = (t.to(self.device, memory_format=self.layout) for t in (photo, target))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            painted = self.student(photo)
        loss = painting_loss(painted.float(), target)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return loss.item()

    @torch.inference_mode()
    def validate(self, stage: Stage, validation: list[PaintedPhoto]) -> None:
        """Records the mean scores on the validation set, and draws it as a contact sheet."""
        results, rows = [], []
        for photo, target in validation:
            painted = self.average(to_batch([photo]).to(self.device)).cpu()
            results.append(scores(painted, to_batch([target])))
            rows.append(np.hstack([photo, target, to_frame(painted[0])]))
        mean = {name: round(float(np.mean([result[name] for result in results])), 4) for name in results[0]}
        self.progress.validation.append({"side": stage.side, "step": self.progress.step, **mean})
        tqdm.write(f"{stage.side} px, step {self.progress.step}: validation {mean}")
        Image.fromarray(contact_sheet(rows)).save(self.options.out / "contact-sheet.png")

    def save(self) -> None:
        """Replaces the checkpoint."""
        state = {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "plan": self.plan(),
        }
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Loads the checkpoint; exits if it belongs to another training."""
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["plan"] != self.plan():
            raise SystemExit(
                f"{self.checkpoint} is of another training (its recipe, start, photographs, stages or seed differ): "
                "choose another folder with --out"
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def plan(self) -> dict[str, object]:
        """Returns what must not change when a stopped training is continued."""
        return {
            "recipe": self.options.recipe,
            "start": self.options.start,
            "stages": [astuple(stage) for stage in self.options.stages],
            "seed": self.options.seed,
            "photos": [[path.name for path in paths] for paths in (self.training, self.validation)],
        }

    def export(self, style: Style, path: Path) -> None:
        """Measures the averaged weights in bf16, and writes them as a style, with its thumbnail and its model card.

        Both are of the weights as they are written, in 16 bits: of some channels, whose scale a norm behind them takes
        away, these are so small that rounding changes the painting.
        """
        weights = {key: weight.half().float() for key, weight in self.average.state_dict().items()}
        style = with_psnr(weights, style)
        save_with_thumbnail(weights, style, path, dtype=torch.float16)
        path.with_suffix(".md").write_text(self.card(style))
        print(f"wrote {path}, its thumbnail and its card")

    def card(self, style: Style) -> str:
        """Returns the model card in Markdown."""
        stages = "\n".join(f"| {s.side} px | {s.batch} | {s.steps} | {s.learning_rate} |" for s in self.options.stages)
        results = "\n".join(
            f"| {entry['side']} px, {entry['step']} | {entry['l1']} | {entry['ssim']} | {entry['crispness']} |"
            for entry in self.progress.validation
        )
        folders = " ".join(f"--photos {folder.name}" for folder in self.options.photos)
        start = f" --start {self.options.start}" if self.options.start else ""
        plan = ",".join(f"{s.side}:{s.batch}:{s.steps}:{s.learning_rate}" for s in self.options.stages)
        return f"""# {self.options.name}

The AnimeGANv2 generator (2,143,552 parameters, `{RESIZE_MODE}`, eps 1e-5), trained to imitate the classical teacher
`{self.options.recipe}` of `scripts/training/teachers/recipes.py`. Trained on {self.progress.finished} by

    scripts/train {self.options.recipe} {folders} --out runs/{style.name} --name {style.name}{start} \\
        --seed {self.options.seed} --stages {plan}

- Licence: {style.licence}.
- Photographs: {len(self.training)} for training, {CROPS_PER_PHOTO} crops of each in every stage;
  {len(self.validation)} for validation. Sources and licences: {self.options.data}
- Machine: {platform.machine()}, {self.device.type}, {torch.get_num_threads()} threads,
  {"bf16" if self.bf16 else "fp32"} convolutions.
- Time: {self.progress.seconds / 60:.0f} minutes.
- PSNR in bf16 to float32: {style.psnr_bf16} dB.
- Torch {torch.__version__.split("+")[0]}. Loss: `painting_loss` of `scripts/training/likeness.py`.
- Adam; exponential moving average of the weights, decay up to {EMA_DECAY}.

| crops | batch | steps | learning rate |
| --- | --- | --- | --- |
{stages}

Scores of the validation photographs, at {VALIDATION_SIDE} px, against the teacher's paintings: L1 on [0, 1], SSIM, and
crispness (mean gradient magnitude over the teacher's).

| stage, step | L1 | SSIM | crispness |
| --- | --- | --- | --- |
{results}
"""


def load_start(name: str) -> Generator:
    """Returns the generator of an installed style, to be trained on.

    Raises:
        SystemExit: there is no such style, or it upsamples in another way.
    """
    style = installed_styles().get(name)
    if style is None or style.resize != RESIZE_MODE:
        raise SystemExit(f"--start: no installed style {name} with the resize mode {RESIZE_MODE}")
    return load_generator(style).train()


def runs_bf16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 in hardware; without that, bf16 is many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(bf16_instructions())


def ema_decay(step: int) -> float:
    """Returns the decay of the average of weights: it grows with the steps, or the start would weigh too long."""
    return min(EMA_DECAY, (1 + step) / (10 + step))


def one_cycle(t: float) -> float:
    """Returns the factor of the learning rate at `t` in [0, 1]: a linear rise over 5 %, then a cosine down to 5 %."""
    return t / 0.05 if t < 0.05 else 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (t - 0.05) / 0.95)))


if __name__ == "__main__":
    main()
