"""Jobs for the tests of the core, brought into each state by events alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from runner.core.actions import Action
from runner.core.events import (
    Admitted,
    AnyEvent,
    Ended,
    Event,
    Limit,
    Preempt,
    Prioritize,
    Reported,
    Request,
    Retry,
    Sight,
    StartFailed,
)
from runner.core.job import Job, Moment, State
from runner.core.spec import JobSpec, LimitsSpec, RestartSpec
from runner.core.table import Decision, decide

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float, jitter: float = 0.0, step_s: float = 0.0, boot: str = "boot") -> Moment:
    """The moment so many seconds after the job was submitted, by a clock that was set by `step_s`."""
    iso = (EPOCH + timedelta(seconds=seconds + step_s)).isoformat(timespec="milliseconds")
    return Moment(iso, jitter, seconds, boot)


def spec(**restart: Any) -> JobSpec:
    """An ordinary job; keywords are those of `[restart]`."""
    return JobSpec(restart=RestartSpec(**restart), limits=LimitsSpec(wall_s=3600.0))


def command(**restart: Any) -> JobSpec:
    """A job that is a command."""
    return replace(spec(**restart), entry=None, command=("./train.sh",))


def queued(of: JobSpec | None = None, **fields: Any) -> Job:
    """A job as it is taken up."""
    return Job("digits", State.QUEUED, at(0).iso, 1, of or spec(), seed=7, threads=2, **fields)


@dataclass
class Life:
    """A job, and everything that its events led to; each event comes a second after the one before."""

    job: Job = field(default_factory=queued)
    clock_s: float = 0.0
    step_s: float = 0.0  #: by so much the wall clock was set
    boot: str = "boot"
    actions: list[Action] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)

    def on(self, event: AnyEvent, after_s: float = 1.0, jitter: float = 0.0) -> Decision:
        """Let the event happen."""
        self.clock_s += after_s
        decision = decide(self.job, event, at(self.clock_s, jitter, self.step_s, self.boot))
        if decision.job is not self.job:
            self.published += decision.job.outbox
        self.actions += decision.actions
        self.job = decision.job
        return decision

    def all(self, events: Iterable[AnyEvent]) -> Life:
        """Let all of them happen."""
        for event in events:
            self.on(event)
        return self

    @property
    def states(self) -> list[str]:
        """The states it went through, as published."""
        return [line["event"] for line in self.published if line["event"] in set(State)]


ADMITTED, DRAIN, BACKOFF_OVER = Admitted(), Event(Sight.DRAIN), Event(Sight.BACKOFF_OVER)
STOP, CANCEL = Event(Request.STOP), Event(Request.CANCEL)
PAUSE, RESUME, REMOVE = Event(Request.PAUSE), Event(Request.RESUME), Event(Request.REMOVE)
HUNG = Limit(Sight.HUNG, "no progress for 301 s")
WALL_OVER = Limit(Sight.WALL_OVER, "ran for 3601 s")
MEMORY_OVER = Limit(Sight.MEMORY_OVER, "uses 9000 MiB")
PREEMPT = Preempt("makes room for other")
START_FAILED = StartFailed("no such program: ./train.sh")
KILLED = Ended(signal="SIGKILL")
OK = Ended(exit_code=0)


def retry(of: JobSpec | None = None) -> Retry:
    """A request to run again."""
    return Retry(of or spec())


def saved(step: int, **details: Any) -> Reported:
    """The worker tells of a checkpoint."""
    fact = {"event": "checkpoint", "path": f"checkpoints/step-{step:012d}.weights.h5", "step": step}
    return Reported(({**fact, "epoch": step // 100, **details},), read=step)


#: Events that lead a new job into each state.
WAY: dict[State, tuple[AnyEvent, ...]] = {
    State.QUEUED: (),
    State.RUNNING: (ADMITTED,),
    State.STOPPING: (ADMITTED, STOP),
    State.BACKOFF: (ADMITTED, KILLED),
    State.PAUSED: (PAUSE,),
    State.SUCCEEDED: (ADMITTED, OK),
    State.FAILED: (ADMITTED, Ended(exit_code=78)),
    State.CANCELLED: (CANCEL,),
    State.REJECTED: (),
}

#: One event of every kind.
EVENTS: tuple[AnyEvent, ...] = (
    *(STOP, CANCEL, PAUSE, RESUME, retry(), REMOVE, Prioritize(3)),
    *(ADMITTED, START_FAILED, saved(100), KILLED, HUNG, WALL_OVER, MEMORY_OVER, BACKOFF_OVER, DRAIN, PREEMPT),
)


def in_state(state: State, of: JobSpec | None = None) -> Life:
    """A job in `state`."""
    life = Life(queued(of)).all(WAY[state])
    if state is State.REJECTED:
        life.job = replace(life.job, state=state, reason="job.toml: bad")
    assert life.job.state is state
    return life
