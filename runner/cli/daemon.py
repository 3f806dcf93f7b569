"""Is a supervisor there, and asking it for something."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from runner.cli import facts
from runner.core.events import Request
from runner.core.job import State
from runner.core.table import refusal
from runner.errors import RefusedError
from runner.storage import eventlog, lock, requests
from runner.storage.layout import Home

#: How long a command waits for a living supervisor to take up what it asked.
TAKE_UP_S = 5.0
POLL_S = 0.02


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


def ask(home: Home, name: str, request: Request) -> None:
    """Ask for something and say what came of it.

    Raises:
        RefusedError: it cannot be granted in the job's state.
    """
    before = facts.gather(home, name)
    refused = refusal(State(before["state"]), request)
    if refused:
        raise RefusedError(f"{name}: {refused}")
    path = requests.submit_request(home, request.value, name)
    if not serves(home, name):
        print(f"{name}: {request.value} asked; takes effect when a supervisor runs: runner supervise")
        return
    if not until(lambda: not path.exists(), TAKE_UP_S):
        print(f"{name}: {request.value} asked; the supervisor has not taken it up yet")
        return
    _say(home, name, request, before["revision"])


def _say(home: Home, name: str, request: Request, revision: int) -> None:
    if not home.job(name).record.exists():
        print(f"{name}: removed")
        return
    reason = _refused_since(home.job(name).events, request, revision)
    if reason:
        raise RefusedError(reason)
    after = facts.gather(home, name)
    why = f" ({after['reason']})" if after["reason"] else ""
    print(f"{name}: {after['state']}{why}")


def _refused_since(events: Path, request: Request, revision: int) -> str:
    for event in eventlog.read(events):
        if (
            isinstance(event, dict)
            and event.get("seq", 0) > revision
            and event.get("event") == "refused"
            and event.get("verb") == request.value
        ):
            return str(event.get("reason"))
    return ""
