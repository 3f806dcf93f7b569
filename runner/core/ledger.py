"""Where a job's time goes: seconds waited in the queue, down, useful and lost, and why it was restarted.

Time is booked when it is over: that of an attempt at its end, that in the queue and in backoff when the job
leaves them. A queue without a supervisor is a queue too: the record does not tell the two apart. All of it is
measured by the monotonic clock, and by the wall clock only across a boot of the machine; how long an attempt
took by its shim, too, which sees the end whoever else does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from runner.core.events import Ended
from runner.core.job import Attempt, Job, Ledger, Moment, Outcome, State, elapsed_s, seconds_between


def passed(job: Job, moment: Moment) -> Job:
    """Return the record with the time up to now in its ledger, where its state says what that time was."""
    ledger, spent_s = job.ledger, rested_s(job, moment)
    if job.state is State.QUEUED:
        ledger = replace(ledger, waiting_s=ledger.waiting_s + spent_s)
    elif job.state is State.BACKOFF:
        ledger = replace(ledger, down_s=ledger.down_s + spent_s)
    return replace(job, ledger=ledger, since=moment.iso, since_boot=moment.boot, since_s=moment.clock_s)


def rested_s(job: Job, moment: Moment) -> float:
    """Return how much time up to now is not in the ledger, where no attempt runs."""
    return elapsed_s(_since(job), job.since_boot, job.since_s, moment)


def waited_s(job: Job, moment: Moment) -> float:
    """Return how long the job has waited in the queue, in all its life."""
    queued_s = rested_s(job, moment) if job.state is State.QUEUED else 0.0
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


def goodput(ledger: Ledger) -> dict[str, float]:
    """Return where the time went, as it is told: each part in seconds, and the share that was useful."""
    parts = {key: round(seconds, 3) for key, seconds in asdict(ledger).items()}
    return {**parts, "ratio": round(ledger.ratio, 4)}


def booked(
    job: Job, attempt: Attempt, event: Ended, outcome: Outcome, moment: Moment
) -> tuple[Ledger, float, float]:
    """Return the ledger with an attempt that has ended, how much work it loses, and how long it ran, in s.

    What lies between its start and that of its processes, and between their end and now, is down time.
    """
    whole_s = attempt.age_s(moment)
    end_s = _end_s(attempt, event, whole_s)
    whole_s = max(whole_s, end_s)
    ran_s = end_s if event.ran_s is None else min(event.ran_s, end_s)
    resumed_s = _after_start_s(attempt, attempt.resumed_s, attempt.resumed_at)
    saved_s = _after_start_s(attempt, attempt.saved_s, job.checkpoint_at)
    early_s = resumed_s or 0.0  # in the ledger as down time already
    if outcome is not Outcome.SUCCEEDED and attempt.start_step > 0 and resumed_s is None and saved_s is None:
        # It never got back to where the one before had saved: there was no work to lose.
        trained_s = lost_s = 0.0
    else:
        from_s = min(end_s, max(early_s, end_s - ran_s))
        trained_s = end_s - from_s
        kept_s = end_s if outcome is Outcome.SUCCEEDED else max(from_s, saved_s or 0.0)
        lost_s = max(0.0, end_s - kept_s)
    ledger = replace(
        job.ledger,
        useful_s=job.ledger.useful_s + trained_s - lost_s + early_s,
        lost_s=job.ledger.lost_s + lost_s,
        down_s=job.ledger.down_s + whole_s - trained_s - early_s,
    )
    return ledger, lost_s, ran_s


def _end_s(attempt: Attempt, event: Ended, whole_s: float) -> float:
    """Return how long after the attempt's start its processes ended; it may have been found out far later."""
    if event.ended_s is not None and attempt.boot:
        return max(0.0, event.ended_s - attempt.began_s)
    return whole_s if event.ran_s is None else min(whole_s, event.ran_s)


def _after_start_s(attempt: Attempt, known_s: float | None, at: str | None) -> float | None:
    """Return how long after the attempt's start something was; None: not in it. Older records have dates."""
    if known_s is not None or attempt.boot or at is None or at < attempt.started_at:
        return known_s
    return seconds_between(attempt.started_at, at)
