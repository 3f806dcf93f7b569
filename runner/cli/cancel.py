"""`runner cancel`: kill a job now."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, existing, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Kill jobs now; `retry` continues from the last checkpoint."""
    where = open_home(home)
    for name in [existing(where, name) for name in names]:
        daemon.ask(where, name, Request.CANCEL)
