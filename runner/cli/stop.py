"""`runner stop`: let a job checkpoint and end; `retry` continues it."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Let jobs checkpoint and end; `retry` continues them."""
    daemon.ask_all(open_home(home), names, Request.STOP)
