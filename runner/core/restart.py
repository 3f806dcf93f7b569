"""After an attempt has ended: run again at once, run again later, or give up, and why.

The budget is charged only where the durable step did not advance since the last end; preemption and drain
are never charged, whatever code the worker answers them with, but for one that is final. Exit codes mean
what the job's own lists say, else what the contract says. Backoff is exponential with jitter, and only where
no progress was made.

The same failure at the same step twice, or the same fault (SIGSEGV, say) after two resumes from the same
step, may come from what was saved: the next attempt resumes from an older checkpoint. If the same failure
follows again, the job has failed; so has one that has never trained and fails twice in the same way as it
starts, from a cause that time does not mend. One that has trained was able to start: what keeps it from that
now, such as a disk that is not mounted yet, is left to the budget, and so are faults.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from runner.core.failure import NOT_FINITE, TIMES_MAX, Failure, Retreat
from runner.core.job import TOLD, Job, Outcome
from runner.core.spec import Nan, RestartSpec

#: EX_TEMPFAIL: try again, not charged.
EXIT_RETRY = 75
#: EX_CONFIG: bad configuration, trying again is useless.
EXIT_CONFIG = 78
#: Permanent failure (s6).
EXIT_PERMANENT = 125
_NEVER_RETRIED = {EXIT_CONFIG: "bad configuration", EXIT_PERMANENT: "permanent failure"}
#: Signals by which a process dies of what it does itself.
_FAULTS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"})
_OWN_ENDS = frozenset({Outcome.FAILED, Outcome.CRASHED, Outcome.OUT_OF_MEMORY})
_UNCHARGED = frozenset({Outcome.PREEMPTED, Outcome.STOPPED})


@dataclass(frozen=True)
class Again:
    """Run again after `delay_s` seconds; the counters as they are then."""

    delay_s: float
    charged: int
    fruitless: int
    retreat: Retreat | None = None  #: how it resumes, if not as usual


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
    if outcome is Outcome.FAILED and exit_code is not None and is_final(spec, exit_code):
        return GiveUp(f"exit code {exit_code} ({_NEVER_RETRIED[exit_code]}) is never retried; see the log")
    counts = outcome in TOLD and exit_code not in spec.retry_exit_codes
    failure = job.current.failure if job.current is not None and counts else None
    if failure is not None and failure.kind == NOT_FINITE:
        return _not_finite(job, failure)
    times = _times_in_a_row(job.failures, failure) if failure is not None else 0
    if failure is not None and times >= failure.times_max and (failure.started or not job.has_trained):
        return GiveUp(_same_again(job, failure, times))
    verdict = _by_budget(job, outcome, exit_code, jitter, rebooted=rebooted)
    if isinstance(verdict, Again):
        if failure is not None and failure.started and times == TIMES_MAX - 1:
            return replace(verdict, retreat=_escape(job, failure.text))
        if _crashed_alike(job):
            return replace(verdict, retreat=_escape(job, f"{job.attempts[-1].signal}, and nothing saved"))
    return verdict


def is_final(spec: RestartSpec, exit_code: int | None) -> bool:
    """Tell whether a job is over for good where its worker has ended by that code; its own lists go first."""
    if exit_code in spec.fatal_exit_codes:
        return True
    return exit_code in _NEVER_RETRIED and exit_code not in spec.retry_exit_codes


def _times_in_a_row(failures: Sequence[Failure | None], failure: Failure) -> int:
    """Return how many times the newest failure has come in a row.

    What ended otherwise does not break the row: the failure has its step. One that came before training has
    none; an attempt that got further breaks its row.
    """
    row = [one for one in failures if one is not None] if failure.started else failures
    return sum(1 for _ in itertools.takewhile(lambda one: one == failure, reversed(row)))


def _same_again(job: Job, failure: Failure, times: int) -> str:
    if not failure.started:
        return f"it fails as it starts, {times} times the same: {failure.text}; see the log"
    started_from = [one.start_step for one in job.attempts if one.failure == failure]
    older = ", also from an older checkpoint" if started_from[-1] < max(started_from) else ""
    return f"the same failure {times} times at step {failure.step}{older}: {failure.text}; see the log"


def _crashed_alike(job: Job) -> bool:
    """Tell whether the last two attempts resumed from the same step, and died there by the same fault."""
    two = [
        (one.signal, one.start_step)
        for one in job.since_asked[-2:]
        if one.outcome is Outcome.CRASHED and one.resumed_at is not None
    ]
    return len(two) == 2 and two[0] == two[1] and two[0][0] in _FAULTS and job.durable_step <= two[0][1]


def _escape(job: Job, what: str) -> Retreat | None:
    """Return the way past a checkpoint that may itself be the cause of `what`; None where there was none."""
    started_from = job.current.start_step if job.current is not None else 0
    if started_from <= 0:
        return None
    reason = f"the same failure followed twice ({what})"
    return Retreat(before=started_from, reason=reason, attempt=job.attempt)


def _not_finite(job: Job, failure: Failure) -> Verdict:
    """Decide after a loss that was not finite, or over its limit."""
    limits = job.spec.limits
    if limits.nan is not Nan.ROLLBACK:
        return GiveUp(f'{failure.text} (limits.nan = "{limits.nan.value}"); see the log')
    count = sum(one is not None and one.kind == NOT_FINITE for one in job.failures)
    if count > limits.nan_rollbacks:
        return GiveUp(
            f"{failure.text}, after {count - 1} rollbacks (limits.nan_rollbacks = {limits.nan_rollbacks});"
            " see the log"
        )
    # Where the attempt before had rolled back too, and nothing good came of it: further back.
    stuck = job.retreat is not None and job.current is not None and job.current.start_step > 0
    before = job.current.start_step if stuck and job.current is not None else None
    rate = limits.nan_learning_rate
    reason = f"{failure.text}: rolled back, learning rates times {rate:g}"
    return Again(0.0, job.charged, job.fruitless, Retreat(before, rate, reason, job.attempt))


def _by_budget(
    job: Job, outcome: Outcome, exit_code: int | None, jitter: float, *, rebooted: bool
) -> Verdict:
    """Decide by the budget."""
    spec = job.spec.restart
    if job.durable_step > max(job.mark_step, 0):
        return Again(0.0, charged=0, fruitless=0)
    free = rebooted or outcome in _UNCHARGED or (outcome in _OWN_ENDS and exit_code in spec.retry_exit_codes)
    charged = job.charged + (0 if free else 1)
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
