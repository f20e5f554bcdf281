"""`animegan completion`: a script that completes commands, options, files and names of styles in a shell."""

import argparse
from collections.abc import Callable
from typing import Any

import shtab

from serve_app.cli.arguments import add_command

EXAMPLES = """
examples:
  animegan completion bash > ~/.local/share/bash-completion/completions/animegan
  animegan completion zsh > "${fpath[1]}/_animegan"
"""


def add_completion_parser(commands: Any, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds `animegan completion` to the commands; `make_parser` returns the parser of the whole command line."""
    completion = add_command(
        commands,
        "completion",
        help="print a script that completes commands in bash or zsh",
        description="Prints a script that completes commands, options, files and styles.",
        examples=EXAMPLES,
    )
    completion.add_argument("shell", choices=["bash", "zsh"])

    def print_script(options: argparse.Namespace) -> int:
        print(shtab.complete(make_parser(), options.shell))
        return 0

    completion.set_defaults(command=print_script)
