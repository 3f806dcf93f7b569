"""The book of jobs: every record in memory as it is on disk, and the only hand that writes either.

`commit` makes a record durable before anything may act on it. The events of a revision are in the record's
outbox, so that they reach events.jsonl exactly once, whatever happens in between.
"""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from runner.core.job import ACTIVE, Job, Moment, State
from runner.core.reports import MIRROR_FACTS
from runner.core.table import publish
from runner.errors import UnreadableRecordError
from runner.storage import durable, eventlog, records
from runner.storage.layout import Home, attempt_numbers
from runner.supervisor import process
from runner.supervisor.broom import Broom

log = logging.getLogger(__name__)


def moment() -> Moment:
    """Return the time and a random number, for a decision."""
    iso = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Moment(iso, random.random(), time.monotonic(), process.boot_id())


class Book:
    """The records of a home's jobs."""

    def __init__(self, home: Home, broom: Broom) -> None:
        self.home = home
        self._broom = broom
        self.jobs: dict[str, Job] = {}
        self.refused: set[str] = set()  #: names whose record cannot be read: left alone, loudly
        self.postponed: set[str] = set()  #: names whose record the disk did not give us: to be tried again
        self.mirrored: set[str] = set()  #: names of the jobs that have a mirror
        self.with_gpus: set[str] = set()  #: names of the jobs that wait for GPUs, or have some
        self.on_change: Callable[[], None] = _nothing  #: called when what is queued, or active, is another
        self._order = 0
        self._unsaved: dict[str, str] = {}  #: what the disk refused last, of whom

    def knows(self, name: str) -> bool:
        """Tell whether the name stands for something."""
        return name in self.jobs or name in self.refused or name in self.postponed

    @property
    def unread(self) -> set[str]:
        """Names whose record was not read: nobody here knows of their attempts, which are left alone too."""
        return self.refused | self.postponed

    def next_order(self) -> int:
        """Return a place in the queue behind all that were given out."""
        self._order += 1
        return self._order

    def _put(self, job: Job) -> None:
        """Have `job` be what the book says from now on."""
        previous = self.jobs.get(job.name)
        self.jobs[job.name] = job
        if previous is not None and previous.state is job.state and previous.spec is job.spec:
            if previous.checkpoint is None and job.checkpoint is not None:
                self.on_change()  # from now on it may be asked to make room
            return
        self._order = max(self._order, job.order)
        (self.mirrored.discard if job.spec.checkpoint.mirror is None else self.mirrored.add)(job.name)
        concerned = job.spec.resources.gpus and (job.state is State.QUEUED or job.state in ACTIVE)
        (self.with_gpus.add if concerned else self.with_gpus.discard)(job.name)
        self.on_change()

    def load_all(self, names: Iterable[str]) -> None:
        """Read records, of which thousands may stay: the collector of garbage leaves them alone.

        It would find none in them, and hold up all else for a tenth of a second each time.
        """
        gc.disable()
        try:
            for name in names:
                self.load(name)
        finally:
            gc.freeze()
            gc.enable()

    def load(self, name: str) -> None:
        """Read a record; one that cannot be read is refused, never replaced."""
        paths = self.home.job(name)
        try:
            job = records.load_job(paths.record)
            eventlog.append(paths.events, job.outbox)
        except UnreadableRecordError as error:
            self.postponed.discard(name)
            self.refused.add(name)
            log.error("%s", error)
        except OSError as error:
            self.postponed.add(name)
            log.error("%s: cannot load it: %s; trying again", name, error)
        else:
            self.postponed.discard(name)
            newest = max(attempt_numbers(paths.attempts), default=0)
            self._put(job if newest <= job.folders else replace(job, folders=newest))

    def commit(self, job: Job) -> bool:
        """Make the record durable; False where the disk refused, and then the old one stands."""
        previous = self.jobs.get(job.name)
        if previous is not None and not self.log_events(previous):
            return False  # its outbox must reach the log before it is replaced
        try:
            if previous is not None:
                self.home.job(job.name).dir.stat()  # where it is gone with its disk, none is made elsewhere
            records.save_job(self.home.job(job.name).record, job)
        except OSError as error:
            self._say_refused(job.name, f"cannot save its record: {error}")
            return False
        self._say_taken(job.name)
        self._put(job)
        return True

    def _say_refused(self, name: str, what: str) -> None:
        """Log what the disk refuses, once for as long as it does so in the same words."""
        if self._unsaved.get(name) != what:
            self._unsaved[name] = what
            log.error("%s: %s; trying again", name, what)

    def _say_taken(self, name: str) -> None:
        if self._unsaved.pop(name, None):
            log.info("%s: its record is saved again", name)

    def log_events(self, job: Job) -> bool:
        """Append the record's outbox to the event log; False where the disk refused."""
        try:
            eventlog.append(self.home.job(job.name).events, job.outbox)
        except OSError as error:
            self._say_refused(job.name, f"cannot append to its event log: {error}")
            return False
        if job.outbox and self.jobs.get(job.name) is job:
            self.jobs[job.name] = replace(job, outbox=())
        return True

    def note(self, name: str, event: str, **details: object) -> None:
        """Record a fact that changes nothing else; a disk that refuses loses it, and says so."""
        job = publish(replace(self.jobs[name], outbox=()), moment(), event, **details)
        if self.commit(job):
            self.log_events(job)

    def learn(self, name: str, pace: Mapping[str, float]) -> None:
        """Record what an attempt's pauses have taught so far; what the disk refuses is lost."""
        job = self.jobs[name]
        learnt = replace(job.paced(pace), outbox=())
        if learnt.pace != job.pace:
            self.commit(learnt)

    def relay(self, name: str, facts: list[dict[str, Any]], read: int) -> None:
        """Record what the job's mirror reported, once each; `read` is how far that was read."""
        job = replace(self.jobs[name], outbox=(), mirror_read=read)
        for fact in facts:
            kind = str(fact.get("event"))
            job = publish(job, moment(), kind if kind in MIRROR_FACTS else "note", **fact)
        if self.commit(job):
            self.log_events(job)

    def remove(self, name: str) -> None:
        """Forget a job: its folder and its state are renamed, to be swept away.

        What the disk refuses to rename keeps the job known.
        """
        try:
            for folder in self.home.submitted_as(name):
                self._broom.delete(durable.bury(folder))
            self._broom.delete(durable.bury(self.home.job(name).dir))
        except OSError as error:
            log.error("%s: cannot be removed: %s", name, error)
            if name in self.jobs:
                self.note(name, "refused", verb="rm", reason=f"cannot be removed: {error}")
        else:
            self.jobs.pop(name, None)
            self.refused.discard(name)
            self.mirrored.discard(name)
            self.with_gpus.discard(name)
            self.on_change()


def _nothing() -> None:
    """Do nothing."""
