"""Gives queued jobs their turn: what the machine has, who starts on it, who makes room, why others wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from runner.core.admission import admit, aged, begun
from runner.core.events import Admitted, AnyEvent, Preempt
from runner.core.inventory import Capacity
from runner.core.job import ACTIVE, State
from runner.core.table import Decision
from runner.supervisor import allotment, launch
from runner.supervisor.book import Book, moment
from runner.supervisor.gpus import Gpus
from runner.supervisor.loop import Loop, Soon
from runner.supervisor.unread import Unread

log = logging.getLogger(__name__)

#: Starts take so much of a turn, and planning a fifth of all time at most, however long the queue; but a few
#: plans in a row may come at once.
TURN_S = 0.02
_REST, _BURST_S = 4.0, 1.0
#: How often it is looked who has waited another day.
_AGES_S = 60.0
#: After the disk has refused.
_RETRY_S, _RETRY_REASONS_S = 1.0, 5.0


class Queue:
    """Starts and stops the jobs of a book by what its plans say."""

    def __init__(
        self,
        loop: Loop,
        book: Book,
        handle: Callable[[str, AnyEvent], Decision | None],
        on_untold: Callable[[], None],
        clear: Callable[[str], bool],
        *,
        alone: bool,
    ) -> None:
        """Begin.

        Args:
            loop: the supervisor's.
            book: of the jobs.
            handle: lets an event happen to a job.
            on_untold: called when there are reasons to `tell`.
            clear: kills what a job without a shim has left (see `Unread`).
            alone: the book holds one job, which starts whatever it comes after.
        """
        self._book = book
        self._handle = handle
        self._alone = alone
        self._on_untold = on_untold
        self._turns = Soon(loop, self._admit, _BURST_S)
        self._retries = Soon(loop, self.ask)
        self._gpus = Gpus(loop, self.ask)
        self._unread = Unread(book, clear, self._gpus.shown_to)
        self._capacity = Capacity(allotment.cpus(), (), allotment.memory_bytes())
        self._since: dict[str, float] | None = None  # nobody knows yet but the records
        self._ages: dict[str, int] = {}
        self._aged_until_s = 0.0  # by then a day may have become full
        self._untold: dict[str, str] = {}  # what queued jobs wait for, and their records do not say yet
        self.closed = False  #: nothing is started any more

    def tend(self) -> None:
        """Look where devices may have changed, or what nobody watches has ended; called now and then."""
        if self._with_gpus() or self._unread.any_left():
            self.ask()

    def ask(self) -> None:
        """Have it looked, soon, at what is to start and stop."""
        self._turns.ask()

    def _admit(self) -> None:
        """Start and stop what is to be, a few a turn; nothing before the GPUs have been looked for."""
        if self.closed:
            return
        if self._with_gpus():
            self._gpus.tend()
        if not self._gpus.known:
            return
        if not self._all_told():
            self._retries.ask(_RETRY_S)
            return
        capacity = replace(self._capacity, gpus=self._gpus.devices)
        jobs, now_s = self._book.jobs, time.monotonic()
        if self._since is None:
            self._since = begun(jobs.values(), now_s, moment())
        if now_s >= self._aged_until_s:
            self._ages, self._aged_until_s = aged(jobs.values(), moment()), now_s + _AGES_S
        known, since = [*jobs.values(), *self._unread.running()], self._since
        plan = admit(known, capacity, alone=self._alone, now_s=now_s, since=since, ages=self._ages)
        self._turns.rest(_REST * (time.monotonic() - now_s))
        self._since = plan.since
        for name, reason in plan.preempt.items():
            if self._handle(name, Preempt(reason)) is None:
                self._retries.ask(_RETRY_S)
        self._start(plan.gpus)
        waiting = reversed(plan.waiting.items())
        self._untold = {name: why for name, why in waiting if jobs[name].reason != why}
        self._on_untold()

    def _all_told(self) -> bool:
        """Have it in the records which GPUs the attempts of an older version's daemon have; tell whether so.

        That has not recorded them: what they were started with tells what they see, all of it where nothing
        was said. Nobody else gets that while they run.
        """
        for job in [self._book.jobs[name] for name in self._book.with_gpus]:
            attempt = job.current
            if job.state not in ACTIVE or attempt is None:
                continue
            if attempt.gpus is None and self._gpus.devices:
                paths = self._book.home.job(job.name).attempt(attempt.number)
                seen = self._gpus.shown_to(launch.environment_of(paths))
                log.warning("%s: its GPUs were not recorded; it sees %s", job.name, ", ".join(seen) or "none")
                if not self._book.commit(job.with_attempt(replace(attempt, gpus=seen))):
                    return False
        return True

    def _start(self, gpus: Mapping[str, tuple[str, ...] | None]) -> None:
        until_s = time.monotonic() + TURN_S
        for name, devices in gpus.items():
            if devices and not self._gpus.fresh:
                self._gpus.look()
            elif self._handle(name, Admitted(devices)) is None:
                self._retries.ask(_RETRY_S)  # and the next ones: the disk may refuse this one alone
            elif time.monotonic() >= until_s:
                break  # what was started has asked for the next look

    def tell(self, until_s: float) -> bool:
        """Write down what queued jobs wait for, until `until_s` (monotonic); tell whether there is more."""
        while self._untold and not self.closed:
            name, reason = self._untold.popitem()
            job = self._book.jobs.get(name)
            if job is None or job.state is not State.QUEUED:
                continue
            if not self._book.commit(replace(job, reason=reason)):
                self._untold.clear()
                self._retries.ask(_RETRY_REASONS_S)
            if time.monotonic() >= until_s:
                return bool(self._untold)
        return False

    def _with_gpus(self) -> bool:
        """Tell whether a job waits for GPUs, or has some; at first, whether there are any is to be found."""
        return bool(self._book.with_gpus) or not self._gpus.known
