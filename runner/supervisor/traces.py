"""What an attempt has left in its folder, as far as it can be believed: who it is, and what it holds.

The job can write there too. Whatever it has put in the place of a file of ours, nothing here raises for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from runner.core.job import ACTIVE, Job
from runner.core.recovery import Found
from runner.storage import lock, memory
from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import process
from runner.supervisor.ends import read, read_outcome
from runner.supervisor.process import Identity

#: The shims' programs, and where in its folder in /proc each has its job's lock.
_PROGRAMS, _LOCK = (b"/shim.py", b"/spare_shim.py"), "fd/3"


def beside(home: Home, job: Job) -> Found:
    """Look at what lies beside a record; of a job without an attempt nothing matters."""
    if job.state not in ACTIVE:
        return Found(locked=False)
    paths = home.job(job.name)
    attempt = paths.attempt(job.attempt)
    shim = read_identity(attempt, "shim")  # it may be torn; the record is not
    boots = (job.current.boot if job.current else "", shim.boot if shim else "")
    return Found(
        locked=lock.is_locked(paths.lock),
        started=os.access(attempt.shim, os.F_OK),  # False where the job lets nobody look
        ended=read_outcome(attempt),
        rebooted=any(boot and boot != process.boot_id() for boot in boots),
    )


def read_identity(paths: AttemptPaths, who: str) -> Identity | None:
    """Read the identity of the attempt's `shim` or `worker`; None where it is not known."""
    return Identity.parse(read(paths.shim).get(who))


def find_shim(held: Path) -> Identity | None:
    """Return the shim that holds the lock at `held`, whatever its files say; None where no shim does.

    It is a program of ours that has the lock under the number that it was given. A child that has not become
    another program yet looks the same, but has come of it.
    """
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = [pid for pid in found if _is_shim(pid, held)]
    eldest = [pid for pid in found if not any(pid != one and process.descends(pid, one) for one in found)]
    return process.identify(eldest[0]) if eldest else None


def _is_shim(pid: int, held: Path) -> bool:
    about = Path(f"/proc/{pid}")
    try:
        words = (about / "cmdline").read_bytes().split(b"\0")  # ..., the program, its folder, nothing
        return len(words) > 2 and words[-3].endswith(_PROGRAMS) and (about / _LOCK).samefile(held)
    except OSError:
        return False  # it has ended, or is another user's


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
