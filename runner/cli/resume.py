"""`runner resume`: put a paused job back into the queue."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, existing, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Put paused jobs back into the queue."""
    where = open_home(home)
    for name in [existing(where, name) for name in names]:
        daemon.ask(where, name, Request.RESUME)
