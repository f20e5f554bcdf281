"""The command `animegan`."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli.arguments import FILE, INSTALLED_STYLES, completed
from serve_app.cli.batch.command import add_batch_parser
from serve_app.cli.completion import add_completion_parser
from serve_app.cli.drain import TIMEOUT_S, add_drain_parser, seconds
from serve_app.cli.jobs import add_jobs_parser, default_config
from serve_app.cli.paint.command import add_paint_parser
from serve_app.cli.plan import add_plan_parser
from serve_app.errors import AnimeganError, StyleError
from serve_app.styles.catalogue import (
    STYLES_DIR_VARIABLE,
    Style,
    default_eps,
    find_installed,
    installed_styles,
    local_dir,
    read_catalogue,
)
from serve_app.styles.text import printable

if TYPE_CHECKING:  # it imports torch
    from serve_app.engine.checkpoints import Weights

MAX_CHECKPOINT_BYTES = 2**30  # of a file to import: a generator has 8 MB, and training adds more to a checkpoint

GROUPS = {
    "Paint photographs": ["paint", "batch", "styles"],
    "Run a service": ["run", "check", "plan", "keys", "jobs", "drain"],
    "More": ["export", "completion"],
}
COMMAND_WIDTH = 13
HELP_END = """\
animegan COMMAND --help says more of each; animegan --version is the version.

  animegan paint photo.jpg -o painted.jpg
  animegan run"""


def main() -> int:
    """Runs one command, and returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text in the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    options = make_parser().parse_args()  # the function to run is in `command`
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        sys.stdout.flush()  # here, where a closed pipe is handled
        return status
    except BrokenPipeError:  # `| head` has read enough; the rest of the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (AnimeganError, OSError) as error:
        print(f"animegan: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class GroupedParser(argparse.ArgumentParser):
    """A parser whose help shows its commands by what people do with them."""

    def format_help(self) -> str:
        """Returns the help, for a terminal of 80 columns."""
        (commands,) = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        told = {choice.dest: choice.help for choice in commands._get_subactions()}
        lines = [f"usage: {self.prog} COMMAND ...", "", str(self.description)]
        for title, names in GROUPS.items():
            lines += ["", f"{title}:", *(f"  {name:{COMMAND_WIDTH}}{told[name]}" for name in names)]
        return "\n".join([*lines, "", HELP_END, ""])


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = GroupedParser(prog="animegan", description="Turns photographs into anime with AnimeGANv2.")
    parser.add_argument("--version", action="version", version=f"animegan-serve {version('animegan-serve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    add_paint_parser(commands)
    add_batch_parser(commands)

    run = commands.add_parser(
        "run",
        help="serve a config file on this machine until Ctrl-C",
        description="Serves a config file on this machine until Ctrl-C or SIGTERM. Then it finishes what it has in "
        "hand; the next signal ends that.",
    )
    completed(run.add_argument("config", nargs="?", type=Path, help="default: the shipped configs/local.yaml"), FILE)
    run.add_argument("--dashboard", action="store_true", help="start Ray's dashboard too (220 MB more)")
    run.add_argument(
        "--drain",
        type=seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"the most that it waits for requests in hand when it is stopped; default: {TIMEOUT_S:g}",
    )
    run.set_defaults(command=run_service)

    check = commands.add_parser("check", help="lint Serve config files strictly")
    completed(check.add_argument("configs", nargs="+", type=Path, metavar="CONFIG"), FILE)
    check.set_defaults(command=check_configs)

    styles = commands.add_parser("styles", help="list, pull and import styles").add_subparsers(
        required=True, metavar="ACTION"
    )
    listed = styles.add_parser("list", help="installed styles, and those that can be pulled")
    listed.add_argument("--names", action="store_true", help="print the names of the installed ones alone")
    listed.set_defaults(command=list_styles)

    pull = styles.add_parser("pull", help="download styles of the catalogue, and measure them (seconds)")
    pull.add_argument("names", nargs="+", metavar="NAME")
    pull.set_defaults(command=pull_styles)

    add = styles.add_parser("import", help="install a checkpoint of your own, and measure it (seconds)")
    completed(add.add_argument("file", type=Path, metavar="FILE", help="a PyTorch state dict, or safetensors"), FILE)
    add.add_argument("--name", required=True, help="lower case letters, digits, - and _")
    add.add_argument("--resize", required=True, choices=["align", "half", "tf"], help="how its decoder grows")
    add.add_argument("--eps", type=float, help="of its norms; default 1e-12 for tf, else 1e-5")
    add.add_argument("--title", help="default: the name")
    add.add_argument("--summary", help="what the style is good for, in a sentence")
    add.add_argument("--licence", default="unknown")
    add.add_argument("--credit", default="unknown")
    add.add_argument("--force", action="store_true", help="replace an installed style of this name")
    add.set_defaults(command=import_style)

    keys = commands.add_parser("keys", help="make API keys").add_subparsers(required=True, metavar="ACTION")
    new = keys.add_parser("new", help="print a new key once, and the line of its hash for the key file")
    new.add_argument("name", metavar="NAME", help="whose key it is; letters, digits, `.`, `_` and `-`")
    new.add_argument("--share", type=float, help="the part of the queue that NAME may hold, 0.5 for example")
    new.set_defaults(command=make_key)

    add_plan_parser(commands)
    add_jobs_parser(commands)
    add_drain_parser(commands)

    export = commands.add_parser("export", help="write a style for another runtime")
    completed(export.add_argument("style", metavar="STYLE"), INSTALLED_STYLES)
    completed(
        export.add_argument(
            "--onnx", type=Path, required=True, metavar="FILE", help="any batch and size; extra `onnx`"
        ),
        FILE,
    )
    export.set_defaults(command=export_style)

    add_completion_parser(commands, make_parser)
    return parser


def run_service(options: argparse.Namespace) -> int:
    """`animegan run`."""
    from serve_app.cli.supervisor import run

    return run(options.config or default_config(), options.dashboard, options.drain)


def check_configs(options: argparse.Namespace) -> int:
    """`animegan check`."""
    from serve_app.cli.config_lint import lint

    findings = [finding for path in options.configs for finding in lint(path)]
    print("\n".join(findings) if findings else f"fine: {', '.join(map(str, options.configs))}")
    return 1 if findings else 0


def list_styles(options: argparse.Namespace) -> int:
    """`animegan styles list`."""
    installed = find_installed()
    if options.names:
        print("\n".join(sorted(installed)))
        return 0
    rows: list[tuple[Style, str]] = [
        (style, "no digest" if name in installed.without_digest else "installed") for name, style in installed.items()
    ]
    rows += [(style, "can be pulled") for name, style in read_catalogue().items() if name not in installed]
    width = max(len(style.name) for style, _ in rows)
    for style, state in rows:
        about = printable(f"{style.title}; licence: {style.licence}")
        print(f"{style.name:{width}}  {state:13}  {style.resize:5}  {about}")
        if style.summary:
            print(f"{'':{width}}  {printable(style.summary)}")
    for left_out in installed.left_out:
        print(f"left out: {left_out.reason}")
    if installed.without_digest:
        print("no digest: an older version wrote the file, so damage to it would go unnoticed; install it again")
    print(f"\nPulled and imported styles live in {local_dir()} (set {STYLES_DIR_VARIABLE} for another folder).")
    return 0


def pull_styles(options: argparse.Namespace) -> int:
    """`animegan styles pull`."""
    from serve_app.engine.checkpoints import read_checkpoint
    from serve_app.styles.downloads import download

    catalogue = read_catalogue()
    unknown = [name for name in options.names if name not in catalogue]
    if unknown:
        raise StyleError(f"the catalogue has no {', '.join(unknown)} (known: {', '.join(catalogue)})")
    for name in options.names:
        entry = catalogue[name]
        weights = read_checkpoint(download(entry), entry.file)
        install(weights, Style(**entry.model_dump(include=set(Style.model_fields))))
    return 0


def import_style(options: argparse.Namespace) -> int:
    """`animegan styles import`."""
    from pydantic import ValidationError

    from serve_app.engine.checkpoints import read_checkpoint

    try:
        style = Style(
            name=options.name,
            title=options.title or options.name,
            summary=options.summary or None,
            resize=options.resize,
            eps=default_eps(options.resize) if options.eps is None else options.eps,
            licence=options.licence,
            source=f"imported from {printable(options.file.name)}",
            credit=options.credit,
        )
    except ValidationError as error:
        raise StyleError("; ".join(f"--{e['loc'][0]}: {in_words(e)}" for e in error.errors())) from None
    if not options.force and (style.name in find_installed() or style_path(style.name).exists()):
        raise StyleError(f"a style {style.name} is installed already; --force replaces it")
    install(read_checkpoint(read_bounded(options.file), options.file.name), style)
    return 0


def in_words(error: Mapping[str, Any]) -> str:
    """Returns what is wrong with an option; pydantic would show the pattern of a name."""
    if error["type"] == "string_pattern_mismatch":
        return "lower case letters, digits, - and _, up to 64, the first a letter or digit"
    return str(error["msg"])


def make_key(options: argparse.Namespace) -> int:
    """`animegan keys new`."""
    from serve_app.web.keys import new_key

    key, line = new_key(options.name, options.share)
    print(f"The key, for {options.name} alone; it is shown only now:\n\n  {key}\n")
    print(f"The line for the service's key file:\n\n  {line}")
    return 0


def read_bounded(path: Path) -> bytes:
    """Returns the bytes of a file that is to be imported.

    Raises:
        StyleError: if it cannot be read or is too large.
    """
    if re.match(r"[a-z]\w+:/", str(path), re.I):
        raise StyleError(f"{path} is an address; download the file and import that")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CHECKPOINT_BYTES + 1)
    except OSError as error:
        raise StyleError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_CHECKPOINT_BYTES:
        raise StyleError(f"{path} has more than {MAX_CHECKPOINT_BYTES} bytes; save the generator by itself")
    return data


def export_style(options: argparse.Namespace) -> int:
    """`animegan export`."""
    from serve_app.engine.onnx import export_onnx

    installed = installed_styles()
    if options.style not in installed:
        raise StyleError(f"no style {options.style} is installed (known: {', '.join(installed)})")
    if not options.onnx.parent.is_dir():
        raise StyleError(f"there is no folder {options.onnx.parent}")
    style = installed[options.style]
    worst = export_onnx(style, options.onnx)
    print(f"wrote {options.onnx} ({style.licence}); ONNX Runtime paints within {worst:.0e} of torch")
    return 0


def style_path(name: str) -> Path:
    """Returns the file that a style is installed in."""
    return local_dir() / f"{name}.safetensors"


def install(weights: "Weights", style: Style) -> None:
    """Measures a style in bf16 and paints its thumbnail, which takes seconds, writes its files, and tells the user."""
    from serve_app.engine.fidelity import with_psnr
    from serve_app.engine.thumbnails import save_with_thumbnail

    save_with_thumbnail(weights, with_psnr(weights, style), style_path(style.name))
    print(f"{style.name} is installed (licence: {style.licence}); restart the service to paint with it")
