"""Trains the generator to paint like the teacher, on any folder of photographs.

    pip install -e '.[train]'
    python scripts/train_style.py --photos DIR [--photos DIR] --out runs/toon

The generator has no skip connection and must first learn to carry a picture through four times fewer pixels, so it
goes from small whole pictures to larger ones. GroupNorm discards a crop's brightness and contrast: pictures are whole.
Stop it at any time; the same command resumes from the last checkpoint. At the end it writes the style (16-bit
safetensors) and its model card.
"""

import argparse
import copy
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ValidationError
from teacher import teach
from torch import Tensor, nn
from tqdm import tqdm

from serve_app.checkpoints import save_style
from serve_app.generator import Generator, InvertedResidual
from serve_app.styles import Style

Frame = NDArray[np.uint8]  # (H, W, 3) RGB
Pair = tuple[Frame, Frame]  # photo, the teacher's painting of it

COLOURINGS = 4
SHAPES = {"wide": (0.816, 1.225), "square": (1.0, 1.0), "tall": (1.225, 0.816)}  # (H, W) of one stage's side, near 3:2
EMA_DECAY = 0.995
RESIZE_MODE = "align"


@dataclass(frozen=True)
class Stage:
    side: int  # pixels: the square root of the picture's area
    batch: int
    steps: int
    learning_rate: float


STAGES = [Stage(64, 8, 1200, 6e-4), Stage(128, 4, 1500, 5e-4), Stage(256, 2, 1500, 3e-4)]


@dataclass
class Progress:
    """What a checkpoint holds beside weights; enough to go on, and to write the card."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
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
            source="trained by scripts/train_style.py",
            credit="the animegan-serve authors",
        )
    except ValidationError as error:
        raise SystemExit(f"--name: {error.errors()[0]['msg']}") from None


def parse_stages(text: str) -> list[Stage]:
    stages = []
    for part in text.split(","):
        side, batch, steps, rate = part.split(":")
        stages.append(Stage(int(side), int(batch), int(steps), float(rate)))
    return stages


def find_photos(folders: list[Path], least: int = 2) -> list[Path]:
    endings = {".jpg", ".jpeg", ".png", ".webp"}
    photos = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in endings)
    if len(photos) < least:
        raise SystemExit(f"{len(photos)} photographs in {', '.join(map(str, folders))}: {least} at least are needed")
    return photos


def refuse_held_out(photos: list[Path], held_out: Path | None) -> None:
    """A difference hash within 10 of 256 bits is the same photograph, resized or recompressed."""
    if held_out is None:
        return
    forbidden = {path: difference_hash(path) for path in find_photos([held_out], least=1)}
    for photo in photos:
        own = difference_hash(photo)
        for path, other in forbidden.items():
            if np.count_nonzero(own != other) <= 10:
                raise SystemExit(f"{photo} is a near copy of the held-out {path}: take it out of the training folder")


def difference_hash(path: Path) -> NDArray[np.bool_]:
    small = np.asarray(Image.open(path).convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return (small[:, 1:] > small[:, :-1]).ravel()


class Trainer:
    def __init__(self, options: argparse.Namespace, training: list[Path], validation: list[Path]) -> None:
        self.options, self.training, self.validation = options, training, validation
        self.device = torch.device(options.device)
        self.student = carry_colours(Generator(RESIZE_MODE)).to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.student)
        self.progress = Progress()
        self.checkpoint = options.out / "checkpoint.pt"
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3, betas=(0.9, 0.99))
        if self.checkpoint.exists():
            self.resume()

    def train(self) -> None:
        while self.progress.stage < len(self.options.stages):
            self.run_stage(self.options.stages[self.progress.stage])
            self.progress.stage, self.progress.step = self.progress.stage + 1, 0
            self.save()

    def run_stage(self, stage: Stage) -> None:
        rng = random.Random(f"{self.options.seed}/{stage.side}/{self.progress.step}")
        banks = make_bank(self.training, stage.side, COLOURINGS, rng, "teaching")
        exam = [pair for bank in make_bank(self.validation, stage.side, 1, rng, "examining").values() for pair in bank]
        batches = draw_batches(banks, stage.batch, rng)
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
            if (step + 1) % 100 == 0 or step + 1 == stage.steps:
                self.progress.seconds += time.monotonic() - began
                began = time.monotonic()
                self.progress.step = step + 1
                self.examine(stage, exam)
                self.save()

    def learn(self, photo: Tensor, target: Tensor) -> float:
        photo, target = (t.to(self.device, memory_format=torch.channels_last) for t in (photo, target))
        loss = picture_loss(self.student(photo), target)
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
        """Mean L1 against the teacher on [0, 1] over photographs kept from training, and a contact sheet of them."""
        errors, rows = [], []
        for photo, target in exam:
            painted = self.average(to_tensor([photo]).to(self.device)).cpu()
            errors.append((painted - to_tensor([target])).abs().mean().item() / 2)
            rows.append(np.hstack([photo, target, to_frame(painted[0])]))
        self.progress.validation.append(
            {"side": stage.side, "step": self.progress.step, "l1": round(float(np.mean(errors)), 4)}
        )
        tqdm.write(f"{stage.side} px, step {self.progress.step}: validation L1 {np.mean(errors):.4f}")
        Image.fromarray(contact_sheet(rows)).save(self.options.out / "contact-sheet.png")

    def save(self) -> None:
        state = {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def export(self, style: Style, path: Path) -> None:
        save_style(self.average.state_dict(), style, path, dtype=torch.float16)
        path.with_suffix(".md").write_text(self.card())
        print(f"wrote {path} and its card")

    def card(self) -> str:
        stages = "\n".join(f"| {s.side} px | {s.batch} | {s.steps} | {s.learning_rate} |" for s in self.options.stages)
        last = {entry["side"]: entry for entry in self.progress.validation}
        results = "\n".join(f"| {int(side)} px | {entry['l1']} |" for side, entry in last.items())
        folders = " ".join(f"--photos {folder.name}" for folder in self.options.photos)
        plan = ",".join(f"{s.side}:{s.batch}:{s.steps}:{s.learning_rate}" for s in self.options.stages)
        return f"""# {self.options.name}

The AnimeGANv2 generator (2,143,552 parameters, `{RESIZE_MODE}`, eps 1e-5) imitating the classical teacher of
`scripts/teacher.py`. Trained on {date.today()} by

    python scripts/train_style.py {folders} --seed {self.options.seed} --stages {plan}

- Photographs: {len(self.training)} for training in {COLOURINGS} colourings each, {len(self.validation)} for validation.
- Machine: {platform.machine()}, {self.device.type}, {torch.get_num_threads()} threads.
- Time: {self.progress.seconds / 60:.0f} minutes.
- Torch {torch.__version__.split("+")[0]}. Loss: L1 + half gradient L1 + quarter Laplacian L1.
- Adam; exponential mean of weights {EMA_DECAY}.

| pictures | batch | steps | learning rate |
| --- | --- | --- | --- |
{stages}

| pictures | validation L1 to the teacher, on [0, 1] |
| --- | --- |
{results}

```json
{json.dumps(self.progress.validation)}
```
"""


@torch.no_grad()
def carry_colours(generator: Generator) -> Generator:
    """Starts the student as a blurred copy of its photograph instead of as noise; hours of training saved on a CPU.

    Six channels of every layer carry r, g, b and their negatives from end to end: leaky(x) - leaky(-x) = 1.2 x is
    linear, and the pairs' mean is zero, so that the norms leave them be. All other channels keep their random start.
    """
    routes = range(6)
    for convolution in (module for module in generator.modules() if isinstance(module, nn.Conv2d)):
        weight = convolution.weight  # (out, in, k, k)
        middle = weight.shape[-1] // 2
        weight[: len(routes)] *= 0.1
        for route in routes:
            colour, sign = route % 3, 1 if route < 3 else -1
            if weight.shape[1] == 3:  # the photograph itself
                weight[route, colour, middle, middle] = sign
            elif convolution.groups > 1:  # depthwise: each channel for itself
                weight[route, 0, middle, middle] = 1
            elif route < weight.shape[0]:
                weight[route, colour, middle, middle] = 0.7 * sign
                weight[route, colour + 3, middle, middle] = -0.7 * sign
    for block in (module for module in generator.modules() if isinstance(module, InvertedResidual)):
        if block.is_residual:
            block.layers[-1].weight.fill_(0.1)
    return generator


def one_cycle(t: float) -> float:
    """Linear warm-up over the first 5 %, then half a cosine down to 5 %."""
    return t / 0.05 if t < 0.05 else 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (t - 0.05) / 0.95)))


def picture_loss(painted: Tensor, target: Tensor) -> Tensor:
    """L1, L1 of gradients and L1 of Laplacians: the last two ask for clean contours."""
    loss = F.l1_loss(painted, target)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(painted.diff(dim=axis), target.diff(dim=axis))
    return loss + 0.25 * F.l1_loss(laplacian(painted), laplacian(target))


def laplacian(x: Tensor) -> Tensor:
    return 4 * x[..., 1:-1, 1:-1] - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]


def make_bank(photos: list[Path], side: int, colourings: int, rng: random.Random, label: str) -> dict[str, list[Pair]]:
    """Photographs at one stage's size and the teacher's paintings of them, by shape; the first colouring is plain."""
    bank: dict[str, list[Pair]] = {shape: [] for shape in SHAPES}
    for path in tqdm(photos, desc=f"{label} at {side} px", mininterval=5):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        shape = shape_of(image)
        photo = np.asarray(fit_shape(image, side, shape))
        for colouring in range(colourings):
            coloured = jitter(photo, rng) if colouring else photo
            bank[shape].append((coloured, teach(coloured)))
    return {shape: pairs for shape, pairs in bank.items() if pairs}


def shape_of(image: Image.Image) -> str:
    ratio = image.width / image.height
    return "wide" if ratio > 1.2 else "tall" if ratio < 1 / 1.2 else "square"


def fit_shape(image: Image.Image, side: int, shape: str) -> Image.Image:
    """Crops to the shape's aspect around the middle, then LANCZOS to its size, each side a multiple of 4."""
    height, width = (round(side * factor / 4) * 4 for factor in SHAPES[shape])
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def jitter(photo: Frame, rng: random.Random) -> Frame:
    """Another colouring of the photograph, made before the teacher paints it: hue, saturation, gamma, brightness."""
    hsv = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + rng.choice([0, rng.uniform(-40, 40), rng.uniform(0, 360)])) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.3, 1.4), 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] ** rng.uniform(0.6, 1.6) * rng.uniform(0.75, 1.15), 0, 1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255 + 0.5).clip(0, 255).astype(np.uint8)


def draw_batches(banks: dict[str, list[Pair]], size: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    shapes, weights = list(banks), [len(pairs) for pairs in banks.values()]
    while True:
        shape = rng.choices(shapes, weights)[0]
        pairs = [mirror(pair, rng) for pair in rng.choices(banks[shape], k=size)]
        yield to_tensor([photo for photo, _ in pairs]), to_tensor([target for _, target in pairs])


def mirror(pair: Pair, rng: random.Random) -> Pair:
    return (pair[0][:, ::-1], pair[1][:, ::-1]) if rng.random() < 0.5 else pair


def to_tensor(frames: list[Frame]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, H, W)


def to_frame(painted: Tensor) -> Frame:
    return ((painted.permute(1, 2, 0).numpy() + 1) * 127.5 + 0.5).clip(0, 255).astype(np.uint8)


def contact_sheet(rows: list[Frame]) -> Frame:
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


if __name__ == "__main__":
    main()
