"""Who serves a home: a daemon holds it wholly, supervisors of one job each hold it together."""

from __future__ import annotations

import time

from runner.errors import AlreadyRunningError, UnreadableRecordError
from runner.storage import lock, records
from runner.storage.layout import Home

_WAIT_S = 1.0


def hold(home: Home, only: str | None) -> list[int]:
    """Take the locks of a daemon, or of the supervisor of `only`; return what holds them while it is open.

    Raises:
        AlreadyRunningError: another supervisor holds one.
    """
    wanted = [(home.lock, only is not None)]
    if only is not None:
        wanted.append((home.job(only).supervisor_lock, False))
    held = []
    for path, shared in wanted:
        deadline = time.monotonic() + _WAIT_S
        while (fd := lock.try_lock(path, shared=shared)) is None:
            if time.monotonic() > deadline:
                raise AlreadyRunningError(_who_runs(home))
            time.sleep(0.05)
        held.append(fd)
    return held


def _who_runs(home: Home) -> str:
    try:
        pid = records.load_json(home.supervisor)["identity"]["pid"]
    except (OSError, UnreadableRecordError, KeyError, TypeError):
        pid = "unknown"
    return f"{home.root}: a supervisor runs here already (pid {pid}); stop it, or choose another --home"
