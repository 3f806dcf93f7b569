"""When an attempt has shown no work for too long.

An attempt gives two signals of life. Work: it came to another step or phase, or set anything else in its
progress. A heartbeat: its Python can run, which its watcher thread shows once a second. Third, the supervisor
sees whether it is able to run at all. `CONDITIONS` says what the three mean together, `limit_s` how long
that may last: a limit of the job's own (`limits.startup` before the first step, `limits.hang` after it), or
one for the phase that is learned from the longest pause in it that ended by itself, in this attempt or an
earlier one of the same job. Where an attempt hangs before its first step, and the job has no limit of its own
for that, the next attempt has twice as long: the first steps of some take their time, and show no work.

Time is what the supervisor's own monotonic clock saw, which stands still while the machine is suspended, and
no look at an attempt counts for more than a second. So a slow or stopped supervisor, a suspended machine, a
stopped worker or a changed clock never make a hang; they only let one be found later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from runner.core.spec import LimitsSpec

#: The most that one look at an attempt can add to its idle time: what lay before was not seen.
LOOK_S_MAX = 1.0
#: A learned limit is this many times the longest pause: steps may differ a hundredfold ...
FACTOR = 100.0
#: ... but of long pauses no more than five times as long, and this much.
_OF_LONG, _BEYOND_S = 5.0, 7200.0
#: A shorter pause makes no learned limit longer than the shortest floor.
_TEACHES_S = 3.0
#: A heartbeat comes every second; after so many none does.
_BEATS_S = 5.0
#: Time spent waiting for a processor counts from so many limits on.
STARVED_LIMITS = 10.0


class Ability(StrEnum):
    """Whether an attempt could do anything since the last look."""

    RUNS = "runs"
    HELD = "held"  #: stopped, traced or frozen by somebody
    STARVED = "starved"  #: it would have run, but others had the processors


class Condition(StrEnum):
    """What the signals mean together."""

    WORKING = "working"
    IDLE = "idle"  #: alive, and does not get on: a hang when it lasts beyond the phase's limit
    SILENT = "silent"  #: not even Python runs: a long call into native code, or a hang; it has longer
    WAITING = "waiting"  #: for a processor: a hang only after many limits
    HELD = "held"  #: never a hang


#: (able to, work was seen, a heartbeat was seen) -> what it is.
CONDITIONS: dict[tuple[Ability, bool, bool], Condition] = {
    (Ability.RUNS, True, True): Condition.WORKING,
    (Ability.RUNS, True, False): Condition.WORKING,
    (Ability.RUNS, False, True): Condition.IDLE,
    (Ability.RUNS, False, False): Condition.SILENT,
    (Ability.STARVED, True, True): Condition.WORKING,
    (Ability.STARVED, True, False): Condition.WORKING,
    (Ability.STARVED, False, True): Condition.WAITING,
    (Ability.STARVED, False, False): Condition.WAITING,
    (Ability.HELD, True, True): Condition.WORKING,
    (Ability.HELD, True, False): Condition.WORKING,
    (Ability.HELD, False, True): Condition.HELD,
    (Ability.HELD, False, False): Condition.HELD,
}


@dataclass(frozen=True)
class Patience:
    """How long nothing may be seen to happen: before any pause is known, and in any case."""

    first_s: float
    floor_s: float


#: Phases before the first step; `limits.startup` is both of theirs. "" is before any was reported.
STARTUP = frozenset({"", "import", "build", "trace"})
#: A heartbeat's own pauses are learned as if it were a phase.
SILENCE = "silence"
#: Any other phase, which a script may have made up.
OTHER = "other"
PATIENCE: dict[str, Patience] = {
    "train": Patience(1800.0, 300.0),
    "validate": Patience(7200.0, 600.0),
    "callbacks": Patience(7200.0, 1800.0),
    "save": Patience(3600.0, 600.0),
    "after": Patience(7200.0, 7200.0),  # the script's own code: what is quick after one fit may not be later
    SILENCE: Patience(3600.0, 1800.0),
    OTHER: Patience(1800.0, 300.0),
}
#: What attempts are allowed before the first step since one hung there; kept beside the pauses, bounded.
STARTUP_LIMIT = "limits.startup"
_STARTUP_S_MAX = 7200.0
_PHASES = frozenset(PATIENCE) | STARTUP
#: What `Job.pace` may hold.
PACED = _PHASES - {""} | {STARTUP_LIMIT}


@dataclass(frozen=True)
class Look:
    """One look at an attempt."""

    now: float  #: the supervisor's monotonic seconds
    mark: str = ""  #: what changes with every sign of work
    phase: str = ""
    beat: str | None = None  #: what changes with every heartbeat; None: none is promised
    idle_s: float = 0.0  #: how old the newest work was when it was told
    ability: Ability = Ability.RUNS


@dataclass(frozen=True)
class Pulse:
    """What was seen of one attempt."""

    seen_at: float
    mark: str = ""
    phase: str = ""
    beat: str | None = None
    idle_s: float = 0.0  #: seconds able to run since the last work
    silent_s: float = 0.0  #: ... since the last heartbeat
    starved_s: float = 0.0  #: seconds spent waiting for a processor since the last work
    pace: Mapping[str, float] = field(default_factory=dict)  #: the longest pauses that ended by themselves


def observe(pulse: Pulse, look: Look) -> Pulse:
    """Take in one look at the attempt."""
    passed_s = min(max(0.0, look.now - pulse.seen_at), LOOK_S_MAX)
    works, beats = look.mark != pulse.mark, look.beat != pulse.beat
    condition = CONDITIONS[look.ability, works, beats]
    able_s = 0.0 if condition in {Condition.HELD, Condition.WAITING} else passed_s
    idle_s, silent_s, pace = pulse.idle_s + able_s, pulse.silent_s + able_s, pulse.pace
    if works or beats or look.beat is None:
        pace = _longer(pace, SILENCE, silent_s) if pulse.beat is not None else pace
        silent_s = 0.0
    starved_s = pulse.starved_s + (passed_s if condition is Condition.WAITING else 0.0)
    if works:  # the pause belongs to the phase in which it was spent
        pace = _longer(pace, _kind(pulse.phase), idle_s)
        idle_s, starved_s = min(look.idle_s, passed_s), 0.0
    return Pulse(look.now, look.mark, look.phase, look.beat, idle_s, silent_s, starved_s, pace)


def limit_s(phase: str, limits: LimitsSpec, pace: Mapping[str, float]) -> float:
    """Seconds without work after which an attempt counts as hung, in a phase; for `SILENCE`, without a beat.

    Args:
        phase: in which it is.
        limits: the job's.
        pace: the longest pauses that are known.
    """
    patience, longest_s = PATIENCE.get(_kind(phase)), pace.get(_kind(phase))
    if patience is None:  # before the first step
        own = limits.startup_s != LimitsSpec.startup_s
        startup_s = limits.startup_s if own else max(limits.startup_s, pace.get(STARTUP_LIMIT, 0.0))
        if phase == "":  # a command may never report, and not know how
            return max(startup_s, limits.hang_s or 0.0)
        return startup_s if own or longest_s is None else max(startup_s, _learned_s(longest_s))
    if limits.hang_s is not None:
        return limits.hang_s
    if longest_s is None:
        return max(patience.first_s, limits.startup_s) if phase == "after" else patience.first_s
    return max(patience.floor_s, _learned_s(longest_s))


def hangs(pulse: Pulse, limits: LimitsSpec, pace: Mapping[str, float]) -> str | None:
    """Say in one line that the attempt hangs; None while it does not.

    Args:
        pulse: what was seen of it.
        limits: the job's.
        pace: the longest pauses of the job's earlier attempts.
    """
    known = merged(pace, pulse.pace)
    allowed_s = limit_s(pulse.phase, limits, known)
    if math.isinf(allowed_s):
        return None
    idle_s = _idle_s(pulse, allowed_s)
    if idle_s <= allowed_s:
        return None
    which = "limits.startup" if _kind(pulse.phase) in STARTUP else "limits.hang"
    where = f" in {pulse.phase}" if pulse.phase else ""
    alive = ""
    if pulse.beat is not None:
        alive = ", though its Python runs" if pulse.silent_s <= _BEATS_S else ", nor does its Python run"
        if _is_learned(pulse.phase, limits) and _BEATS_S < pulse.silent_s <= limit_s(SILENCE, limits, known):
            return None  # a long call into native code
    more_s = lengthened(pulse, limits, pace).get(STARTUP_LIMIT)
    longer = f", the next attempt {more_s:.0f} s" if more_s is not None else ""
    return f"no progress for {idle_s:.0f} s{where}{alive} ({which} allows {allowed_s:.0f} s{longer})"


def lengthened(pulse: Pulse, limits: LimitsSpec, pace: Mapping[str, float]) -> dict[str, float]:
    """Return what an attempt that hangs adds to the job's pace: a longer limit before the first step."""
    hang_counts = pulse.phase == "" and limits.hang_s is not None
    if _kind(pulse.phase) not in STARTUP or not _is_learned(pulse.phase, limits) or hang_counts:
        return {}
    allowed_s = limit_s(pulse.phase, limits, merged(pace, pulse.pace))
    longer_s = min(2.0 * int(_idle_s(pulse, allowed_s)), _STARTUP_S_MAX)
    return {STARTUP_LIMIT: longer_s} if longer_s > allowed_s else {}


def _idle_s(pulse: Pulse, allowed_s: float) -> float:
    """Seconds without work, of those spent waiting for a processor what is beyond many limits."""
    return pulse.idle_s + max(0.0, pulse.starved_s - STARVED_LIMITS * allowed_s)


def closely(pulse: Pulse, limits: LimitsSpec, pace: Mapping[str, float]) -> float:
    """Return what part of its limit the attempt has been idle for: from 1 on it hangs."""
    allowed_s = limit_s(pulse.phase, limits, merged(pace, pulse.pace))
    return (pulse.idle_s + pulse.starved_s) / allowed_s if allowed_s > 0 else 1.0


def merged(pace: Mapping[str, float], newer: Mapping[str, float]) -> dict[str, float]:
    """Return the longer pause of each phase; bounded, as there are only so many phases."""
    phases = sorted((pace.keys() | newer.keys()) & PACED)
    return {phase: max(pace.get(phase, 0.0), newer.get(phase, 0.0)) for phase in phases}


def teaches(pace: Mapping[str, float], seen: Mapping[str, float]) -> bool:
    """Tell whether pauses were seen that are worth keeping at once: a successor would know far shorter ones.

    Each must be twice as long as any that is known, so that however long an attempt, there are few.
    """
    return any(
        seen_s >= _TEACHES_S and seen_s >= 2 * pace.get(phase, 0.0)
        for phase, seen_s in seen.items()
        if phase in PACED
    )


def _is_learned(phase: str, limits: LimitsSpec) -> bool:
    if _kind(phase) in STARTUP:
        return limits.startup_s == LimitsSpec.startup_s
    return limits.hang_s is None


def _learned_s(longest_s: float) -> float:
    return min(FACTOR * longest_s, _OF_LONG * longest_s + _BEYOND_S)


def _kind(phase: str) -> str:
    return phase if phase in _PHASES else OTHER


def _longer(pace: Mapping[str, float], phase: str, pause_s: float) -> Mapping[str, float]:
    return pace if phase == "" or pause_s <= pace.get(phase, 0.0) else {**pace, phase: pause_s}
