"""`runner resume`: put a paused job back into the queue."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Put paused jobs back into the queue."""
    daemon.ask_all(open_home(home), names, Request.RESUME)
