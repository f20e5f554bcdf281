"""Judges a style beside the teacher, on photographs that its training never saw.

    scripts/train judge toon --photos DIR --sheet docs/images/toon-heldout.jpg

For each photograph: L1 on [0, 1], SSIM and crispness (the mean gradient magnitude of luminance over the teacher's), and
how much the painting changes, as L1, when the photograph is painted at 0.9 or 1.1 of its size, or mirrored, and the
painting put back. `--sheet` draws photo | teacher | style, and the `--beside` style where one is named.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from serve_app.engine.checkpoints import load_generator
from serve_app.styles.catalogue import find_style, installed_styles
from training.likeness import compare
from training.photographs import Frame, contact_sheet, find_photos, fit, open_photo, to_frame, to_tensor
from training.teacher import teach

Paint = Callable[[Frame], Frame]

COLUMNS = ["l1", "ssim", "crispness", "at 0.9", "at 1.1", "mirrored"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("style", help="the name of an installed style")
    parser.add_argument("--photos", type=Path, action="append", required=True, help="a folder of photographs")
    parser.add_argument("--side", type=int, default=768, help="pixels of the longer side")
    parser.add_argument("--styles-dir", type=Path, help="where the styles lie, beside the shipped ones")
    parser.add_argument("--beside", help="another style to draw")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parser.add_argument("--sheet-side", type=int, default=768, help="pixels of each picture's longer side in the sheet")
    options = parser.parse_args()

    paint = painter(options.style, options.styles_dir)
    beside = painter(options.beside, options.styles_dir) if options.beside else None
    rows, marks = [], []
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
    print(f"| photograph | {' | '.join(COLUMNS)} |\n| --- {'| --- ' * len(COLUMNS)}|", flush=True)
    for path in find_photos(options.photos, least=1):
        photo = fit(open_photo(path), options.side)
        target, painted = teach(photo), paint(photo)
        marks.append([*compare(to_tensor([painted]), to_tensor([target])).values(), *changes(paint, photo, painted)])
        print(table_row(path.stem, marks[-1]), flush=True)
        rows.append(np.hstack([photo, target, painted, *([beside(photo)] if beside else [])]))
    print(table_row(f"mean of {len(marks)}", np.mean(marks, axis=0).tolist()))
    if options.sheet:
        Image.fromarray(contact_sheet([shrink(row, min(1.0, options.sheet_side / options.side)) for row in rows])).save(
            options.sheet, quality=88
        )


def painter(name: str, styles_dir: Path | None) -> Paint:
    style = find_style(installed_styles(styles_dir), name)
    generator = load_generator(style)

    @torch.inference_mode()
    def paint(photo: Frame) -> Frame:
        return to_frame(generator(to_tensor([photo]).to(memory_format=torch.channels_last))[0])

    return paint


def changes(paint: Paint, photo: Frame, painted: Frame) -> list[float]:
    """Mean L1 on [0, 1] between the painting and those of the photograph at 0.9 and 1.1 and mirrored, put back."""
    again = [scaled(paint(scaled(photo, factor)), photo.shape) for factor in (0.9, 1.1)]
    again.append(paint(np.ascontiguousarray(photo[:, ::-1]))[:, ::-1])
    return [float(np.abs(other.astype(np.float32) - painted).mean()) / 255 for other in again]


def scaled(frame: Frame, to: float | tuple[int, ...]) -> Frame:
    """LANCZOS by a factor, to multiples of 4, or to a given (H, W, ...)."""
    height, width = to[:2] if isinstance(to, tuple) else (round(side * to / 4) * 4 for side in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def shrink(frame: Frame, factor: float) -> Frame:
    return frame if factor == 1 else scaled(frame, factor)


def table_row(name: str, marks: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{mark:.3f}' for mark in marks)} |"


if __name__ == "__main__":
    main()
