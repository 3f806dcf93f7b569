"""What may happen to a job: requests of people, and observations of the supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from runner.core.spec import JobSpec


class Request(StrEnum):
    """What people ask for, by verb."""

    STOP = "stop"  #: checkpoint, end, be cancelled
    CANCEL = "cancel"  #: be killed now, be cancelled
    PAUSE = "pause"  #: checkpoint, end, be held
    RESUME = "resume"  #: leave the hold
    RETRY = "retry"  #: run a settled job again, from its last checkpoint
    REMOVE = "rm"  #: forget the job
    PRIORITY = "priority"  #: take another place in the queue


class Sight(StrEnum):
    """What the supervisor observes, by kind."""

    ADMITTED = "admitted"
    START_FAILED = "start-failed"
    REPORTED = "reported"
    ENDED = "ended"
    HUNG = "hung"
    WALL_OVER = "wall-over"
    MEMORY_OVER = "memory-over"
    BACKOFF_OVER = "backoff-over"
    DRAIN = "drain"
    PREEMPT = "preempt"


Kind: TypeAlias = Request | Sight


@dataclass(frozen=True)
class Event:
    """An event without details of its own: every request, and BACKOFF_OVER, DRAIN."""

    kind: Kind


@dataclass(frozen=True)
class Admitted:
    """The job has its turn, and `gpus` of the machine's devices; None: nothing is given out to it."""

    gpus: tuple[str, ...] | None = None
    kind: Kind = field(default=Sight.ADMITTED, init=False)


@dataclass(frozen=True)
class Preempt:
    """The attempt shall checkpoint and stop, and the job be queued again; `reason` says for what."""

    reason: str
    kind: Kind = field(default=Sight.PREEMPT, init=False)


@dataclass(frozen=True)
class StartFailed:
    """The attempt could not be started at all."""

    reason: str
    kind: Kind = field(default=Sight.START_FAILED, init=False)


@dataclass(frozen=True)
class Reported:
    """The worker appended facts; `read` is the new length of what was relayed, in bytes."""

    facts: tuple[dict[str, Any], ...]
    read: int
    kind: Kind = field(default=Sight.REPORTED, init=False)


@dataclass(frozen=True)
class Ended:
    """The attempt's processes are gone.

    `exit_code` and `signal` are the worker's as the shim reaped it; both None when nobody saw the end.
    `asked` tells whether the shim had asked it to stop. `rebooted` tells that the machine went down.
    `ran_s` is how long they ran, `ended_s` when they ended by the monotonic clock of its boot; None:
    that is not known, and they ended now.
    """

    exit_code: int | None = None
    signal: str | None = None
    asked: bool = False
    rebooted: bool = False
    reason: str = ""
    max_rss_bytes: int | None = None
    ran_s: float | None = None
    ended_s: float | None = None
    pace: Mapping[str, float] = field(default_factory=dict)  #: the longest pauses that were seen in it
    warning: str = ""  #: what else there is to know, such as what it has left behind
    kind: Kind = field(default=Sight.ENDED, init=False)


@dataclass(frozen=True)
class Limit:
    """The attempt went over a limit (HUNG, WALL_OVER, MEMORY_OVER); `reason` says which and by how much."""

    kind: Kind
    reason: str
    pace: Mapping[str, float] = field(default_factory=dict)  #: what later attempts are allowed for it


@dataclass(frozen=True)
class Retry:
    """A settled job shall run again, with what its folder says now."""

    spec: JobSpec
    seed: int = 0  #: for a job that never ran, as one that was rejected
    threads: int = 1
    kind: Kind = field(default=Request.RETRY, init=False)


@dataclass(frozen=True)
class Prioritize:
    """The job shall have another priority, in this run of it."""

    priority: int
    kind: Kind = field(default=Request.PRIORITY, init=False)


AnyEvent: TypeAlias = Event | Admitted | Preempt | StartFailed | Reported | Ended | Limit | Retry | Prioritize
