"""Gives queued jobs their turn: what the machine has, who starts on it, who makes room, why others wait."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runner.core.admission import admit
from runner.core.events import Admitted, AnyEvent, Preempt
from runner.core.inventory import Capacity
from runner.core.job import ACTIVE, State
from runner.core.table import Decision
from runner.supervisor.book import Book
from runner.supervisor.gpus import Gpus
from runner.supervisor.loop import Loop

#: The limit of the container that we are in, where we are in one (cgroups(7)).
_CONTAINERS_MEMORY = Path("/sys/fs/cgroup/memory.max")


class Queue:
    """Starts and stops the jobs of a book by what its plans say."""

    def __init__(
        self, loop: Loop, book: Book, handle: Callable[[str, AnyEvent], Decision | None], *, alone: bool
    ) -> None:
        """Begin.

        Args:
            loop: the supervisor's.
            book: of the jobs.
            handle: lets an event happen to a job.
            alone: the book holds one job, which starts whatever it comes after.
        """
        self._book = book
        self._handle = handle
        self._alone = alone
        self._gpus = Gpus(loop, lambda: loop.after(0.0, self.admit))
        self._capacity = Capacity(float(os.cpu_count() or 1), (), memory_bytes())
        self._since: dict[str, float] = {}
        self.closed = False  #: nothing is started any more

    def admit(self) -> None:
        """Start and stop what is to be; nothing before the GPUs have been looked for."""
        if self.closed:
            return
        if not self._gpus.known or self._concerned():
            self._gpus.tend()
        if not self._gpus.known:
            return
        capacity = replace(self._capacity, gpus=self._gpus.devices)
        jobs, now_s = self._book.jobs.values(), time.monotonic()
        plan = admit(jobs, capacity, alone=self._alone, now_s=now_s, since=self._since)
        self._since = plan.since
        for name, reason in plan.preempt.items():
            self._handle(name, Preempt(reason))
        for name, gpus in plan.gpus.items():
            if gpus and not self._gpus.fresh:
                self._gpus.look()
            else:
                self._handle(name, Admitted(gpus))
        for name, reason in plan.waiting.items():
            if self._book.jobs[name].reason != reason:
                self._book.commit(replace(self._book.jobs[name], reason=reason))

    def _concerned(self) -> bool:
        """Tell whether a job waits for GPUs, or has some."""
        jobs = self._book.jobs.values()
        return any(job.spec.resources.gpus and job.state in ACTIVE | {State.QUEUED} for job in jobs)


def memory_bytes() -> float:
    """Return how much memory jobs may have together: the machine's, or the container's."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = math.inf
    with contextlib.suppress(OSError, ValueError):  # none, or "max"
        limit = float(_CONTAINERS_MEMORY.read_text())
    return min(machine, limit)
