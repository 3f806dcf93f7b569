"""After an attempt has ended: run again at once, run again later, or give up, and why.

The budget is charged only where the durable step did not advance since the last end; preemption and drain
are never charged. Backoff is exponential with jitter, and only where no progress was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from runner.core.job import Job, Outcome
from runner.core.spec import RestartSpec

#: EX_TEMPFAIL: try again, not charged.
EXIT_RETRY = 75
#: EX_CONFIG: bad configuration, trying again is useless.
EXIT_CONFIG = 78
#: Permanent failure (s6).
EXIT_PERMANENT = 125
_NEVER_RETRIED = {EXIT_CONFIG: "bad configuration", EXIT_PERMANENT: "permanent failure"}
_OWN_ENDS = frozenset({Outcome.FAILED, Outcome.CRASHED})
_UNCHARGED = frozenset({Outcome.PREEMPTED, Outcome.STOPPED})


@dataclass(frozen=True)
class Again:
    """Run again after `delay_s` seconds; the counters as they are then."""

    delay_s: float
    charged: int
    fruitless: int


@dataclass(frozen=True)
class GiveUp:
    """Do not run again."""

    reason: str


Verdict: TypeAlias = Again | GiveUp


def judge(job: Job, outcome: Outcome, exit_code: int | None, jitter: float, *, rebooted: bool) -> Verdict:
    """Decide what follows an attempt that did not succeed.

    Args:
        job: the record, with the facts of the attempt already in it.
        outcome: how the attempt ended.
        exit_code: the worker's own exit code, where it had one.
        jitter: a random number in [0, 1).
        rebooted: the machine went down under the attempt, which is not the job's fault.
    """
    spec = job.spec.restart
    if outcome in _OWN_ENDS and exit_code in spec.fatal_exit_codes:
        return GiveUp(f"exit code {exit_code} is in restart.fatal_exit_codes; see the log")
    if outcome is Outcome.FAILED and exit_code is not None and exit_code in _NEVER_RETRIED:
        return GiveUp(f"exit code {exit_code} ({_NEVER_RETRIED[exit_code]}) is never retried; see the log")
    if job.durable_step > max(job.mark_step, 0):
        return Again(0.0, charged=0, fruitless=0)
    charged = job.charged + (0 if rebooted or outcome in _UNCHARGED else 1)
    if charged > spec.budget:
        last = f"exit code {exit_code}" if outcome is Outcome.FAILED else outcome.value
        return GiveUp(
            f"{charged} attempts ended without a newer checkpoint (restart.budget = {spec.budget}); "
            f"the last: {last}; see the log"
        )
    fruitless = 0 if rebooted else job.fruitless + 1
    return Again(backoff_s(spec, fruitless, jitter), charged, fruitless)


def backoff_s(spec: RestartSpec, fruitless: int, jitter: float) -> float:
    """Seconds to wait after `fruitless` ends in a row without progress; 0 for none.

    Exponential between the two bounds; the last half of each delay is scattered by `jitter` in [0, 1), so
    that jobs that failed together do not return together ("equal jitter").
    """
    if fruitless <= 0:
        return 0.0
    full = min(spec.backoff_max_s, spec.backoff_min_s * 2.0 ** min(fruitless - 1, 62))
    return full * (0.5 + 0.5 * jitter)
