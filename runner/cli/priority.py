"""`runner priority`: give a job another place in the queue."""

from __future__ import annotations

from typing import Annotated

import typer

from runner.cli import daemon
from runner.cli.options import HomeOption, NameArgument, existing, open_home
from runner.core.events import Request
from runner.core.spec import PRIORITY_MAX, PRIORITY_MIN

#: So that a negative number is no option.
CONTEXT = {"ignore_unknown_options": True}

PriorityArgument = Annotated[
    int,
    typer.Argument(
        metavar="N", min=PRIORITY_MIN, max=PRIORITY_MAX, help="Higher ones start first; usually 0."
    ),
]


def command(name: NameArgument, priority: PriorityArgument, home: HomeOption = None) -> None:
    """Change a job's priority; of equal ones the first come starts first. A job that runs is left alone."""
    where = open_home(home)
    daemon.ask(where, existing(where, name), Request.PRIORITY, {"priority": priority})
