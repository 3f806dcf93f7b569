"""What the worker's facts mean for the record: the checkpoint, the best model, where it resumed.

A flood of them does not fill the disk: the log of events takes so many bytes of a job's facts, and so many
more with each second of its life, which is a multiple of what a month of honest training says. What is
beyond that changes the record all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from runner.core.exactness import Kind, text
from runner.core.failure import Failure
from runner.core.job import BestRef, CheckpointRef, Classified, Job, Moment, elapsed_s

#: The kinds of facts a worker reports; an event log names anything else a "note", so that no worker can
#: write there that its job succeeded.
FACTS = frozenset(
    {
        *("resumed", "replayed", "checkpoint", "best", "quarantined", "save-failed", "pruned", "runner-up"),
        *("classified", "warning", "phase", "fit-started", "fit-finished", "raised"),
        *("restored", "mirror-failed", "mirror-recovered", "spare-took-over"),
    }
)
#: The kinds of facts that the mirror's process reports; they change nothing in a record.
MIRROR_FACTS = frozenset({"mirrored", "mirror-damaged", "mirror-failed", "mirror-recovered", "warning"})
#: What the log of events takes of a job's facts: in any case, and for each second since it was submitted.
LOG_BYTES, LOG_BYTES_PER_S = 64 << 20, 256
#: What a line of the log has beside the fact.
_LINE_BYTES = 128
#: Once facts were dropped, there must be so much room before the log takes some again.
_ROOM_AGAIN_BYTES = 256 << 10
#: A record names no more than these of what checkpoints cannot hold.
_MISSED_MAX = 20
_REPLAY_S_MAX = 1e9
_TEXT_MAX, _FRAMES_MAX = 300, 3


def apply_facts(job: Job, facts: Iterable[Mapping[str, Any]], moment: Moment) -> Job:
    """Return the record with `facts` taken in; a fact of a kind or shape not known here changes nothing."""
    for fact in facts:
        try:
            job = _apply(job, fact, moment)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return job


def log_bytes(facts: Sequence[Mapping[str, Any]], size_bytes: int) -> int:
    """Return how much of the log facts take that a worker wrote in so many bytes."""
    return max(0, size_bytes) + _LINE_BYTES * len(facts)


def is_logged(job: Job, size_bytes: int, moment: Moment) -> bool:
    """Tell whether the log takes that much more of the job's facts.

    What it may take by the day is of the days that were seen, and of a bounded time besides: a clock that was
    wrong at submission allows no more.
    """
    seen_s = sum(asdict(job.ledger).values()) + (job.current.age_s(moment) if job.current else 0.0)
    allowed = LOG_BYTES + LOG_BYTES_PER_S * elapsed_s(job.submitted_at, "", 0.0, moment, seen_s)
    least = _ROOM_AGAIN_BYTES if job.facts_dropped else 0
    return max(size_bytes, least) <= allowed - job.facts_logged


def _apply(job: Job, fact: Mapping[str, Any], moment: Moment) -> Job:
    match fact.get("event"):
        case "checkpoint":
            since_start_s = job.current.age_s(moment) if job.current else 0.0
            stall_s = min(max(0.0, float(fact.get("stall_s", 0.0))), since_start_s)
            ledger = job.ledger
            ledger = replace(
                ledger, checkpoint_s=ledger.checkpoint_s + stall_s, useful_s=ledger.useful_s - stall_s
            )
            job = replace(job, checkpoint=_checkpoint(fact), ledger=ledger, retreat=None)
            return _saved(job, moment)
        case "resumed":
            if fact["path"] is not None:  # else from memory: the disk has an older one
                job = replace(job, checkpoint=_checkpoint(fact))
            return _resumed(_replayed(job, fact), _count(fact["step"]), moment)
        case "quarantined":
            gone = job.checkpoint is not None and job.checkpoint.path == fact["path"]
            return replace(job, checkpoint=None) if gone else job
        case "best":
            return replace(job, best=_best(fact))
        case "fit-finished" if "size_bytes" in fact:  # its end is kept
            return _saved(job, moment)
        case kind:
            take_in = _OTHERS.get(str(kind))
            return take_in(job, fact) if take_in is not None else job


def _classified(job: Job, fact: Mapping[str, Any]) -> Job:
    """Take in how exactly a fit can be resumed; of the same fit, what was known besides stays."""
    exact, reason, fit = bool(fact["exact"]), str(fact.get("reason", "")), _count(fact.get("fit", 0))
    kind = Kind(fact.get("kind", Kind.EXACT if exact else Kind.NOT_EXACT))
    before = job.classified
    known = before if before is not None and before.fit == fit else Classified(fit, kind)
    return replace(job, exactness=text(kind, reason), classified=replace(known, kind=kind, reason=reason))


def _replayed(job: Job, fact: Mapping[str, Any]) -> Job:
    """Take in what reading data again took at a resume."""
    seconds = fact.get("replay_s")
    if job.classified is None or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return job
    if not 0 <= seconds < _REPLAY_S_MAX:
        return job
    return replace(job, classified=replace(job.classified, replay_s=float(seconds)))


def _missed(job: Job, fact: Mapping[str, Any]) -> Job:
    """Take in what a checkpoint cannot hold, where a warning tells that."""
    before, missed = job.classified, str(fact["missed"])
    if before is None or fact["fit"] != before.fit or missed in before.missed:
        return job
    return replace(job, classified=replace(before, missed=(*before.missed, missed)[:_MISSED_MAX]))


def _saved(job: Job, moment: Moment) -> Job:
    """Take in that what was trained up to now is kept."""
    attempt = job.current
    if attempt is not None:
        job = job.with_attempt(replace(attempt, saved_s=attempt.age_s(moment)))
    return replace(job, checkpoint_at=moment.iso)


def _resumed(job: Job, step: int, moment: Moment) -> Job:
    """Take in that the attempt trains again: what it took to get there was down time, not useful."""
    attempt = job.current
    if attempt is None or attempt.resumed_at:
        return job
    down_s = attempt.age_s(moment)
    ledger = replace(job.ledger, down_s=job.ledger.down_s + down_s, useful_s=job.ledger.useful_s - down_s)
    attempt = replace(attempt, start_step=step, resumed_at=moment.iso, resumed_s=down_s)
    return replace(job.with_attempt(attempt), ledger=ledger)


def _restored(job: Job, fact: Mapping[str, Any]) -> Job:
    """Take in what came from the job's mirror: whose seed and threads it has, it goes on as."""
    job = replace(job, seed=_count(fact["seed"]), threads=max(1, _count(fact["threads"])))
    if "best" in fact:
        job = replace(job, best=_best(fact["best"]))
    return replace(job, checkpoint=_checkpoint(fact)) if "path" in fact else job


def _checkpoint(fact: Mapping[str, Any]) -> CheckpointRef:
    return CheckpointRef(_path(fact), _count(fact["step"]), _count(fact["epoch"]))


def _best(fact: Mapping[str, Any]) -> BestRef:
    value = float(fact["value"])
    if not math.isfinite(value):
        raise ValueError(f"{value} is never the best")
    return BestRef(_path(fact), _count(fact["step"]), _count(fact["epoch"]), str(fact["metric"]), value)


def _raised(job: Job, fact: Mapping[str, Any]) -> Job:
    """Take in what ends the attempt; its texts are bounded, for they are a script's."""
    where = tuple(str(frame)[:_TEXT_MAX] for frame in fact["where"][-_FRAMES_MAX:])
    kind, message = str(fact["kind"])[:_TEXT_MAX], str(fact["message"])[:_TEXT_MAX]
    failure = Failure(kind, where, _count(fact["step"]), fact["started"] is True, message)
    return job.with_attempt(replace(job.current, failure=failure)) if job.current is not None else job


def _path(fact: Mapping[str, Any]) -> str:
    path = fact["path"]
    if not isinstance(path, str) or not path:
        raise TypeError(f"expected a path, found {path!r}")
    return path


def _count(value: object) -> int:
    """Return `value` where it can count steps or epochs."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a count, found {value!r}")
    return value


_OTHERS = {
    "restored": _restored,
    "classified": _classified,
    "replayed": _replayed,
    "warning": _missed,
    "raised": _raised,
}
