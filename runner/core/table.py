"""The life of a job as one total table: (state, kind of event) -> what it means.

`decide` is the only door: it returns the next record, with the events to publish in its outbox, and the
actions to apply once that record is durable. An event that is refused or ignored changes nothing.
The diagram in ARCHITECTURE.md is printed from this table (`python -m runner.core.diagram`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from runner.core.actions import Action, Ask, Remove, Signal, Start, Wait
from runner.core.events import (
    Admitted,
    AnyEvent,
    Ended,
    Kind,
    Limit,
    Preempt,
    Prioritize,
    Reported,
    Request,
    Retry,
    Sight,
    StartFailed,
)
from runner.core.job import ACTIVE, SETTLED, Attempt, Goal, Job, Moment, Outcome, State
from runner.core.ledger import booked, goodput, passed, restarted, so_far
from runner.core.outcome import outcome_of
from runner.core.reports import FACTS, apply_facts, is_logged, log_bytes
from runner.core.restart import GiveUp, judge


@dataclass(frozen=True)
class Decision:
    """What follows an event. `refusal` is why nothing does; the record is then the one given."""

    job: Job
    actions: tuple[Action, ...] = ()
    refusal: str = ""


Step: TypeAlias = Callable[[Job, Any, Moment], Decision]


@dataclass(frozen=True)
class Move:
    """The event is legal: `do` it; it leads to one of `to`."""

    do: Step
    to: frozenset[State]


@dataclass(frozen=True)
class Refuse:
    """A request that cannot be granted in this state."""

    why: str


@dataclass(frozen=True)
class Ignore:
    """An observation that comes too late, or tells nothing in this state."""

    why: str


Row: TypeAlias = Move | Refuse | Ignore


def decide(job: Job, event: AnyEvent, moment: Moment) -> Decision:
    """Return the next record and the actions for `event` at `moment`."""
    row = TABLE[job.state, event.kind]
    match row:
        case Refuse(why) | Ignore(why):
            return Decision(job, (), f"{job.name}: {why}")
        case Move(do, to):
            decision = do(replace(job, outbox=()), event, moment)
            if decision.job.state not in to:
                raise AssertionError(f"{job.state} + {event.kind} led to {decision.job.state}, not in {to}")
            return decision


def refusal(state: State, kind: Kind) -> str | None:
    """Tell why a request would be refused in `state`; None where it would not."""
    row = TABLE[state, kind]
    return row.why if isinstance(row, Refuse) else None


def publish(job: Job, moment: Moment, event: str, /, **details: Any) -> Job:
    """Return the record with one more event in its outbox; `details` cannot replace what is ours to say."""
    revision = job.revision + 1
    ours = {"seq": revision, "time": moment.iso, "event": event, "attempt": job.attempt}
    return replace(job, revision=revision, outbox=(*job.outbox, {**ours, **details, **ours}))


def _enter(job: Job, state: State, moment: Moment, reason: str = "", **details: Any) -> Job:
    job = replace(passed(job, moment), state=state, reason=reason)
    if state in SETTLED:
        job = replace(job, finished_at=moment.iso)
    if reason:
        details["reason"] = reason
    return publish(job, moment, state.value, **details)


# --- starting ---------------------------------------------------------------------------------------------


def _start(job: Job, moment: Moment, admitted: Admitted | None = None) -> Decision:
    """Start the next attempt; one that follows the last at once keeps its devices."""
    number = max(job.attempt, job.folders) + 1
    previous = job.current
    gpus = admitted.gpus if admitted else previous.gpus if previous else None
    job = restarted(passed(job, moment))
    clock: dict[str, Any] = {"boot": moment.boot, "began_s": moment.clock_s}
    job = replace(
        job.with_attempt(Attempt(number, moment.iso, start_step=job.durable_step, gpus=gpus, **clock)),
        attempt=number,
        goal=Goal.RUN,
        asked=None,
        hung=False,
        starved=False,
        facts_read=0,
        backoff_s=0.0,
        started_at=job.started_at or moment.iso,
        finished_at=None,
    )
    given: dict[str, Any] = {} if gpus is None else {"gpus": list(gpus)}
    job = _enter(job, State.RUNNING, moment, step=job.durable_step, **given, **so_far(job))
    return Decision(job, (Start(number),))


def _admitted(job: Job, event: Admitted, moment: Moment) -> Decision:
    return _start(job, moment, event)


def _start_failed(job: Job, event: StartFailed, moment: Moment) -> Decision:
    goal, stop_reason = job.goal, job.reason
    job = _close(job, Ended(reason=event.reason), Outcome.FAILED, moment)
    if goal is Goal.CANCEL:
        return Decision(_enter(job, State.CANCELLED, moment, stop_reason))
    return Decision(_enter(job, State.FAILED, moment, event.reason))


def _asked_now(job: Job, moment: Moment) -> Job:
    """Return the record as that of a job of which the attempts so far count no more."""
    return replace(job, asked_at=moment.iso, asked_attempt=job.attempt)


def _resume(job: Job, _event: AnyEvent, moment: Moment) -> Decision:
    job = replace(job, spent_s=job.ran_s)  # an older record has it from attempts that now count no more
    return Decision(_enter(_asked_now(job, moment), State.QUEUED, moment))


# --- while it runs ----------------------------------------------------------------------------------------


def _reported(job: Job, event: Reported, moment: Moment) -> Decision:
    size = log_bytes(event.facts, event.read - job.facts_read)
    job = replace(apply_facts(job, event.facts, moment), facts_read=event.read)
    if not event.facts:
        return Decision(job)
    if not is_logged(job, size, moment):
        if not job.facts_dropped:
            job = publish(
                job, moment, "facts-dropping", reason="its facts are too many for the log of events"
            )
        return Decision(replace(job, facts_dropped=job.facts_dropped + len(event.facts)))
    job = _tell_dropped(job, moment)
    job = replace(job, facts_logged=job.facts_logged + size)
    for fact in event.facts:
        kind = str(fact.get("event"))
        job = publish(job, moment, kind if kind in FACTS else "note", **fact)
    return Decision(job)


def _tell_dropped(job: Job, moment: Moment) -> Job:
    if job.facts_dropped:
        job = publish(job, moment, "facts-dropped", count=job.facts_dropped)
    return replace(job, facts_dropped=0)


def _ask(goal: Goal, ask: Ask, reason: str) -> Step:
    def do(job: Job, event: AnyEvent, moment: Moment) -> Decision:
        job, why = replace(job, goal=goal, asked=ask), event.reason if isinstance(event, Preempt) else reason
        return Decision(_enter(job, State.STOPPING, moment, why, goal=goal.value), (Signal(ask),))

    return do


def _limit(job: Job, event: Limit, moment: Moment) -> Decision:
    ask = Ask.STOP
    if event.kind is Sight.HUNG:
        job, ask = replace(job.paced(event.pace), hung=True), Ask.HANG
    elif event.kind is Sight.MEMORY_OVER:
        job, ask = replace(job, starved=True), Ask.KILL
    else:
        job = replace(job, goal=Goal.FAIL)
    job = publish(replace(job, asked=ask), moment, event.kind.value, reason=event.reason)
    return Decision(_enter(job, State.STOPPING, moment, event.reason, goal=job.goal.value), (Signal(ask),))


def _keep_running(job: Job, _event: AnyEvent, moment: Moment) -> Decision:
    """Resume while stopping: the attempt ends all the same, and the job goes on after it."""
    job = replace(job, goal=Goal.RUN, reason="ends its attempt, then runs again")
    return Decision(publish(job, moment, "resume-requested"))


# --- at an attempt's end ----------------------------------------------------------------------------------


def _close(job: Job, event: Ended, outcome: Outcome, moment: Moment) -> Job:
    """Write the end of the newest attempt into the record, and its time into the ledger."""
    attempt = job.current
    if attempt is None:
        return job
    job = _tell_dropped(job, moment)
    ledger, lost_s, ran_s = booked(job, attempt, event, outcome, moment)
    ended = replace(
        attempt,
        ended_at=moment.iso,
        outcome=outcome,
        exit_code=event.exit_code,
        signal=event.signal,
        reason=event.reason or (job.reason if outcome is Outcome.PREEMPTED else ""),
        max_rss_bytes=event.max_rss_bytes,
        ran_s=ran_s,
    )
    return publish(
        replace(job.with_attempt(ended).paced(event.pace), ledger=ledger, spent_s=job.ran_s + ran_s),
        moment,
        "ended",
        outcome=outcome.value,
        exit_code=event.exit_code,
        signal=event.signal,
        step=job.durable_step,
        lost_s=round(lost_s, 3),
        goodput=goodput(ledger),
    )


def _ended(job: Job, event: Ended, moment: Moment) -> Decision:
    outcome = outcome_of(job, event)
    was = job.state
    stop_reason = job.reason
    job = _close(job, event, outcome, moment)
    if outcome is Outcome.SUCCEEDED:
        return Decision(_enter(job, State.SUCCEEDED, moment))
    match job.goal:
        case Goal.PAUSE:
            return Decision(_enter(job, State.PAUSED, moment, f"paused at step {job.durable_step}"))
        case Goal.CANCEL:
            return Decision(_enter(job, State.CANCELLED, moment, stop_reason))
        case Goal.FAIL:
            return Decision(_enter(job, State.FAILED, moment, stop_reason))
        case Goal.RUN:
            return _after(job, event, outcome, moment, was)


def _after(job: Job, event: Ended, outcome: Outcome, moment: Moment, was: State) -> Decision:
    verdict = judge(job, outcome, event.exit_code, moment.jitter, rebooted=event.rebooted)
    job = replace(job, mark_step=max(job.durable_step, job.mark_step), hung=False, starved=False)
    if isinstance(verdict, GiveUp):
        return Decision(_enter(job, State.FAILED, moment, verdict.reason))
    job = replace(job, charged=verdict.charged, fruitless=verdict.fruitless, backoff_s=verdict.delay_s)
    if verdict.retreat is not None:
        job = replace(job, retreat=verdict.retreat)
        job = publish(job, moment, "retreat", before=verdict.retreat.before, reason=verdict.retreat.reason)
    drained = was is State.STOPPING and outcome is Outcome.PREEMPTED
    if drained or (was is State.STOPPING and verdict.delay_s == 0):
        return Decision(_enter(replace(job, backoff_s=0.0), State.QUEUED, moment))
    if verdict.delay_s == 0:
        return _start(job, moment)
    why = f" ({event.reason})" if outcome is Outcome.PREEMPTED and event.reason else ""
    reason = f"{outcome.value}{why}; next attempt in {verdict.delay_s:.1f} s"
    job = _enter(job, State.BACKOFF, moment, reason, delay_s=round(verdict.delay_s, 3))
    return Decision(job, (Wait(verdict.delay_s),))


# --- requests in states without an attempt ----------------------------------------------------------------


def _settle(state: State, reason: str) -> Step:
    def do(job: Job, _event: AnyEvent, moment: Moment) -> Decision:
        return Decision(_enter(job, state, moment, reason))

    return do


def _retry(job: Job, event: Retry, moment: Moment) -> Decision:
    job = replace(
        job,
        spec=event.spec,
        seed=job.seed if job.attempt else event.seed,
        threads=job.threads if job.attempt else event.threads,
        goal=Goal.RUN,
        charged=0,
        fruitless=0,
        retreat=None,
        mark_step=job.durable_step if job.attempt else -1,
        backoff_s=0.0,
        spent_s=0.0,
        finished_at=None,
    )
    return Decision(_enter(_asked_now(job.unpaced(), moment), State.QUEUED, moment))


def _prioritize(job: Job, event: Prioritize, moment: Moment) -> Decision:
    was = job.spec.priority
    job = replace(job, spec=replace(job.spec, priority=event.priority))
    return Decision(publish(job, moment, "priority", priority=event.priority, was=was))


def _remove(job: Job, _event: AnyEvent, moment: Moment) -> Decision:
    return Decision(publish(job, moment, "removed"), (Remove(),))


def _move(do: Step, *to: State) -> Move:
    return Move(do, frozenset(to))


_STOP = _move(_ask(Goal.CANCEL, Ask.STOP, "stopped on request"), State.STOPPING)
_CANCEL = _move(_ask(Goal.CANCEL, Ask.KILL, "cancelled on request"), State.STOPPING)
_GRACE = "stops: checkpoints within its grace"
_REMOVE_FIRST = "it is active; stop or cancel it first"
_LATE = Ignore("no attempt runs")
_NOT_QUEUED = Ignore("it is not queued")
_RETRY_ACTIVE = Refuse("it has not ended; there is nothing to retry")

#: The total table. Every (state, kind) has a row; a test checks it.
TABLE: dict[tuple[State, Kind], Row] = {
    (State.QUEUED, Request.STOP): _move(_settle(State.CANCELLED, "stopped before it ran"), State.CANCELLED),
    (State.QUEUED, Request.CANCEL): _move(_settle(State.CANCELLED, "cancelled"), State.CANCELLED),
    (State.QUEUED, Request.PAUSE): _move(_settle(State.PAUSED, "paused"), State.PAUSED),
    (State.QUEUED, Request.RESUME): Refuse("it is queued already"),
    (State.QUEUED, Request.RETRY): _RETRY_ACTIVE,
    (State.QUEUED, Request.REMOVE): _move(_remove, State.QUEUED),
    (State.QUEUED, Sight.ADMITTED): _move(_admitted, State.RUNNING),
    (State.RUNNING, Request.STOP): _STOP,
    (State.RUNNING, Request.CANCEL): _CANCEL,
    (State.RUNNING, Request.PAUSE): _move(_ask(Goal.PAUSE, Ask.STOP, _GRACE), State.STOPPING),
    (State.RUNNING, Request.RESUME): Refuse("it runs already"),
    (State.RUNNING, Request.RETRY): _RETRY_ACTIVE,
    (State.RUNNING, Request.REMOVE): Refuse(_REMOVE_FIRST),
    (State.RUNNING, Sight.ADMITTED): _NOT_QUEUED,
    (State.RUNNING, Sight.START_FAILED): _move(_start_failed, State.FAILED),
    (State.RUNNING, Sight.REPORTED): _move(_reported, State.RUNNING),
    (State.RUNNING, Sight.ENDED): _move(_ended, State.SUCCEEDED, State.FAILED, State.BACKOFF, State.RUNNING),
    (State.RUNNING, Sight.HUNG): _move(_limit, State.STOPPING),
    (State.RUNNING, Sight.WALL_OVER): _move(_limit, State.STOPPING),
    (State.RUNNING, Sight.MEMORY_OVER): _move(_limit, State.STOPPING),
    (State.RUNNING, Sight.DRAIN): _move(_ask(Goal.RUN, Ask.STOP, "the supervisor drains"), State.STOPPING),
    (State.RUNNING, Sight.PREEMPT): _move(_ask(Goal.RUN, Ask.STOP, "makes room"), State.STOPPING),
    (State.STOPPING, Request.STOP): _STOP,
    (State.STOPPING, Request.CANCEL): _CANCEL,
    (State.STOPPING, Request.PAUSE): _move(_ask(Goal.PAUSE, Ask.STOP, _GRACE), State.STOPPING),
    (State.STOPPING, Request.RESUME): _move(_keep_running, State.STOPPING),
    (State.STOPPING, Request.RETRY): _RETRY_ACTIVE,
    (State.STOPPING, Request.REMOVE): Refuse(_REMOVE_FIRST),
    (State.STOPPING, Sight.ADMITTED): _NOT_QUEUED,
    (State.STOPPING, Sight.START_FAILED): _move(_start_failed, State.FAILED, State.CANCELLED),
    (State.STOPPING, Sight.REPORTED): _move(_reported, State.STOPPING),
    (State.STOPPING, Sight.ENDED): _move(
        _ended, State.SUCCEEDED, State.FAILED, State.BACKOFF, State.QUEUED, State.PAUSED, State.CANCELLED
    ),
    (State.STOPPING, Sight.HUNG): Ignore("it is stopping already; the grace bounds it"),
    (State.STOPPING, Sight.WALL_OVER): Ignore("it is stopping already"),
    (State.STOPPING, Sight.MEMORY_OVER): _move(_limit, State.STOPPING),
    (State.STOPPING, Sight.DRAIN): Ignore("it is stopping already"),
    (State.STOPPING, Sight.PREEMPT): Ignore("it is stopping already"),
    (State.BACKOFF, Request.STOP): _move(_settle(State.CANCELLED, "stopped on request"), State.CANCELLED),
    (State.BACKOFF, Request.CANCEL): _move(_settle(State.CANCELLED, "cancelled on request"), State.CANCELLED),
    (State.BACKOFF, Request.PAUSE): _move(_settle(State.PAUSED, "paused"), State.PAUSED),
    (State.BACKOFF, Request.RESUME): _move(_settle(State.QUEUED, ""), State.QUEUED),
    (State.BACKOFF, Request.RETRY): _RETRY_ACTIVE,
    (State.BACKOFF, Request.REMOVE): _move(_remove, State.BACKOFF),
    (State.BACKOFF, Sight.BACKOFF_OVER): _move(_settle(State.QUEUED, ""), State.QUEUED),
    (State.PAUSED, Request.STOP): _move(_settle(State.CANCELLED, "stopped on request"), State.CANCELLED),
    (State.PAUSED, Request.CANCEL): _move(_settle(State.CANCELLED, "cancelled on request"), State.CANCELLED),
    (State.PAUSED, Request.PAUSE): Refuse("it is paused already"),
    (State.PAUSED, Request.RESUME): _move(_resume, State.QUEUED),
    (State.PAUSED, Request.RETRY): Refuse("it is paused; resume it instead"),
    (State.PAUSED, Request.REMOVE): _move(_remove, State.PAUSED),
}

for _state in SETTLED:
    for _request in (Request.STOP, Request.CANCEL, Request.PAUSE):
        TABLE[_state, _request] = Refuse(f"it has ended already ({_state.value})")
    TABLE[_state, Request.RESUME] = Refuse(f"it has ended ({_state.value}); only a paused job resumes")
    TABLE[_state, Request.RETRY] = _move(_retry, State.QUEUED)
    TABLE[_state, Request.REMOVE] = _move(_remove, _state)
    TABLE[_state, Request.PRIORITY] = Refuse(f"it has ended ({_state.value}) and waits for nothing")
TABLE[State.SUCCEEDED, Request.RETRY] = Refuse("it has succeeded; submit its folder under another name")
for _state in (one for one in State if one not in SETTLED):
    TABLE[_state, Request.PRIORITY] = _move(_prioritize, _state)
for _state in State:
    for _sight in Sight:
        TABLE.setdefault((_state, _sight), _NOT_QUEUED if _state in ACTIVE else _LATE)
