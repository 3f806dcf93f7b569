"""Where a job's time goes: seconds waited in the queue, down, useful and lost, and why it was restarted.

Time is booked when it is over: that of an attempt at its end, that in the queue and in backoff when the job
leaves them. A queue without a supervisor is a queue too: the record does not tell the two apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from runner.core.job import Attempt, Job, Ledger, Moment, Outcome, State, seconds_between


def passed(job: Job, now: str) -> Job:
    """Return the record with the time up to now in its ledger, where its state says what that time was."""
    ledger, spent_s = job.ledger, seconds_between(_since(job), now)
    if job.state is State.QUEUED:
        ledger = replace(ledger, waiting_s=ledger.waiting_s + spent_s)
    elif job.state is State.BACKOFF:
        ledger = replace(ledger, down_s=ledger.down_s + spent_s)
    return replace(job, ledger=ledger, since=now)


def waited_s(job: Job, now: str) -> float:
    """Return how long the job has waited in the queue, in all its life."""
    queued_s = seconds_between(_since(job), now) if job.state is State.QUEUED else 0.0
    return job.ledger.waiting_s + queued_s


def _since(job: Job) -> str:
    """Return from when on the time is not in the ledger; of an older record, when it came to rest last."""
    last = job.current
    rested_at = last.ended_at if last is not None else None
    return job.since or max(rested_at or job.submitted_at, job.asked_at or "")


def restarted(job: Job) -> Job:
    """Return the record with one more restart, where the attempt to come is one."""
    last = job.current
    if last is None or last.outcome is Outcome.STOPPED:
        return job
    cause, before = last.outcome or Outcome.ABANDONED, job.restarts_by_cause
    if not before:
        older = causes(attempt.outcome for attempt in job.attempts[:-1])
        before = {Outcome(name): count for name, count in older.items()}
    by_cause = {**before, cause: before.get(cause, 0) + 1}
    return replace(job, restarts=job.restarts + 1, restarts_by_cause=by_cause)


def causes(outcomes: Iterable[str | None]) -> dict[str, int]:
    """Count restarts by the outcomes that they followed, of a record that did not count them itself."""
    return dict(Counter(str(one) for one in outcomes if one not in {None, Outcome.STOPPED}))


def so_far(job: Job) -> dict[str, Any]:
    """Return what the event of an attempt's start tells of the job's time and restarts."""
    by_cause = {cause.value: count for cause, count in job.restarts_by_cause.items()}
    return {"waiting_s": round(job.ledger.waiting_s, 3), "restarts_by_cause": by_cause}


def booked(job: Job, attempt: Attempt, outcome: Outcome, moment: Moment) -> tuple[Ledger, float]:
    """Return the ledger with an attempt that ends now, and how much work it loses, in seconds."""
    ledger = job.ledger
    run_s = seconds_between(attempt.started_at, moment.iso)
    if outcome is Outcome.SUCCEEDED:
        return replace(ledger, useful_s=ledger.useful_s + run_s), 0.0
    saved_at = job.checkpoint_at or ""
    if attempt.start_step > 0 and attempt.resumed_at is None and saved_at < attempt.started_at:
        # It never got back to where the one before had saved: there was no work to lose.
        return replace(ledger, down_s=ledger.down_s + run_s), 0.0
    kept_at = max(attempt.started_at, attempt.resumed_at or "", saved_at)
    lost_s = min(run_s, seconds_between(kept_at, moment.iso))
    return replace(ledger, useful_s=ledger.useful_s + run_s - lost_s, lost_s=ledger.lost_s + lost_s), lost_s
