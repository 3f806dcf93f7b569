"""The supervisor: gathers events, decides by the table, makes the record durable, then acts.

A turn for one job is `handle`: decide -> persist the record (events in its outbox) -> apply actions ->
append the events to the log. What cannot be made durable is not acted upon, and tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass

from runner.core.actions import Ask, Remove, Signal, Start, Wait
from runner.core.events import AnyEvent, Ended, Event, Reported, Sight, StartFailed
from runner.core.job import ACTIVE, SETTLED, Job, State
from runner.core.recovery import Adopt, Launch, Resume, recover
from runner.core.table import Decision, decide
from runner.storage import durable, eventlog, records
from runner.storage.layout import Home
from runner.supervisor import cgroups, confining, folders, notify, process
from runner.supervisor.arrivals import QUIET_S
from runner.supervisor.attempts import Attempts
from runner.supervisor.book import Book, moment
from runner.supervisor.broom import OTHERS_S, Broom
from runner.supervisor.ends import starved
from runner.supervisor.holding import hold
from runner.supervisor.intake import Inbox
from runner.supervisor.loop import Loop, Soon, Timer
from runner.supervisor.mirrors import Mirrors
from runner.supervisor.queue import Queue
from runner.supervisor.spare import Spares
from runner.supervisor.traces import beside
from runner.supervisor.vitals import Vitals

log = logging.getLogger(__name__)

#: Inotify loses events: how often to look by itself.
RESCAN_S = 5.0
#: How often the facts of running attempts are relayed.
RELAY_S = 0.25
#: After a folder event, how long to wait for more of them.
_SETTLE_S = 0.01
#: How long one turn goes on with what can wait: then come signals, ends, and what is new.
TURN_S = 0.02
#: After looking, so many times as long goes to the rest: a fifth of all time at most, however many folders
#: there are; but a few looks in a row may come at once.
_REST, _BURST_S = 4.0, 1.0
_RETRY_DISK_S = 1.0
#: At an attempt's end, how many more looks its facts get.
_LAST_READS = 64


@dataclass(frozen=True)
class Config:
    """How this supervisor runs."""

    drain_on_term: bool = True  #: on SIGTERM: let workers checkpoint and stop; else leave them training
    only: str | None = None  #: serve this one job, and end when it does
    follow_pid: int | None = None  #: drain when this process ends
    isolate: bool = False  #: keep every job from the files of others
    mirrors: bool = True  #: copy checkpoints to the jobs' mirrors, and fetch them from there


class Supervisor:
    """The daemon of one home."""

    def __init__(self, home: Home, config: Config) -> None:
        self.home = home
        self.config = config
        self._broom = Broom()
        self.book = Book(home, self._broom)
        self.loop = Loop()
        self.inbox = Inbox(self.book, self.handle, config.only)
        self.mirrors = Mirrors(home, self.loop, self.book, wanted=config.mirrors)
        self.spares = Spares(home, self.loop, self._note, isolate=config.isolate)
        how = self._attempt_ended, self.mirrors.must_fetch, self._caught_up
        self.attempts = Attempts(home, self.loop, *how, self.spares, isolate=config.isolate)
        self.vitals = Vitals(home, self.attempts, self.book)
        self.draining = False
        self.exec_again = False
        self._waits: dict[str, Timer] = {}
        self._looks = Soon(self.loop, self._look, _BURST_S)
        self._quiet_looks = Soon(self.loop, self._looks.ask)
        self._chores = Soon(self.loop, self._work)
        doors = self.handle, self._chores.ask, self.attempts.clear
        self.queue = Queue(self.loop, self.book, *doors, alone=config.only is not None)
        self.book.on_change = self.queue.ask
        self._relays: deque[str] = deque()
        self._locks: list[int] = []
        self._relaying = False

    # --- life ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the home until told to end.

        Raises:
            AlreadyRunningError: another supervisor serves it.
            UsageError: its jobs cannot be isolated from one another.
        """
        if self.config.isolate:
            confining.check(self.home)
        self.home.create()
        self._locks = hold(self.home, self.config.only)
        self.attempts.groups = cgroups.take(self.home, os.environ)
        self._hook_up()
        observer = folders.watch([self.home.jobs, self.home.requests], self.loop.wake)
        try:
            self._boot()
            notify.notify("READY=1", self._status_line())
            log.info("supervising %s: %s", self.home.root, self._status_line())
            self.loop.run()
            self.vitals.leave()
            self.spares.end()
            (self.mirrors.end if self.exec_again else self.mirrors.leave)()
        finally:
            observer.stop()
            observer.join()
            with contextlib.suppress(OSError):
                durable.remove(self.home.supervisor)
            self.loop.close()

    def _hook_up(self) -> None:
        loop = self.loop
        loop.on_signal(signal.SIGTERM, self._on_term)
        loop.on_signal(signal.SIGINT, self._on_term)
        loop.on_signal(signal.SIGHUP, self._on_hangup)
        loop.on_wake(lambda: self._looks.ask(_SETTLE_S))
        loop.every(RESCAN_S, self._look_around)
        watchdog_s = notify.watchdog_s()
        if watchdog_s:
            loop.every(watchdog_s / 3, lambda: notify.notify("WATCHDOG=1", self._status_line()))
        if self.config.follow_pid is not None:
            self._follow(os.pidfd_open(self.config.follow_pid))

    def _follow(self, pidfd: int) -> None:
        def gone() -> None:
            self.loop.forget(pidfd)
            self.drain()

        self.loop.on_readable(pidfd, gone)

    def _on_term(self) -> None:
        if self.draining or not self.config.drain_on_term:
            self.loop.stop()  # asked twice, or configured so: the shims see to the workers
        else:
            self.drain()

    def _on_hangup(self) -> None:
        """SIGHUP: a supervisor of one job lost its terminal; a daemon starts anew under the same pid."""
        if self.config.only is not None:
            self.drain()
        else:
            self.exec_again = True
            self.loop.stop()

    def drain(self) -> None:
        """Let every running attempt checkpoint and stop, start none, then end."""
        if self.draining:
            return
        self.draining = self.queue.closed = True
        self.spares.dismiss_all()
        notify.notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(self._longest_grace_s() * 1e6) + 10_000_000}")
        log.info("draining: %d running", len(self.attempts.live))
        for name in list(self.book.jobs):
            self._insist(name, Event(Sight.DRAIN))
        self._end_if_done()

    def _longest_grace_s(self) -> float:
        return max((self.book.jobs[name].spec.limits.grace_s for name in self.attempts.live), default=0.0)

    def _end_if_done(self) -> None:
        only = self.config.only
        if self.draining and not self.attempts.live:
            self.loop.stop()
        elif only is not None and not self.attempts.live:
            job = self.book.jobs.get(only)
            if only in self.book.refused or (job and job.state in SETTLED | {State.PAUSED}):
                self.loop.stop()

    def _status_line(self) -> str:
        counts = Counter(job.state for job in self.book.jobs.values())
        told = [f"{counts[state]} {state.value}" for state in State if state in counts]
        return "STATUS=" + (", ".join(told) or "no jobs")

    # --- boot ------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        identity = process.identify(os.getpid())
        if identity is not None:
            about = {"version": 1, "identity": identity.__dict__, "only": self.config.only}
            try:
                records.save_json(self.home.supervisor, about, durably=False)
            except OSError as error:  # people will not find us by it; the jobs are looked after all the same
                log.error("%s: cannot be written: %s", self.home.supervisor, error)
        if self.config.only is None:
            self._broom.sweep(self.home.state)
            self._broom.sweep(self.home.jobs, OTHERS_S)
            self._broom.sweep(self.home.requests, OTHERS_S)
        self.book.load_all(name for name in self.home.recorded() if self.config.only in {None, name})
        for name in list(self.book.jobs):
            self._recover(name)
        if self.attempts.groups is not None and self.config.only is None:
            self.attempts.groups.sweep({*self.attempts.live, *self.book.unread})
        # After SIGHUP: shims of ours that ended before we were ourselves again, and that nobody watches.
        with contextlib.suppress(ChildProcessError):
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                pass
        self._look_around()
        self._look()

    def _recover(self, name: str) -> None:
        job = self.book.jobs[name]
        found = beside(self.home, job)
        match recover(job, found):
            case None:
                pass
            case Adopt():
                self.attempts.adopt(job, (job.asked or Ask.STOP) if job.state is State.STOPPING else None)
                self._keep_relaying()
                self.book.note(name, "adopted")
            case Launch():
                self._apply(job, Start(job.attempt))
            case Resume(delay_s):
                self._waits[name] = self.loop.after(delay_s, lambda: self._backoff_over(name))
            case Ended() as unseen if found.ended is None:
                self.attempts.bury(job, unseen)
                self._keep_relaying()  # what does not die is told
            case Ended() | StartFailed() as event:
                self._attempt_ended(name, event)
            case Event() as event:
                self._insist(name, event)

    # --- one turn for one job --------------------------------------------------------------------------

    def handle(self, name: str, event: AnyEvent) -> Decision | None:
        """Decide, persist, act; None where the disk refused (then nothing was done)."""
        job = self.book.jobs[name]
        decision = decide(job, event, moment())
        if decision.job is not job and not self.book.commit(decision.job):
            return None
        for action in decision.actions:
            self._apply(decision.job, action)
        self.spares.heed(decision.job)
        if decision.job is not job and name in self.book.jobs:
            self.book.log_events(decision.job)
        if decision.job.state is not job.state:
            log.info("%s: %s %s", name, decision.job.state.value, decision.job.reason)
        return decision

    def _insist(self, name: str, event: AnyEvent) -> None:
        """Handle what must not be lost, again and again while the disk refuses."""
        if name in self.book.jobs and self.handle(name, event) is None:
            self.loop.after(_RETRY_DISK_S, lambda: self._insist(name, event))
        else:
            self._end_if_done()

    def _apply(self, job: Job, action: Start | Signal | Wait | Remove) -> None:
        self._cancel_wait(job.name)
        match action:
            case Start() if self.draining:
                log.info("%s: left for the next supervisor to start", job.name)
            case Start():
                self.attempts.start(job)
                self._keep_relaying()
            case Signal(ask):
                self.attempts.ask(job.name, ask)
            case Wait(delay_s):
                self._waits[job.name] = self.loop.after(delay_s, lambda: self._backoff_over(job.name))
            case Remove():
                self.spares.forget(job.name)
                self.book.remove(job.name)

    def _cancel_wait(self, name: str) -> None:
        timer = self._waits.pop(name, None)
        if timer is not None:
            timer.cancel()

    # --- what happens ----------------------------------------------------------------------------------

    def _attempt_ended(self, name: str, ended: Ended | StartFailed, reads: int = _LAST_READS) -> None:
        """Take over the last facts, a few a turn, and then the end; a flood of them is cut off."""
        if self._relay_job(name) and reads > 0:
            self.loop.after(0.0, lambda: self._attempt_ended(name, ended, reads - 1))
        else:
            job = self.book.jobs[name]
            reason = starved(self.home.job(name).attempt(job.attempt))
            if reason is not None and job.state in ACTIVE:
                self.book.note(name, "out-of-memory", reason=reason)
            if isinstance(ended, Ended) and ended.warning and job.state in ACTIVE:
                self.book.note(name, "warning", message=ended.warning)
            self._insist(name, ended)

    def _note(self, name: str, event: str, **details: object) -> None:
        """Record a fact in a turn of its own, where the job is still there."""

        def note() -> None:
            if name in self.book.jobs:
                self.book.note(name, event, **details)

        self.loop.after(0.0, note)

    def _backoff_over(self, name: str) -> None:
        self._waits.pop(name, None)
        self._insist(name, Event(Sight.BACKOFF_OVER))

    def _keep_relaying(self) -> None:
        """Look at the live attempts now and then, for as long as there are any."""
        if not self._relaying:
            self._relaying = True
            self.loop.after(RELAY_S, self._relay)

    def _relay(self) -> None:
        """Take over what the workers reported, and see whether they are well; of many, a few a turn."""
        self._relaying = False
        until_s = time.monotonic() + TURN_S
        self._relays = self._relays or deque(self.attempts.live)
        while self._relays and time.monotonic() < until_s:
            self._relay_live(self._relays.popleft())
        if self._relays:
            self._relaying = True
            self.loop.after(0.0, self._relay)
        elif self.attempts.live:
            self._keep_relaying()
        self.mirrors.tend()

    def _relay_live(self, name: str) -> None:
        if name in self.attempts.live:
            self._relay_job(name)
        if name in self.attempts.live and (limit := self.vitals.check(self.book.jobs[name])):
            self.handle(name, limit)
        self._tell_stuck(name)

    def _tell_stuck(self, name: str) -> None:
        """Say what keeps an attempt from its end, as what does not die: its job keeps its place."""
        attempt = self.attempts.live.get(name)
        stuck = self.attempts.newly_stuck(attempt) if attempt is not None else ""
        if stuck:
            log.error("%s: %s", name, stuck)
            self.book.note(name, "stuck", reason=stuck)

    def _relay_job(self, name: str) -> bool:
        """Take over some of what the attempt reported; tell whether there may be more."""
        job = self.book.jobs.get(name)
        if job is None or job.state not in ACTIVE:
            return False
        live = self.attempts.live.get(name)
        paths = live.paths if live is not None else self.home.job(name).attempt(job.attempt)
        facts, read = eventlog.read_from(paths.facts, job.facts_read)
        return read != job.facts_read and self.handle(name, Reported(tuple(facts), read)) is not None

    def _caught_up(self, name: str) -> Job | None:
        """Return the job's record with all that its attempt reported in it; None where the disk refuses."""
        while self._relay_job(name):
            pass
        job = self.book.jobs[name]
        facts = self.home.job(name).attempt(job.attempt).facts
        return (
            job
            if not os.access(facts, os.F_OK) or eventlog.read_from(facts, job.facts_read)[1] == job.facts_read
            else None
        )

    # --- what comes in ---------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Look whether something was missed, or can be done now that could not."""
        for name in list(self.book.postponed):
            self.book.load(name)
            if name in self.book.jobs:
                self._recover(name)
        self._looks.ask()
        self.queue.tend()
        self.mirrors.tend()

    def _look(self) -> None:
        """Look through jobs/ and the requests; what is found is dealt with a little a turn."""
        for name in self.attempts.holders():
            if name not in self.book.jobs or self.book.jobs[name].state in SETTLED:
                self.attempts.drop_memory(name)
        began = time.monotonic()
        self.inbox.find()
        self._looks.rest(_REST * (time.monotonic() - began))
        self._work()

    def _work(self) -> None:
        """Do for a moment what has come in; what is left has its next turn after all that is more urgent."""
        until_s = time.monotonic() + TURN_S
        if self.inbox.work(until_s) or self.queue.tell(until_s):
            self._chores.ask()
        elif self.inbox.writing:
            self._quiet_looks.ask(QUIET_S / 2)
        self._end_if_done()
