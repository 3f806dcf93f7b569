"""The durable record of a job: what `state/NAME/job.json` holds, and the words for its states.

Plain frozen values. Times are ISO 8601 strings in UTC as `Moment.iso` gives them; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from signal import Signals
from typing import Any

from runner.core.actions import Ask
from runner.core.cadence import Past
from runner.core.exactness import Kind
from runner.core.failure import Failure, Retreat
from runner.core.hang import merged
from runner.core.spec import JobSpec

#: Version of job.json; a reader refuses a newer one.
RECORD_VERSION = 1

#: The most that the wall clock alone may say has passed: one that was never set is off by decades.
UNSEEN_S_MAX = 30 * 86_400.0

#: Attempts kept in the record; older ones stay readable in attempts/ and in events.jsonl.
ATTEMPTS_MAX = 200


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: waits for a free slot
    RUNNING = "running"  #: an attempt trains
    STOPPING = "stopping"  #: an attempt was asked to end and has not yet
    BACKOFF = "backoff"  #: waits before the next attempt
    PAUSED = "paused"  #: held until `resume`
    SUCCEEDED = "succeeded"  #: ended with exit code 0
    FAILED = "failed"  #: given up, with a reason
    CANCELLED = "cancelled"  #: ended on request
    REJECTED = "rejected"  #: never accepted, with a reason


#: States in which an attempt's processes may live.
ACTIVE = frozenset({State.RUNNING, State.STOPPING})
#: States that only a request can leave.
SETTLED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.REJECTED})


class Goal(StrEnum):
    """What is wanted of the job once its present attempt has ended."""

    RUN = "run"  #: train on
    PAUSE = "pause"  #: hold
    CANCEL = "cancel"  #: end as cancelled
    FAIL = "fail"  #: end as failed (a limit of the job was reached)


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"  #: exit code 0
    FAILED = "failed"  #: an exit code of its own
    CRASHED = "crashed"  #: by a signal that was not ours
    HUNG = "hung"  #: killed because it made no progress
    OUT_OF_MEMORY = "out-of-memory"  #: killed at its memory limit, or by the kernel for it; or it told so
    PREEMPTED = "preempted"  #: checkpointed and left in order to run again
    STOPPED = "stopped"  #: ended on request
    ABANDONED = "abandoned"  #: lost with the machine or with its shim: nobody saw the end


#: The outcomes that nobody has asked for.
DEATHS = frozenset({Outcome.FAILED, Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY, Outcome.ABANDONED})

#: The outcomes of which the worker may have told what they came of.
TOLD = frozenset({Outcome.FAILED, Outcome.OUT_OF_MEMORY})


@dataclass(frozen=True)
class Moment:
    """The outside facts that a decision may use: the time by two clocks, and one random number in [0, 1)."""

    iso: str
    jitter: float = 0.0
    clock_s: float = 0.0  #: the monotonic clock, which nobody sets; it means something within its boot alone
    boot: str = ""  #: id of the machine's boot


@dataclass(frozen=True)
class CheckpointRef:
    """A durable, verified checkpoint; `path` is relative to the job's state folder."""

    path: str
    step: int
    epoch: int


@dataclass(frozen=True)
class BestRef:
    """The best model so far; `path` is relative to the job's state folder."""

    path: str
    step: int
    epoch: int
    metric: str
    value: float


@dataclass(frozen=True)
class Classified:
    """What the worker said of the exactness of the newest fit's resumes."""

    fit: int
    kind: Kind
    reason: str = ""
    replay_s: float | None = None  #: what reading data again took at the last resume, where that was needed
    missed: tuple[str, ...] = ()  #: what a checkpoint cannot hold


@dataclass(frozen=True)
class Attempt:
    """One try at the job."""

    number: int
    started_at: str
    start_step: int = 0
    gpus: tuple[str, ...] | None = None  #: uuids of what it was given; None: nothing is given out to it
    resumed_at: str | None = None  #: when it had got back to `start_step`
    ended_at: str | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    signal: str | None = None
    reason: str = ""
    max_rss_bytes: int | None = None
    failure: Failure | None = None  #: what ended it, where the worker told
    boot: str = ""  #: id of the machine's boot that it was started in; "" in older records
    began_s: float = 0.0  #: when it was started, by that boot's monotonic clock
    resumed_s: float | None = None  #: so long after its start it had got back to `start_step`
    saved_s: float | None = None  #: so long after its start something was saved last
    ran_s: float | None = None  #: how long its processes ran; None: it has not ended, or an older record

    def age_s(self, moment: Moment) -> float:
        """Seconds since its start; by the wall clock after another boot, and of an older record."""
        known_s = max(self.resumed_s or 0.0, self.saved_s or 0.0)
        return elapsed_s(self.started_at, self.boot, self.began_s, moment, known_s)

    @property
    def spent_s(self) -> float:
        """Seconds that it ran, as `limits.wall` counts them; 0 while it has not ended."""
        if self.ran_s is None and self.ended_at is not None:
            return seconds_between(self.started_at, self.ended_at)
        return self.ran_s or 0.0


@dataclass(frozen=True)
class Ledger:
    """Where the time went, in seconds. Time on hold, and after a job's end, is in none of them."""

    useful_s: float = 0.0
    lost_s: float = 0.0  #: trained, and not saved before the attempt ended
    #: In backoff, getting back to where training was, and ended without anybody there to see it.
    down_s: float = 0.0
    checkpoint_s: float = 0.0  #: training stood still for a checkpoint
    waiting_s: float = 0.0  #: in the queue

    @property
    def ratio(self) -> float:
        """Useful time as a share of all but the waiting; 1.0 before anything ran."""
        total = self.useful_s + self.lost_s + self.down_s + self.checkpoint_s
        return self.useful_s / total if total > 0 else 1.0


@dataclass(frozen=True)
class Job:
    """A job's record. `outbox` holds this revision's events until they are in events.jsonl."""

    name: str
    state: State
    submitted_at: str
    order: int  #: place in the queue among equal priorities
    spec: JobSpec = field(default_factory=JobSpec)
    version: int = RECORD_VERSION
    goal: Goal = Goal.RUN
    reason: str = ""
    seed: int = 0
    threads: int = 1
    attempt: int = 0  #: number of the newest attempt; 0 before the first
    attempts: tuple[Attempt, ...] = ()
    folders: int = 0  #: highest attempt number whose folder was seen: an older record may have been restored
    restarts: int = 0  #: attempts started because the one before did not end as it should
    #: The same by how the one before ended; empty in older records, see `ledger.causes`.
    restarts_by_cause: dict[Outcome, int] = field(default_factory=dict)
    charged: int = 0  #: death tally: ends charged to the budget since the durable step advanced
    fruitless: int = 0  #: ends in a row without a newer durable step, charged or not
    mark_step: int = -1  #: durable step at the last end; -1 before any
    backoff_s: float = 0.0
    asked: Ask | None = None  #: what the present attempt was asked, to be asked again by a successor
    hung: bool = False  #: the present attempt is being ended because it made no progress
    starved: bool = False  #: the present attempt is being ended because of its memory limit
    retreat: Retreat | None = None  #: how the next attempt resumes, until it has saved a checkpoint
    checkpoint: CheckpointRef | None = None
    checkpoint_at: str | None = None
    best: BestRef | None = None
    exactness: str = ""  #: what the worker said of the exactness of this job's resumes
    classified: Classified | None = None  #: the same, in parts
    ledger: Ledger = field(default_factory=Ledger)
    #: What was before, in the queue or in backoff, is in the ledger; older records: None.
    since: str | None = None
    since_boot: str = ""  #: id of the machine's boot at `since`; "" in older records
    since_s: float = 0.0  #: that boot's monotonic clock at `since`
    #: What the attempts that have ended since `retry` have run, against `limits.wall`; older records: None.
    spent_s: float | None = None
    pace: dict[str, float] = field(default_factory=dict)  #: longest pause of each phase, in s (see `hang`)
    facts_read: int = 0  #: bytes of the newest attempt's facts.jsonl that are relayed
    facts_logged: int = 0  #: how much of events.jsonl the job's facts take, in bytes
    facts_dropped: int = 0  #: facts that the log did not take since it took the last ones
    mirror_read: int = 0  #: bytes of what the mirror's process reported that are relayed
    asked_at: str | None = None  #: when it was last asked to run again; waiting before that is nobody's loss
    asked_attempt: int | None = None  #: its newest attempt then; None: it never was, or an older record
    source: str | None = None  #: the job and checkpoint this one started from, as NAME@STEP
    started_at: str | None = None
    finished_at: str | None = None
    revision: int = 0  #: number of the last event in events.jsonl
    outbox: tuple[dict[str, Any], ...] = ()

    @property
    def durable_step(self) -> int:
        """Completed steps that are safe on disk."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def current(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def exit_code(self) -> int | None:
        """The code that `runner wait` returns; None while the job is not settled."""
        if self.state is State.SUCCEEDED:
            return 0
        if self.state not in SETTLED:
            return None
        last = self.current
        if last is None:
            return 1
        return last.exit_code or _signal_code(last.signal) or 1

    @property
    def has_trained(self) -> bool:
        """Whether training had begun in an attempt, as far as is known."""
        begun = any(a.failure is not None and a.failure.started for a in self.attempts)
        return begun or max(self.durable_step, self.mark_step) > 0

    @property
    def past(self) -> Past:
        """What the attempts so far have lived through."""
        spent = self.ledger
        lived_s = spent.useful_s + spent.lost_s + spent.down_s + spent.checkpoint_s
        return Past(lived_s, sum(attempt.outcome in DEATHS for attempt in self.attempts))

    @property
    def ran_s(self) -> float:
        """Seconds that ended attempts have run, as `limits.wall` counts them."""
        return self.spent_s if self.spent_s is not None else sum(a.spent_s for a in self.since_asked)

    @property
    def failures(self) -> list[Failure | None]:
        """What ended each attempt since the job was last asked to run; None: nothing that counts."""
        uncounted = self.spec.restart.retry_exit_codes
        return [
            a.failure if a.outcome in TOLD and a.exit_code not in uncounted else None
            for a in self.since_asked
        ]

    @property
    def since_asked(self) -> list[Attempt]:
        """The attempts since the job was last asked to run."""
        if self.asked_attempt is None:
            return [a for a in self.attempts if a.started_at >= (self.asked_at or "")]
        return [a for a in self.attempts if a.number > self.asked_attempt]

    def paced(self, pace: Mapping[str, float]) -> Job:
        """Return the record with what an attempt's pauses have taught."""
        return replace(self, pace=merged(self.pace, pace))

    def unpaced(self) -> Job:
        """Return the record without: its folder may say something else now."""
        return replace(self, pace={})

    def with_attempt(self, attempt: Attempt) -> Job:
        """Return the record with its newest attempt replaced, or `attempt` added when its number is new."""
        kept = tuple(a for a in self.attempts if a.number != attempt.number)
        return replace(self, attempts=(*kept, attempt)[-ATTEMPTS_MAX:])


def _signal_code(name: str | None) -> int | None:
    """Return what a shell returns for a death by that signal; real-time ones have numbers for names."""
    if name is None:
        return None
    if name in Signals.__members__:
        return 128 + Signals[name]
    return 128 + int(name) if name.isascii() and name.isdecimal() and len(name) <= 2 else None


def elapsed_s(since: str, boot: str, since_s: float, moment: Moment, known_s: float = 0.0) -> float:
    """Seconds since a time, by the monotonic clock of its boot.

    Of another boot, and of an older record, by the wall clock, which may have been set: by no more than
    `UNSEEN_S_MAX` beyond the `known_s` that had passed already.
    """
    if boot and boot == moment.boot:
        return max(0.0, moment.clock_s - since_s)
    return min(seconds_between(since, moment.iso), known_s + UNSEEN_S_MAX)


def seconds_between(earlier: str | None, later: str) -> float:
    """Seconds from one ISO time to another; 0 where the clock went backwards or nothing is known."""
    if earlier is None:
        return 0.0
    return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())
