"""`runner retry`: run a job again that has ended, from its last checkpoint."""

from __future__ import annotations

from runner.cli import daemon
from runner.cli.options import HomeOption, NamesArgument, open_home
from runner.core.events import Request


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Run jobs again that have not succeeded.

    They continue from their last checkpoint, with a fresh restart budget.
    """
    daemon.ask_all(open_home(home), names, Request.RETRY)
