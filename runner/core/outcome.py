"""How an attempt ended, in the contract's words."""

from __future__ import annotations

from runner.core.events import Ended
from runner.core.failure import OUT_OF_MEMORY
from runner.core.job import Goal, Job, Outcome
from runner.core.restart import EXIT_RETRY, NEVER_RETRIED


def outcome_of(job: Job, event: Ended) -> Outcome:
    """Say how the attempt ended, in the contract's words."""
    if event.exit_code == 0 and not (event.asked and job.spec.command):
        return Outcome.SUCCEEDED
    if job.starved or event.reason == Outcome.OUT_OF_MEMORY.value:
        return Outcome.OUT_OF_MEMORY
    if job.hung:
        return Outcome.HUNG
    if event.exit_code is None and event.signal is None:
        return Outcome.ABANDONED
    own_failure = event.exit_code is not None and event.exit_code not in {0, EXIT_RETRY, 128 + 15}
    if event.asked and not own_failure:
        return Outcome.PREEMPTED if job.goal is Goal.RUN else Outcome.STOPPED
    if event.exit_code == EXIT_RETRY:
        return Outcome.PREEMPTED
    if event.signal is not None or 128 < (event.exit_code or 0) <= 128 + 64:
        return Outcome.CRASHED
    failure = job.current.failure if job.current is not None else None
    ran_out = failure is not None and failure.kind in OUT_OF_MEMORY and event.exit_code not in NEVER_RETRIED
    return Outcome.OUT_OF_MEMORY if ran_out else Outcome.FAILED
