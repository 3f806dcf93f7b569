"""At boot: what a record and the facts found beside it mean, as events for `decide`.

The truth about an attempt is its lock and its outcome: the shim holds the job's lock as long as anything of
the attempt may live, and writes the outcome before it lets go. So an active record means
outcome there: it ended so; lock held: it still runs, re-adopt it; another boot: the machine went down,
whatever else a power cut has left; no shim ever: start it now, unless it was to stop; none of these: nobody
saw the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from runner.core.events import Ended, Event, Sight, StartFailed
from runner.core.job import ACTIVE, Job, State
from runner.core.restart import EXIT_RETRY


@dataclass(frozen=True)
class Found:
    """What lies beside a record.

    `locked`: its lock is held; `started`: its newest attempt got as far as a shim that wrote its identity;
    `ended`: how that attempt ended, if that was written; `rebooted`: it was begun in an earlier boot.
    """

    locked: bool
    started: bool = True
    ended: Ended | StartFailed | None = None
    rebooted: bool = False


@dataclass(frozen=True)
class Adopt:
    """The attempt lives: watch it, and ask it again for what was asked of it."""


@dataclass(frozen=True)
class Resume:
    """Wait out the backoff again."""

    delay_s: float


@dataclass(frozen=True)
class Launch:
    """The record says that the attempt starts, and the supervisor died before it did: start it."""


Recovered: TypeAlias = Adopt | Launch | Resume | Ended | StartFailed | Event | None


def recover(job: Job, found: Found) -> Recovered:
    """Say what must happen to `job` so that the supervisor can go on with it."""
    if job.state in ACTIVE:
        if found.ended is not None:
            return found.ended
        if found.locked:
            return Adopt()
        if found.rebooted:
            return Ended(rebooted=True, reason="the machine went down")
        if not found.started and job.state is State.RUNNING:
            return Launch()
        if not found.started:
            reason = "it was asked to end before it had started"
            return Ended(exit_code=EXIT_RETRY, asked=True, reason=reason)
        return Ended(reason="its shim was gone; nobody saw the end")
    if job.state is State.BACKOFF:
        return Resume(job.backoff_s) if job.backoff_s > 0 else Event(Sight.BACKOFF_OVER)
    return None
