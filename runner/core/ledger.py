"""Where a job's time goes: what an attempt that ends has been good for."""

from __future__ import annotations

from dataclasses import replace

from runner.core.job import Attempt, Job, Ledger, Moment, Outcome, seconds_between


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
