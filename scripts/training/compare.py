"""Shows installed styles side by side, and measures how different they look from each other and from the photographs.

    scripts/train compare toon cel ink --photos DIR --sheet docs/images/styles.jpg

Prints the mean distance of each pair over all photographs, as `looks.py` defines it. `--sheet` draws each photograph
and its paintings side by side, in the order of the styles.
"""

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

from training.judge import add_picture_options, save_sheet, style_painter
from training.looks import distance
from training.photographs import find_photos, open_photo, shrink_to_fit

PHOTOGRAPH = "photograph"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of distances; arguments default to the command line's."""
    options = parse_options(arguments)
    painters = {name: style_painter(name, options.styles_dir) for name in options.styles}
    found: dict[tuple[str, str], list[float]] = {}
    rows = []
    for path in find_photos(options.photos, least=1):
        photo = shrink_to_fit(open_photo(path), options.side)
        pictures = {PHOTOGRAPH: photo, **{name: paint(photo) for name, paint in painters.items()}}
        for first, second in itertools.combinations(pictures, 2):
            found.setdefault((first, second), []).append(distance(pictures[first], pictures[second]))
        rows.append(np.hstack(list(pictures.values())))
    print(f"| | {' | '.join(options.styles)} |\n| --- {'| --- ' * len(options.styles)}|")
    for first in [PHOTOGRAPH, *options.styles[:-1]]:
        cells = [f"{np.mean(found[first, name]):.3f}" if (first, name) in found else "" for name in options.styles]
        print(f"| {first} | {' | '.join(cells)} |")
    if options.sheet:
        save_sheet(options.sheet, rows, min(1.0, options.sheet_side / options.side))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of `scripts/train compare`."""
    parser = argparse.ArgumentParser(
        "scripts/train compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("styles", nargs="+", help="names of installed styles")
    add_picture_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
