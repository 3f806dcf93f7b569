"""What an attempt has left in its folder, as far as it can be believed: who it is, and how it ended.

The job can write there too. Whatever it has put in the place of a file of ours, nothing here raises for it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from runner.core.events import Ended, StartFailed
from runner.core.job import ACTIVE, Job, Outcome
from runner.core.recovery import Found
from runner.errors import UnreadableRecordError
from runner.storage import lock, memory, records
from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import process
from runner.supervisor.process import Identity

log = logging.getLogger(__name__)

#: A record takes over no more of a text.
_TEXT_MAX = 500


def beside(home: Home, job: Job) -> Found:
    """Look at what lies beside a record; of a job without an attempt nothing matters."""
    if job.state not in ACTIVE:
        return Found(locked=False)
    paths = home.job(job.name)
    attempt = paths.attempt(job.attempt)
    shim = read_identity(attempt, "shim")
    return Found(
        locked=lock.is_locked(paths.lock),
        started=attempt.shim.exists(),
        ended=read_outcome(attempt),
        rebooted=shim is not None and shim.boot != process.boot_id(),
    )


def read_identity(paths: AttemptPaths, who: str) -> Identity | None:
    """Read the identity of the attempt's `shim` or `worker`; None where it is not known."""
    return Identity.parse(read(paths.shim).get(who))


def stopped_shim(paths: AttemptPaths) -> str:
    """Say that the attempt's shim is stopped (SIGSTOP, a debugger); "" where it is not."""
    shim = read_identity(paths, "shim")
    if shim is None or not process.is_alive(shim) or not process.is_stopped(shim.pid):
        return ""
    return f"its shim, pid {shim.pid}, is stopped: no end is seen while it is; `kill -CONT {shim.pid}`"


def open_memory(about: dict[str, Any], shim: Identity) -> int | None:
    """Return a descriptor of the memory that a living shim holds for snapshots; None where there is none.

    Args:
        about: what its shim.json says.
        shim: who it is.
    """
    number = about.get("memory_fd")
    if not isinstance(number, int) or number < 0:
        return None
    try:
        fd = os.open(f"/proc/{shim.pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    if not process.is_alive(shim) or not memory.is_one(fd):
        os.close(fd)
        return None
    return fd


def snapshots_bytes(paths: AttemptPaths) -> int:
    """Return how much memory the attempt's snapshots take, which its shim holds; 0 where there are none."""
    about = read(paths.shim)
    shim = Identity.parse(about.get("shim"))
    fd = open_memory(about, shim) if shim is not None else None
    if fd is None:
        return 0
    try:
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def read_outcome(paths: AttemptPaths) -> Ended | StartFailed | None:
    """Read how the attempt ended, as its shim wrote it; None where nothing was written."""
    value = read(paths.outcome)
    if not value:
        return None
    if value.get("error"):
        return StartFailed(f"cannot start: {str(value['error'])[:_TEXT_MAX]}")
    code, number, usage = value.get("exit_code"), value.get("signal"), value.get("rusage")
    peak = usage.get("max_rss_bytes") if isinstance(usage, dict) else None
    return Ended(
        exit_code=code if isinstance(code, int) else None,
        signal=str(number)[:_TEXT_MAX] if number is not None else None,
        asked=bool(value.get("asked")),
        reason=Outcome.OUT_OF_MEMORY.value if value.get("kernel_oom") else "",
        max_rss_bytes=peak if isinstance(peak, int) else None,
        warning=str(value.get("warning") or "")[:_TEXT_MAX],
    )


def starved(paths: AttemptPaths) -> str | None:
    """Say how much memory the attempt had when the kernel killed it for that; None where it did not."""
    value = read(paths.outcome)
    if not value.get("kernel_oom"):
        return None
    peak, limit = value.get("memory_peak_bytes"), value.get("memory_limit_bytes")
    text = "the kernel killed it for memory"
    text += f" at its limit (limits.memory = {limit >> 20} MiB)" if isinstance(limit, int) else ""
    return text + (f"; its peak was {peak >> 20} MiB" if isinstance(peak, int) else "")


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; what is none, or cannot be read, says nothing."""
    try:
        return records.load_json(path)
    except FileNotFoundError:
        return {}
    except (UnreadableRecordError, OSError) as error:
        log.error("%s: %s", path, error)
        return {}
