"""`runner supervise`: the daemon, in the foreground."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from runner.cli.options import HomeOption, open_home


class OnTerm(StrEnum):
    """What SIGTERM does to the workers."""

    DRAIN = "drain"
    LEAVE = "leave"


def command(
    home: HomeOption = None,
    on_term: Annotated[
        OnTerm,
        typer.Option(
            "--on-term", help="On SIGTERM: let workers checkpoint and stop, or leave them training."
        ),
    ] = OnTerm.DRAIN,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Let each job write in its own folders and /tmp alone (Landlock)."),
    ] = False,
) -> None:
    """Run the daemon: keep what is in jobs/ alive."""
    root = open_home(home).root
    sys.stdout.flush()
    # In place of this process: the daemon carries nothing of the command line.
    options = ["--home", str(root), "--on-term", on_term.value, *["--isolate"] * isolate]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "runner.supervisor", *options])
