"""Identity and life of an OS process: boot id + pid + start time, and a pidfd to wait for its end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

#: How long processes are waited for that are in the midst of execve(2), and between two looks at one.
_EXECVE_S, _SHORTLY_S = 1.0, 0.0005
#: No pid is greater (proc(5), pid_max).
_PID_MAX = 1 << 22


@dataclass(frozen=True)
class Identity:
    """Names one process for good: a pid alone is reused, and means nothing after a reboot.

    `start` is field 22 of /proc/PID/stat: clock ticks since boot (proc(5)).
    """

    boot: str
    pid: int
    start: int

    @classmethod
    def parse(cls, value: Any) -> Identity | None:
        """Read an identity from a record; None where it is not one."""
        try:
            found = cls(str(value["boot"]), int(value["pid"]), int(value["start"]))
        except (KeyError, TypeError, ValueError):
            return None
        return found if 0 < found.pid <= _PID_MAX else None


@cache
def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Return the identity of the process that has `pid` now; None where there is none."""
    fields = _stat(pid)
    return Identity(boot_id(), pid, int(fields[19])) if fields else None


def age_s(identity: Identity) -> float:
    """Return how long ago the process of this boot was started; that the machine slept meanwhile counts."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start / os.sysconf("SC_CLK_TCK")


def is_alive(identity: Identity) -> bool:
    """Tell whether that very process exists and is not a zombie."""
    fields = _stat(identity.pid)
    return bool(
        fields and int(fields[19]) == identity.start and fields[0] not in "ZX" and identity.boot == boot_id()
    )


def is_stopped(pid: int) -> bool:
    """Tell whether the process is stopped (SIGSTOP, a debugger): it cannot make progress then."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in "Tt"


def is_frozen(pid: int) -> bool:
    """Tell whether the process's control group is frozen (cgroups(7)), as by `docker pause`."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        number, controllers, path = line.split(":", 2)
        with contextlib.suppress(OSError):
            if number == "0" and "frozen 1" in Path(f"/sys/fs/cgroup{path}/cgroup.events").read_text():
                return True
        with contextlib.suppress(OSError):
            if "freezer" in controllers.split(","):
                return Path(f"/sys/fs/cgroup/freezer{path}/freezer.state").read_text().strip() != "THAWED"
    return False


@dataclass(frozen=True)
class Processing:
    """What one thread has had of the processors."""

    ran_s: float
    waited_s: float  #: for a processor; the kernel adds a wait when it is over
    turns: int  #: how often it got one
    ready: bool  #: it has a processor now, or waits for one


def processing(pid: int) -> dict[str, Processing]:
    """Return what each thread of a process has had of the processors, from its schedstat and stat (proc(5)).

    Where the kernel keeps no such account, nothing.
    """
    found = {}
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                ran_ns, waited_ns, turns = map(int, (thread / "schedstat").read_text().split())
                ready = (thread / "stat").read_bytes().rpartition(b") ")[2].startswith(b"R")
                found[thread.name] = Processing(ran_ns / 1e9, waited_ns / 1e9, turns, ready)
    return found


def open_pidfd(identity: Identity) -> int | None:
    """Open a descriptor that becomes readable when the process ends; None where it has ended already."""
    try:
        fd = os.pidfd_open(identity.pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENOENT}:  # the latter two: a thread's
            return None
        raise
    if not is_alive(identity):
        os.close(fd)
        return None
    return fd


def wait(pidfd: int, timeout_s: float | None = None) -> bool:
    """Wait for a process's end; tell whether it has come."""
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else 1000 * timeout_s))


def ask(pidfd: int, number: int) -> None:
    """Send a process a signal, and let it go on where it is stopped: it would not hear of it."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)


def carrying(mark: tuple[str, str]) -> list[int]:
    """List the processes whose environment carries `mark` (a name and a value): a job's strays.

    Environments of other users' processes cannot be read and are passed over.
    """
    wanted = f"{mark[0]}={mark[1]}".encode()
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    until_s = time.monotonic() + _EXECVE_S
    return [pid for pid in pids if pid != os.getpid() and wanted in _environment(pid, until_s)]


def descends(pid: int, ancestor: int) -> bool:
    """Tell whether a process is `ancestor`, which lives, or has come of it."""
    at = pid
    while at not in {0, 1, ancestor}:
        fields = _stat(at)
        if not fields and at == pid:
            return False
        at = int(fields[1]) if fields else pid  # a parent is gone: it has another one by now
    return at == ancestor


def _environment(pid: int, until_s: float) -> list[bytes]:
    """Return what a process was started with; of one that is just becoming a program, what it comes to.

    In the midst of execve(2) a process has memory and no environment yet, to the reader of proc(5): who is
    passed over then is a stray that nobody ends.
    """
    with contextlib.suppress(OSError):
        while True:
            text = Path(f"/proc/{pid}/environ").read_bytes()
            if text or _has_none(pid) or time.monotonic() > until_s:
                return text.split(b"\0")
            time.sleep(_SHORTLY_S)
    return []


def _has_none(pid: int) -> bool:
    """Tell whether a process is gone, of the kernel, or a program with an empty environment.

    execve(2) sets where the code lies last of all.
    """
    fields = _stat(pid)
    if (
        not fields or fields[20] == "0"
    ):  # fields 23, 26, 50, 51 of proc(5): vsize, startcode, env_start, env_end
        return True
    return fields[23] != "0" and fields[47] == fields[48]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command's name, from the state on."""
    try:
        # A process's name may be any bytes.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096).decode(errors="replace")
        finally:
            os.close(fd)
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()
