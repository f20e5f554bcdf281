"""Measures an installed style against its teacher, on photographs that were not used for its training.

    scripts/train judge cel --photos DIR --sheet cel-heldout.jpg

Prints for each photograph: L1 on [0, 1], SSIM and crispness (the mean gradient magnitude of luminance over the
teacher's). Then how stable the painting is: the photograph is painted at 0.9 and 1.1 of its size and mirrored, the
painting is resized or mirrored back, and its L1 distance from the first painting is printed. Then what it looks like,
as `looks.py` defines it: the distance from the photograph, the shares of pixels in flat areas and in outlines.
`--sheet` draws the photograph, the teacher's painting and the style's side by side.

To see how different styles look: scripts/train compare STYLE STYLE ... --photos DIR
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from serve_app.engine.checkpoints import load_generator
from serve_app.frames import Frame, Size
from serve_app.styles.catalogue import find_style, installed_styles
from training.likeness import scores
from training.looks import distance, flat_share, outline_share
from training.photographs import contact_sheet, find_photos, open_photo, shrink_to_fit, to_batch, to_frame
from training.teachers.recipes import RECIPES

Paint = Callable[[Frame], Frame]

COLUMNS = ["l1", "ssim", "crispness", "at 0.9", "at 1.1", "mirrored", "from photo", "flat", "outlines"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of scores and writes the contact sheet; arguments default to the command line's."""
    options = parse_options(arguments)
    paint = style_painter(options.style, options.styles_dir)
    teacher = RECIPES[options.recipe].teacher
    rows, results = [], []
    print(f"| photograph | {' | '.join(COLUMNS)} |\n| --- {'| --- ' * len(COLUMNS)}|", flush=True)
    for path in find_photos(options.photos, least=1):
        photo = shrink_to_fit(open_photo(path), options.side)
        target, painted = teacher(photo), paint(photo)
        result = [
            *scores(to_batch([painted]), to_batch([target])).values(),
            *instabilities(paint, photo, painted),
            distance(painted, photo),
            flat_share(painted),
            outline_share(painted),
        ]
        results.append(result)
        print(table_row(path.stem, result), flush=True)
        rows.append(np.hstack([photo, target, painted]))
    print(table_row(f"mean of {len(results)}", np.mean(results, axis=0).tolist()))
    if options.sheet:
        save_sheet(options.sheet, rows, min(1.0, options.sheet_side / options.side))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of `scripts/train judge`."""
    parser = argparse.ArgumentParser(
        "scripts/train judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("style", help="name of an installed style")
    parser.add_argument("--recipe", choices=RECIPES, help="of the teacher; default: the one that has the style's name")
    add_picture_options(parser)
    options = parser.parse_args(arguments)
    options.recipe = options.recipe or options.style
    if options.recipe not in RECIPES:
        parser.error(f"no recipe has the name {options.recipe}: choose one with --recipe ({', '.join(RECIPES)})")
    return options


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options on photographs, styles and contact sheets."""
    parser.add_argument("--photos", type=Path, action="append", required=True, help="folder of photographs")
    parser.add_argument("--side", type=int, default=768, help="longer side of the photographs in pixels (%(default)s)")
    parser.add_argument("--styles-dir", type=Path, help="folder of styles, besides those that are shipped")
    parser.add_argument("--sheet", type=Path, help="file for the contact sheet")
    parser.add_argument(
        "--sheet-side", type=int, default=768, help="longer side of each image in the sheet, in pixels (%(default)s)"
    )


def style_painter(name: str, styles_dir: Path | None) -> Paint:
    """Returns a function that paints one frame with an installed style."""
    generator = load_generator(find_style(installed_styles(styles_dir), name))

    @torch.inference_mode()
    def paint(photo: Frame) -> Frame:
        return to_frame(generator(to_batch([photo]).to(memory_format=torch.channels_last))[0])

    return paint


def save_sheet(path: Path, rows: list[Frame], factor: float) -> None:
    """Saves rows of pictures below each other, at `factor` times their size."""
    rows = [row if factor == 1 else resized(row, scaled_size(row, factor)) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(rows)).save(path, quality=88)


def instabilities(paint: Paint, photo: Frame, painted: Frame) -> list[float]:
    """Returns how far the painting moves, as mean L1 on [0, 1], at 0.9 and 1.1 of the size and when mirrored."""
    size = Size(*photo.shape[:2])
    others = [resized(paint(resized(photo, scaled_size(photo, factor))), size) for factor in (0.9, 1.1)]
    others.append(paint(np.ascontiguousarray(photo[:, ::-1]))[:, ::-1])
    return [float(np.abs(other.astype(np.float32) - painted).mean()) / 255 for other in others]


def scaled_size(frame: Frame, factor: float) -> Size:
    """Returns the frame's size times a factor, rounded to multiples of 4."""
    height, width = (round(side * factor / 4) * 4 for side in frame.shape[:2])
    return Size(height, width)


def resized(frame: Frame, size: Size) -> Frame:
    """Returns the frame at another size, by LANCZOS."""
    return np.array(Image.fromarray(frame).resize((size.width, size.height), Image.Resampling.LANCZOS))


def table_row(name: str, values: list[float]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |"


if __name__ == "__main__":
    main()
