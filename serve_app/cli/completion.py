"""`animegan completion`: a script that completes commands, options, files and names of styles in a shell."""

import argparse
from collections.abc import Callable
from typing import Any

import shtab

FILE = shtab.FILE
INSTALLED_STYLES = shtab.cmd("animegan styles list --names 2> /dev/null")
EXAMPLES = """
examples:
  animegan completion bash > ~/.local/share/bash-completion/completions/animegan
  animegan completion zsh > "${fpath[1]}/_animegan"
"""


def completed(action: argparse.Action, completer: Any) -> argparse.Action:
    """Has a shell complete an argument: with a `completer` of shtab."""
    action.complete = completer  # type: ignore[attr-defined]  # where shtab looks for it
    return action


def add_completion_parser(commands: Any, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds `animegan completion` to the commands; `make_parser` returns the parser of the whole command line."""
    completion: argparse.ArgumentParser = commands.add_parser(
        "completion",
        help="print a script that completes commands in bash or zsh",
        description="Prints a script that completes commands, options, files and styles.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=["bash", "zsh"])

    def print_script(options: argparse.Namespace) -> int:
        print(shtab.complete(make_parser(), options.shell))
        return 0

    completion.set_defaults(command=print_script)
