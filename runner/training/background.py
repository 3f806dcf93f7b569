"""Standing back: a process that is not wanted yet leaves processor and memory to those that are.

What is lowered here comes back: `may_return` tells beforehand whether the kernel will allow it (it needs
CAP_SYS_NICE or RLIMIT_NICE). Where it would not, the process rests between its steps instead. Neither is for
ever: on a machine that is never idle it would not get done.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from runner.training import room

_CAP_SYS_NICE = 23
#: A tenth of what a process gets that wants the same core; for so long.
_NICENESS = 10
_PATIENCE_S = 20.0
_NICE_0 = 20  # as RLIMIT_NICE counts
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_OOM_FIRST = "1000"
_PRESSURE = Path("/proc/pressure/memory")
#: Of the last ten seconds some process waited for memory for so many percent: memory is short.
PRESSURE_MAX = 10.0
#: For each second of work so many of rest.
_REST = 3.0


def may_return() -> bool:
    """Tell whether this process may take its priority back once it has given it away."""
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= _NICE_0 - os.nice(0):
        return True
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False


class Background:
    """A time during which this process stands back."""

    def __init__(self, is_wanted: Callable[[float], bool]):
        """Begin.

        Args:
            is_wanted: waits until this process is wanted, so many seconds at most; tells whether it is.
        """
        self._is_wanted = is_wanted
        self._niceness: int | None = None  # to return to
        self._score = ""
        self._paced = False
        self._entered_s = self._worked_s = time.monotonic()

    def enter(self) -> None:
        """Stand back: be served after the others, and be the first to go where memory runs out.

        Raises:
            OSError: the kernel forbids it.
        """
        self._score = _OOM_SCORE.read_text().strip()
        _OOM_SCORE.write_text(_OOM_FIRST)
        if may_return():
            self._niceness = os.nice(0)
            os.nice(_NICENESS)
        self._paced = self._niceness is None
        self._entered_s = self._worked_s = time.monotonic()

    def pace(self) -> None:
        """Rest in proportion to the work since the last rest, where there is no priority to lower."""
        if time.monotonic() - self._entered_s > _PATIENCE_S:
            self.work_again()
        if self._paced:
            self._paced = not self._is_wanted(_REST * min(1.0, time.monotonic() - self._worked_s))
            self._worked_s = time.monotonic()

    def work_again(self) -> None:
        """Take the priority back, that of every thread.

        Raises:
            OSError: the kernel forbids it.
        """
        self._paced = False
        if self._niceness is not None:
            for thread in Path("/proc/self/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), self._niceness)
            self._niceness = None

    def leave(self) -> None:
        """Be as any other process again.

        Raises:
            OSError: the kernel forbids it.
        """
        self.work_again()
        _OOM_SCORE.write_text(self._score)


def shortage(least_bytes: int) -> str:
    """Say why memory is short; "" where it is not.

    Args:
        least_bytes: what must be free.
    """
    try:
        free = room.free_bytes()
    except (OSError, ValueError) as error:
        return f"how much memory is free cannot be known ({error})"
    if free < least_bytes:
        return f"{free >> 20} MiB of memory are free, and {least_bytes >> 20} MiB must be"
    waited = _waited_percent()
    return f"processes wait for memory ({waited:g} % of the time)" if waited > PRESSURE_MAX else ""


def _waited_percent() -> float:
    """Return for which part of the last ten seconds some process waited for memory (PSI); 0 if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        some = _PRESSURE.read_text().splitlines()[0]
        return float(some.split("avg10=")[1].split()[0])
    return 0.0
