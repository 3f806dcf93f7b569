"""When a job that reports progress has made none for too long.

The limit is the job's own (`limits.startup` before the first step, `limits.hang` after it). For "auto" it is
learned: a factor above the longest pause seen in this attempt, never below a floor. Time is what the
supervisor's own monotonic clock saw while the worker was able to run, so a slow supervisor, a suspended
machine or a stopped worker never counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from runner.core.spec import LimitsSpec

#: Learned limits never go below this.
FLOOR_S = 300.0
#: ... and are this many times the longest pause between two signs of progress.
FACTOR = 20.0


@dataclass(frozen=True)
class Pulse:
    """What was seen of one attempt's progress; times are the supervisor's monotonic seconds."""

    seen_at: float
    mark: str = ""  #: what changes with every sign of progress
    idle_s: float = 0.0  #: seconds able to run since the last change
    longest_s: float = 0.0  #: the longest such pause that ended by itself
    stepped: bool = False


def observe(pulse: Pulse, now: float, mark: str, *, stepped: bool, runnable: bool) -> Pulse:
    """Take in one look at the attempt; `runnable` is false while it is stopped or the machine was asleep."""
    passed = max(0.0, now - pulse.seen_at) if runnable else 0.0
    idle_s = pulse.idle_s + passed
    if mark != pulse.mark:
        longest_s = max(pulse.longest_s, idle_s) if pulse.stepped else pulse.longest_s
        return Pulse(now, mark, 0.0, longest_s, pulse.stepped or stepped)
    return replace(pulse, seen_at=now, idle_s=idle_s)


def limit_s(pulse: Pulse, limits: LimitsSpec, *, after: bool = False) -> float:
    """Seconds without progress after which the attempt counts as hung.

    Args:
        pulse: what was seen.
        limits: the job's.
        after: training is over, and the script does what nobody has seen before.
    """
    if not pulse.stepped:
        return limits.startup_s
    if limits.hang_s is not None:
        return limits.hang_s
    return max(FLOOR_S, FACTOR * pulse.longest_s, limits.startup_s if after else 0.0)


def hangs(pulse: Pulse, limits: LimitsSpec, *, after: bool = False) -> str | None:
    """Say in one line that the attempt hangs; None while it does not."""
    allowed_s = limit_s(pulse, limits, after=after)
    if math.isinf(allowed_s) or pulse.idle_s <= allowed_s:
        return None
    which = "limits.hang" if pulse.stepped else "limits.startup"
    return f"no progress for {pulse.idle_s:.0f} s ({which} allows {allowed_s:.0f} s)"
