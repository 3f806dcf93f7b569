"""`runner completion`: the shell's side of completing verbs, options and names."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from runner.cli import COMPLETE_VAR


class Shell(StrEnum):
    """The shells that are served."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def command(shell: Annotated[Shell, typer.Argument(help="The shell.")] = Shell.BASH) -> None:
    """Print a completion script, to be used as: eval "$(runner completion bash)"."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined] # re-exported

    print(get_completion_script(prog_name="runner", complete_var=COMPLETE_VAR, shell=shell.value))
