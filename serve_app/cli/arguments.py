"""What several commands declare alike: their help, what a shell completes, and how paintings look."""

import argparse
from typing import Any

import shtab

from serve_app.frames import MIN_SIDE
from serve_app.settings import IngressSettings

DEFAULTS = IngressSettings()
MAX_SIDE = 16_383  # where WebP ends
FILE = shtab.FILE
INSTALLED_STYLES = shtab.cmd("animegan styles list --names 2> /dev/null")


def add_command(commands: Any, name: str, help: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Adds a command, and returns its parser.

    Args:
        commands: of the whole command line.
        name: of the command.
        help: what it does, in the list of all commands.
        description: the first sentence of its own help.
        examples: the last lines of its own help, printed as they are.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def completed(action: argparse.Action, completer: Any) -> argparse.Action:
    """Has a shell complete an argument: with a `completer` of shtab."""
    action.complete = completer  # type: ignore[attr-defined]  # where shtab looks for it
    return action


def add_look(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what paintings are like."""
    look = parser.add_argument_group("the painting")
    completed(
        look.add_argument(
            "--style", metavar="NAME", help=f"default: {DEFAULTS.default_style}; `animegan styles list` shows all"
        ),
        INSTALLED_STYLES,
    )
    look.add_argument(
        "--max-side",
        type=side,
        metavar="PIXELS",
        help=f"larger photographs are fitted to it; default: {DEFAULTS.max_side}",
    )
    look.add_argument(
        "--format",
        type=format_name,
        choices=["jpeg", "webp", "png", "avif"],
        help="default: the photograph's, or jpeg if that cannot be written",
    )
    look.add_argument("--quality", type=quality, metavar="1-100", help="of jpeg, webp and avif; default: 90, 85, 75")
    look.add_argument(
        "--precision", choices=["auto", "fp32", "fp16", "bf16"], help="default: auto, the fastest that looks like fp32"
    )


def format_name(text: str) -> str:
    """Returns the usual name of an image format, as HTTP takes it too."""
    return "jpeg" if text.lower() == "jpg" else text.lower()


def side(text: str) -> int:
    """Returns the pixels of `--max-side`."""
    return bounded(text, MIN_SIDE, MAX_SIDE)


def quality(text: str) -> int:
    """Returns a `--quality`."""
    return bounded(text, 1, 100)


def bounded(text: str, least: int, most: int) -> int:
    """Returns a number within limits.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
    return int(text)
