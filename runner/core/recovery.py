"""At boot: what a record and the facts found beside it mean, as events for `decide`.

The truth about an attempt is its lock and its outcome: the shim holds the job's lock as long as anything of
the attempt may live, and writes the outcome before it lets go. So an active record means
lock held: still running, re-adopt it; outcome there: it ended so; neither: nobody saw the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from runner.core.events import Ended, Event, Sight
from runner.core.job import ACTIVE, Job, State


@dataclass(frozen=True)
class Found:
    """What lies beside a record: is its lock held, and how its newest attempt ended, if that was written."""

    locked: bool
    ended: Ended | None = None
    rebooted: bool = False


@dataclass(frozen=True)
class Adopt:
    """The attempt lives: watch it, and ask it again for what was asked of it."""


@dataclass(frozen=True)
class Resume:
    """Wait out the backoff again."""

    delay_s: float


Recovered: TypeAlias = Adopt | Resume | Ended | Event | None


def recover(job: Job, found: Found) -> Recovered:
    """Say what must happen to `job` so that the supervisor can go on with it."""
    if job.state in ACTIVE:
        if found.ended is not None:
            return found.ended
        if found.locked:
            return Adopt()
        reason = "the machine went down" if found.rebooted else "its shim was gone; nobody saw the end"
        return Ended(rebooted=found.rebooted, reason=reason)
    if job.state is State.BACKOFF:
        return Resume(job.backoff_s) if job.backoff_s > 0 else Event(Sight.BACKOFF_OVER)
    return None
