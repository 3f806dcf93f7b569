"""How an attempt ended, in the contract's words."""

from __future__ import annotations

from runner.core.events import Ended
from runner.core.failure import OUT_OF_MEMORY
from runner.core.job import Goal, Job, Outcome
from runner.core.restart import EXIT_RETRY, is_final

#: What a worker that was asked to stop answers as a rule: checkpointed, done, ended by SIGTERM.
_ANSWERS = frozenset({0, EXIT_RETRY, 128 + 15})


def outcome_of(job: Job, event: Ended) -> Outcome:
    """Say how the attempt ended, in the contract's words."""
    spec = job.spec.restart
    if event.exit_code == 0 and not (event.asked and job.spec.command):
        return Outcome.SUCCEEDED
    if job.starved or event.reason == Outcome.OUT_OF_MEMORY.value:
        return Outcome.OUT_OF_MEMORY
    if job.hung:
        return Outcome.HUNG
    if event.exit_code is None and event.signal is None:
        return Outcome.ABANDONED
    own_code = event.exit_code is not None and event.exit_code not in _ANSWERS
    if event.asked and job.goal is Goal.RUN and not (own_code and is_final(spec, event.exit_code)):
        return Outcome.PREEMPTED  # however it has taken that: drain and preemption cost a job nothing
    if event.asked and not own_code:
        return Outcome.STOPPED
    if event.exit_code == EXIT_RETRY and (event.reason or EXIT_RETRY not in spec.fatal_exit_codes):
        return Outcome.PREEMPTED  # with a reason it is the supervisor's word, not the worker's
    if event.signal is not None or 128 < (event.exit_code or 0) <= 128 + 64:
        return Outcome.CRASHED
    failure = job.current.failure if job.current is not None else None
    ran_out = failure is not None and failure.kind in OUT_OF_MEMORY and not is_final(spec, event.exit_code)
    return Outcome.OUT_OF_MEMORY if ran_out else Outcome.FAILED
