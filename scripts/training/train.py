"""Trains the generator to paint like the teacher, on any folder of photographs.

    scripts/setup train
    scripts/train --photos DIR [--photos DIR] --out runs/toon

The generator has no skip connection: it starts as a near copy of its photograph (see `carry_picture`) and learns on
random crops of photographs at random scales, small ones first. The teacher paints each crop by itself, since GroupNorm
shows the student no more than that. Stop it at any time; the same command resumes from the last checkpoint. At the end
it writes the style (16-bit safetensors) and its model card. `scripts/train judge` measures the result.
"""

import argparse
import copy
import math
import platform
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from serve_app.engine.checkpoints import save_style
from serve_app.engine.generator import Generator
from serve_app.frames import ResizeMode
from serve_app.styles.catalogue import Style
from training.head_start import carry_picture
from training.likeness import compare, picture_loss
from training.photographs import Frame, contact_sheet, find_photos, fit, open_photo, to_frame, to_tensor
from training.teacher import teach

Pair = tuple[Frame, Frame]  # photo, the teacher's painting of it

CROPS = 12  # of each photograph in each stage, or fewer where fewer are drawn
LONGEST_SIDE = 1024  # pixels: no crop is of a larger photograph, since none larger is painted by default
EXAM_SIDE = 512  # pixels: the longer side of the validation photographs
EXAM_EVERY = 200  # steps
EMA_DECAY = 0.995
# Aligned corners stretch the picture by some 3 pixels across its width, and the student cannot know where in it it is:
# contours come out soft or doubled. `tf` keeps every pixel in its place.
RESIZE_MODE: ResizeMode = "tf"


@dataclass(frozen=True)
class Stage:
    side: int  # pixels: of square crops
    batch: int
    steps: int
    learning_rate: float


STAGES = [Stage(128, 8, 450, 8e-4), Stage(256, 2, 850, 6e-4)]


@dataclass
class Progress:
    """What a checkpoint holds beside weights; enough to go on, and to write the card."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    finished: str = ""
    validation: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    options = parse_options()
    style = describe_style(options.name)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    photos = find_photos(options.photos)
    refuse_held_out(photos, options.held_out)
    validation, training = photos[::12], [p for i, p in enumerate(photos) if i % 12]
    trainer = Trainer(options, training, validation)
    trainer.train()
    trainer.export(style, options.out / f"{options.name}.safetensors")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, action="append", required=True, help="a folder of photographs")
    parser.add_argument(
        "--held-out", type=Path, help="photographs that training must never see, nor near copies of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, contact sheets, the style and its card")
    parser.add_argument("--name", default="toon")
    parser.add_argument("--stages", type=parse_stages, default=STAGES, help="side:batch:steps:learning_rate,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--data", default="not stated", help="whose the photographs are, and their licences: for the card"
    )
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of convolutions")
    return parser.parse_args()


def describe_style(name: str) -> Style:
    """Made before training starts, so that a bad name does not cost hours."""
    try:
        return Style(
            name=name,
            title=name.capitalize(),
            resize=RESIZE_MODE,
            eps=1e-5,
            licence="MIT",
            source="trained by scripts/train",
            credit="the animegan-serve authors",
        )
    except ValidationError as error:
        raise SystemExit(f"--name: {error.errors()[0]['msg']}") from None


def parse_stages(text: str) -> list[Stage]:
    stages = []
    for part in text.split(","):
        side, batch, steps, rate = part.split(":")
        stages.append(Stage(int(side), int(batch), int(steps), float(rate)))
    if any(s.side % 4 or s.side < 16 or s.batch < 1 or s.steps < 1 or s.learning_rate <= 0 for s in stages):
        raise argparse.ArgumentTypeError("sides are multiples of 4 from 16 up; the other numbers are positive")
    if len({stage.side for stage in stages}) < len(stages):
        raise argparse.ArgumentTypeError("each stage needs a side of its own")
    return stages


def refuse_held_out(photos: list[Path], held_out: Path | None) -> None:
    """A difference hash within 10 of 256 bits, and like colours: the same photograph, resized or recompressed."""
    if held_out is None:
        return
    forbidden = {path: fingerprint(path) for path in find_photos([held_out], least=1)}
    for photo in photos:
        own = fingerprint(photo)
        for path, other in forbidden.items():
            if np.count_nonzero(own[0] != other[0]) <= 10 and np.abs(own[1] - other[1]).mean() < 24:
                raise SystemExit(f"{photo} is a near copy of the held-out {path}: take it out of the training folder")


def fingerprint(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    """The difference hash, (16, 16), and a thumbnail, (16, 17, 3), since all flat pictures have one hash."""
    thumbnail = open_photo(path).resize((17, 16), Image.Resampling.BOX)
    grey = np.asarray(thumbnail.convert("L"), np.int16)
    return grey[:, 1:] > grey[:, :-1], np.asarray(thumbnail, np.int16)


class Trainer:
    def __init__(self, options: argparse.Namespace, training: list[Path], validation: list[Path]) -> None:
        self.options, self.training, self.validation = options, training, validation
        self.device = torch.device(options.device)
        self.bf16 = runs_bf16(self.device) if options.precision == "auto" else options.precision == "bf16"
        self.student = carry_picture(Generator(RESIZE_MODE)).to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.student)
        self.progress = Progress()
        self.checkpoint = options.out / "checkpoint.pt"
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3, betas=(0.9, 0.99))
        if self.checkpoint.exists():
            self.resume()

    def train(self) -> None:
        exam = make_exam(self.validation)
        while self.progress.stage < len(self.options.stages):
            self.run_stage(self.options.stages[self.progress.stage], exam)
            self.progress.stage, self.progress.step = self.progress.stage + 1, 0
            self.progress.finished = date.today().isoformat()
            self.save()

    def run_stage(self, stage: Stage, exam: list[Pair]) -> None:
        rng = random.Random(f"{self.options.seed}/{stage.side}/{self.progress.step}")
        bank = make_bank(self.training, stage, rng)
        batches = draw_batches(bank, stage.batch, rng)
        began = time.monotonic()
        bar = tqdm(
            range(self.progress.step, stage.steps),
            desc=f"{stage.side} px",
            initial=self.progress.step,
            total=stage.steps,
            mininterval=5,
        )
        for step in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.learning_rate * one_cycle(step / stage.steps)
            loss = self.learn(*next(batches))
            bar.set_postfix(loss=f"{loss:.4f}")
            if (step + 1) % EXAM_EVERY == 0 or step + 1 == stage.steps:
                self.progress.seconds += time.monotonic() - began
                began = time.monotonic()
                self.progress.step = step + 1
                self.examine(stage, exam)
                self.save()

    def learn(self, photo: Tensor, target: Tensor) -> float:
        photo, target = (t.to(self.device, memory_format=torch.channels_last) for t in (photo, target))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            painted = self.student(photo)
        loss = picture_loss(painted.float(), target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(new, 1 - EMA_DECAY)
        return loss.item()

    @torch.inference_mode()
    def examine(self, stage: Stage, exam: list[Pair]) -> None:
        """Nearness to the teacher over photographs kept from training, and a contact sheet of them."""
        marks, rows = [], []
        for photo, target in exam:
            painted = self.average(to_tensor([photo]).to(self.device)).cpu()
            marks.append(compare(painted, to_tensor([target])))
            rows.append(np.hstack([photo, target, to_frame(painted[0])]))
        mean = {name: round(float(np.mean([mark[name] for mark in marks])), 4) for name in marks[0]}
        self.progress.validation.append({"side": stage.side, "step": self.progress.step, **mean})
        tqdm.write(f"{stage.side} px, step {self.progress.step}: validation {mean}")
        Image.fromarray(contact_sheet(rows)).save(self.options.out / "contact-sheet.png")

    def save(self) -> None:
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
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["plan"] != self.plan():
            raise SystemExit(
                f"{self.checkpoint} is of another training: other photographs, stages or seed; choose another --out"
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def plan(self) -> dict[str, object]:
        """What a resumed training must have in common with the one that was stopped."""
        return {
            "stages": [astuple(stage) for stage in self.options.stages],
            "seed": self.options.seed,
            "photos": [[path.name for path in paths] for paths in (self.training, self.validation)],
        }

    def export(self, style: Style, path: Path) -> None:
        save_style(self.average.state_dict(), style, path, dtype=torch.float16)
        path.with_suffix(".md").write_text(self.card(style))
        print(f"wrote {path} and its card")

    def card(self, style: Style) -> str:
        stages = "\n".join(f"| {s.side} px | {s.batch} | {s.steps} | {s.learning_rate} |" for s in self.options.stages)
        results = "\n".join(
            f"| {entry['side']} px, {entry['step']} | {entry['l1']} | {entry['ssim']} | {entry['crispness']} |"
            for entry in self.progress.validation
        )
        folders = " ".join(f"--photos {folder.name}" for folder in self.options.photos)
        plan = ",".join(f"{s.side}:{s.batch}:{s.steps}:{s.learning_rate}" for s in self.options.stages)
        return f"""# {self.options.name}

The AnimeGANv2 generator (2,143,552 parameters, `{RESIZE_MODE}`, eps 1e-5) imitating the classical teacher of
`scripts/training/teacher.py`. Trained on {self.progress.finished} by

    scripts/train {folders} --out runs/{style.name} --name {style.name} --seed {self.options.seed} \\
        --stages {plan}

- Licence: {style.licence}.
- Photographs: {len(self.training)} for training, {CROPS} crops of each in every stage; {len(self.validation)} for
  validation. Sources and licences: {self.options.data}
- Machine: {platform.machine()}, {self.device.type}, {torch.get_num_threads()} threads,
  {"bf16" if self.bf16 else "fp32"} convolutions.
- Time: {self.progress.seconds / 60:.0f} minutes.
- Torch {torch.__version__.split("+")[0]}. Loss: that of `picture_loss`.
- Adam; exponential mean of weights {EMA_DECAY}.

| crops | batch | steps | learning rate |
| --- | --- | --- | --- |
{stages}

Validation photographs at {EXAM_SIDE} px against the teacher: L1 on [0, 1], SSIM, and the student's mean gradient
magnitude over the teacher's.

| stage, step | L1 | SSIM | crispness |
| --- | --- | --- | --- |
{results}
"""


def runs_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; where it does not, bf16 is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def one_cycle(t: float) -> float:
    """Linear warm-up over the first 5 %, then half a cosine down to 5 %."""
    return t / 0.05 if t < 0.05 else 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (t - 0.05) / 0.95)))


def make_bank(photos: list[Path], stage: Stage, rng: random.Random) -> list[Pair]:
    """Random crops of photographs at random scales and in other colours, and the teacher's paintings of them."""
    drawn = stage.steps * stage.batch
    count = min(CROPS, math.ceil(drawn / len(photos)))
    chosen = rng.sample(photos, drawn) if drawn < len(photos) else photos
    crops = [crop for path in chosen for crop in cut(open_photo(path), stage.side, count, rng)]
    return paint_all(crops, f"teaching at {stage.side} px")


def make_exam(photos: list[Path]) -> list[Pair]:
    whole = [fit(open_photo(path), EXAM_SIDE) for path in photos]
    return paint_all(whole, "teaching the examination")


def paint_all(photos: list[Frame], label: str) -> list[Pair]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(zip(photos, tqdm(pool.map(teach, photos), label, len(photos), mininterval=5), strict=True))


def cut(photo: Image.Image, side: int, count: int, rng: random.Random) -> Iterator[Frame]:
    """Square crops, half of them in other colours, at scales from the crop being the whole short side upwards."""
    least = side / min(photo.size)
    most = max(least, min(1.0, LONGEST_SIDE / max(photo.size)))
    for number in range(count):
        scale = math.exp(rng.uniform(math.log(least), math.log(most)))
        width, height = (max(side, round(length * scale)) for length in photo.size)
        left, top = rng.randint(0, width - side), rng.randint(0, height - side)
        box = tuple(edge / scale for edge in (left, top, left + side, top + side))
        box = (box[0], box[1], min(box[2], photo.width), min(box[3], photo.height))
        crop = np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS, box=box))
        yield jitter(crop, rng) if number % 2 else crop


def jitter(photo: Frame, rng: random.Random) -> Frame:
    """Another colouring of the photograph, made before the teacher paints it: hue, saturation, gamma, brightness."""
    hsv = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + rng.choice([0, rng.uniform(-40, 40), rng.uniform(0, 360)])) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.3, 1.4), 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] ** rng.uniform(0.6, 1.6) * rng.uniform(0.75, 1.15), 0, 1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255 + 0.5).clip(0, 255).astype(np.uint8)


def draw_batches(bank: list[Pair], size: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Every pair once, mirrored or not, before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += rng.sample(range(len(bank)), len(bank))
        pairs = [mirror(bank[order.pop()], rng) for _ in range(size)]
        yield to_tensor([photo for photo, _ in pairs]), to_tensor([target for _, target in pairs])


def mirror(pair: Pair, rng: random.Random) -> Pair:
    return (pair[0][:, ::-1], pair[1][:, ::-1]) if rng.random() < 0.5 else pair


if __name__ == "__main__":
    main()
