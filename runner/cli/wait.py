"""`runner wait`: until jobs have ended, then their exit code."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from runner.cli import daemon, facts
from runner.cli.options import HomeOption, NamesArgument, existing, open_home
from runner.errors import DaemonNotRunningError, RefusedError
from runner.storage.layout import Home

#: A supervisor may be away for this long (an upgrade, a restart by systemd) before waiting is called futile.
_ALONE_S_MAX = 10.0
_POLL_S = 0.1


def command(
    names: NamesArgument,
    home: HomeOption = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Wait no longer than this.")
    ] = None,
) -> None:
    """Wait until jobs have ended; exit with their own code, 128+n after signal n.

    Of several jobs it is the first code that is not 0.
    """
    where = open_home(home)
    deadline = None if timeout is None else time.monotonic() + timeout
    codes = [_wait(where, name, deadline) for name in [existing(where, name) for name in names]]
    raise typer.Exit(next((code for code in codes if code), 0))


def _wait(home: Home, name: str, deadline: float | None) -> int:
    alone_since = None
    while True:
        existing(home, name)
        job = facts.gather(home, name)
        if facts.is_settled(job):
            print(f"{name}: {job['state']}{': ' + job['reason'] if job['reason'] else ''}")
            return int(job["exit_code"])
        now = time.monotonic()
        if deadline is not None and now > deadline:
            raise RefusedError(f"{name}: still {job['state']} after the time given")
        alone_since = None if daemon.serves(home, name) else alone_since or now
        if alone_since and now - alone_since > _ALONE_S_MAX:
            raise DaemonNotRunningError(
                f"{name}: {job['state']}, and no supervisor runs on {home.root}; start one: runner supervise"
            )
        time.sleep(_POLL_S)
