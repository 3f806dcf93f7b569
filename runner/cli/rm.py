"""`runner rm`: forget a job, its folder in jobs/ and its state."""

from __future__ import annotations

import contextlib
import os

from runner.cli import daemon, facts
from runner.cli.options import HomeOption, NamesArgument, existing, open_home
from runner.core.events import Request
from runner.core.job import ACTIVE
from runner.errors import RefusedError, UnreadableRecordError
from runner.storage import durable, lock
from runner.storage.layout import Home


def command(names: NamesArgument, home: HomeOption = None) -> None:
    """Forget jobs that do not run: folder and state."""
    where = open_home(home)
    daemon.for_each([existing(where, name) for name in names], lambda name: _forget(where, name))


def _forget(home: Home, name: str) -> None:
    try:
        mirror = facts.gather(home, name)["mirror"]
    except UnreadableRecordError:
        _refuse_running(home, name)
    else:
        if mirror is not None and mirror["steps"]:
            print(f"{name}: {mirror['url']} is left: the same job, submitted again, would go on from there")
    held = _hold(home)
    if held is None:
        daemon.ask(home, name, Request.REMOVE)
        return
    try:
        _remove(home, name)
    finally:
        os.close(held)


def _refuse_running(home: Home, name: str) -> None:
    """Refuse a job whose record cannot be read, where an attempt runs: nobody could stop that afterwards."""
    with contextlib.suppress(OSError):  # what is damaged has to go
        if lock.is_locked(home.job(name).lock):
            raise RefusedError(
                f"{name}: its record cannot be read, and its attempt runs; end that first:"
                f" {home.job(name).attempts}/*/shim.json names its processes"
            )


def _hold(home: Home) -> int | None:
    """Take the home's lock; None where a supervisor has it, or where only another user may take it."""
    try:
        return None if daemon.is_serving(home) else lock.try_lock(home.lock)
    except PermissionError:
        return None


def _remove(home: Home, name: str) -> None:
    """Remove it ourselves: the home's lock is ours, so no supervisor runs or can start."""
    try:
        active = facts.state_of(home, name) in ACTIVE
    except UnreadableRecordError:
        active = False  # removing it is the remedy
    if active or lock.is_locked(home.job(name).lock):
        raise RefusedError(f"{name}: it is active; stop or cancel it first (that needs: runner supervise)")
    for folder in home.submitted_as(name):
        durable.remove_tree(folder)
    durable.remove_tree(home.job(name).dir)
    print(f"{name}: removed")
