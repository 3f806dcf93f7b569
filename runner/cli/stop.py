"""`runner stop`: let a job checkpoint and end; `retry` continues it."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, existing, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Let jobs checkpoint and end; `retry` continues them."""
    where = open_home(home)
    for name in [existing(where, name) for name in names]:
        daemon.ask(where, name, Request.STOP)
