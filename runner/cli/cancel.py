"""`runner cancel`: kill a job now."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Kill jobs now; `retry` continues from the last checkpoint."""
    daemon.ask_all(open_home(home), names, Request.CANCEL)
