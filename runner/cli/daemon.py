"""Is a supervisor there, and asking it for something."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from runner.cli import complain, facts
from runner.cli.options import existing
from runner.core.events import Request
from runner.core.job import State
from runner.core.table import refusal
from runner.errors import RefusedError, RunnerError, UnreadableRecordError
from runner.storage import eventlog, lock, requests
from runner.storage.layout import Home

#: How long a command waits for a living supervisor to take up what it asked.
TAKE_UP_S = 5.0
POLL_S = 0.02
#: A request that was taken up is carried out at once; this much is for a slow disk.
_REMOVED_S = 1.0


def is_serving(home: Home) -> bool:
    """Tell whether a daemon serves this home: it holds the home's lock for itself alone."""
    try:
        fd = os.open(home.lock, os.O_RDONLY | os.O_CLOEXEC)  # all that others than its user may do
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def serves(home: Home, name: str) -> bool:
    """Tell whether a supervisor looks after job `name`: the daemon, or one of this job alone."""
    return is_serving(home) or lock.is_locked(home.job(name).supervisor_lock)


def until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Wait for `condition`; False where it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def for_each(names: list[str], act: Callable[[str], None]) -> None:
    """Do it for every job, whatever came of those before; say on stderr what went wrong.

    Raises:
        typer.Exit: something did: with 5 where anything was refused, else with the first error's code.
    """
    codes = []
    for name in names:
        try:
            act(name)
        except RunnerError as error:
            complain(str(error))
            codes.append(error.exit_code)
    if codes:
        raise typer.Exit(RefusedError.exit_code if RefusedError.exit_code in codes else codes[0])


def ask_all(home: Home, names: list[str], request: Request) -> None:
    """Ask the same of every job, and say what came of each.

    Raises:
        NoSuchJobError: one is not there; then nothing was asked of any.
        typer.Exit: not all of it was granted.
    """
    for_each([existing(home, name) for name in names], lambda name: ask(home, name, request))


def ask(home: Home, name: str, request: Request, args: dict[str, Any] | None = None) -> None:
    """Ask for something and say what came of it; `args` are the request's own.

    Raises:
        RefusedError: it cannot be granted in the job's state.
    """
    seen = _check(home, name, request)
    path = requests.submit_request(home, request.value, name, args)
    if not serves(home, name):
        print(f"{name}: {request.value} asked; takes effect when a supervisor runs: runner supervise")
        return
    if not until(lambda: not path.exists(), TAKE_UP_S):
        print(f"{name}: {request.value} asked; the supervisor has not taken it up yet")
        return
    unread = path.parent / ".refused" / path.name
    if unread.exists():
        raise RefusedError(f"{name}: the supervisor could not read the request to {request.value}: {unread}")
    reason = _refused_since(home.job(name).events, request, seen)
    if reason:
        raise RefusedError(reason)
    if request is Request.REMOVE:
        _say_removed(home, name)
        return
    after = facts.gather(home, name)
    why = f" ({after['reason']})" if after["reason"] else ""
    print(f"{name}: {after['state']}{why}")


def _check(home: Home, name: str, request: Request) -> int:
    """Refuse what the job's state forbids; return the number of the last event that was seen."""
    try:
        job = facts.gather(home, name)
    except UnreadableRecordError:
        if request is not Request.REMOVE:  # removing it is the remedy
            raise
        return _last_seq(home.job(name).events)
    refused = refusal(State(job["state"]), request)
    if refused:
        raise RefusedError(f"{name}: {refused}")
    return int(job["revision"])


def _say_removed(home: Home, name: str) -> None:
    if not until(lambda: facts.is_gone(home, name), _REMOVED_S):
        left = home.job(name).dir if os.path.lexists(home.job(name).dir) else home.folder(name)
        raise RefusedError(f"{name}: not removed, {left} is still there; see the supervisor's log")
    print(f"{name}: removed")


def _last_seq(events: Path) -> int:
    found = [_seq(event) for event in eventlog.read(events) if isinstance(event, dict)]
    return max(found, default=0)


def _seq(event: dict[str, Any]) -> int:
    seq = event.get("seq")
    return seq if isinstance(seq, int) else 0


def _refused_since(events: Path, request: Request, seen: int) -> str:
    for event in eventlog.read(events):
        if (
            isinstance(event, dict)
            and _seq(event) > seen
            and event.get("event") == "refused"
            and event.get("verb") == request.value
        ):
            return str(event.get("reason"))
    return ""
