"""What the worker's facts mean for the record: the checkpoint, the best model, where it resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from runner.core.job import BestRef, CheckpointRef, Job


def apply_facts(job: Job, facts: Iterable[Mapping[str, Any]], now: str) -> Job:
    """Return the record with `facts` taken in; a fact of a kind or shape not known here changes nothing."""
    for fact in facts:
        try:
            job = _apply(job, fact, now)
        except (KeyError, TypeError, ValueError):
            continue
    return job


def _apply(job: Job, fact: Mapping[str, Any], now: str) -> Job:
    match fact.get("event"):
        case "checkpoint":
            stall_s = max(0.0, float(fact.get("stall_s", 0.0)))
            ledger = job.ledger
            ledger = replace(
                ledger, checkpoint_s=ledger.checkpoint_s + stall_s, useful_s=ledger.useful_s - stall_s
            )
            return replace(job, checkpoint=_checkpoint(fact), checkpoint_at=now, ledger=ledger)
        case "resumed":
            attempt = job.current
            job = replace(job, checkpoint=_checkpoint(fact))
            return job.with_attempt(replace(attempt, start_step=int(fact["step"]))) if attempt else job
        case "quarantined":
            gone = job.checkpoint is not None and job.checkpoint.path == fact["path"]
            return replace(job, checkpoint=None) if gone else job
        case "best":
            return replace(job, best=_best(fact))
        case "classified":
            exact, reason = bool(fact["exact"]), str(fact.get("reason", ""))
            return replace(
                job, exactness=f"{'exact' if exact else 'not exact'}{': ' if reason else ''}{reason}"
            )
        case _:
            return job


def _checkpoint(fact: Mapping[str, Any]) -> CheckpointRef:
    return CheckpointRef(str(fact["path"]), int(fact["step"]), int(fact["epoch"]))


def _best(fact: Mapping[str, Any]) -> BestRef:
    return BestRef(
        str(fact["path"]), int(fact["step"]), int(fact["epoch"]), str(fact["metric"]), float(fact["value"])
    )
