"""The table is total, and each of its rows does what the product's contract says."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from runner.core.actions import Action, Ask, Remove, Signal, Start, Wait
from runner.core.events import Admitted, AnyEvent, Ended, Prioritize, Reported, Request, Sight
from runner.core.job import (
    ACTIVE,
    ATTEMPTS_MAX,
    SETTLED,
    UNSEEN_S_MAX,
    Attempt,
    Goal,
    Job,
    Ledger,
    Outcome,
    State,
)
from runner.core.reports import LOG_BYTES, LOG_BYTES_PER_S, is_logged
from runner.core.table import TABLE, Ignore, Move, Refuse, decide, publish, refusal
from tests.core.life import (
    ADMITTED,
    BACKOFF_OVER,
    CANCEL,
    DRAIN,
    EVENTS,
    HUNG,
    KILLED,
    MEMORY_OVER,
    OK,
    PAUSE,
    PREEMPT,
    REMOVE,
    RESUME,
    START_FAILED,
    STOP,
    WALL_OVER,
    Life,
    at,
    command,
    in_state,
    queued,
    retry,
    saved,
    spec,
)

KINDS = [*Request, *Sight]
EVERY = [(state, event) for state in State for event in EVENTS]


def named(value: object) -> str:
    return str(getattr(value, "kind", value))


def asked(exit_code: int | None = None, signal: str | None = None) -> Ended:
    return Ended(exit_code=exit_code, signal=signal, asked=True)


# --- the table itself -------------------------------------------------------------------------------------


def test_every_state_and_kind_has_a_row_and_nothing_else_has() -> None:
    assert set(TABLE) == {(state, kind) for state in State for kind in KINDS}


def test_the_events_of_these_tests_are_of_every_kind() -> None:
    assert {event.kind for event in EVENTS} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", State)
def test_requests_are_refused_and_observations_ignored_never_the_other_way(
    state: State, kind: Request | Sight
) -> None:
    row = TABLE[state, kind]
    assert not isinstance(row, Ignore if isinstance(kind, Request) else Refuse)
    if not isinstance(row, Move):
        assert row.why
        assert "\n" not in row.why


@pytest.mark.parametrize(("state", "event"), EVERY, ids=named)
def test_an_event_moves_within_its_row_or_changes_nothing(state: State, event: AnyEvent) -> None:
    job = in_state(state).job
    decision = decide(job, event, at(100))
    row = TABLE[state, event.kind]
    if isinstance(row, Move):
        assert decision.job.state in row.to
        assert decision.refusal == ""
        assert decision.job.outbox, "a legal event is always told"
    else:
        assert decision.job is job
        assert decision.actions == ()
        assert decision.refusal == f"digits: {row.why}"


@pytest.mark.parametrize(("state", "event"), EVERY, ids=named)
def test_the_record_given_is_never_altered(state: State, event: AnyEvent) -> None:
    job = in_state(state).job
    copy = replace(job)
    decide(job, event, at(100))
    assert job == copy


@pytest.mark.parametrize("state", sorted(SETTLED))
def test_only_retry_and_rm_can_be_asked_of_a_settled_job(state: State) -> None:
    legal = {kind for kind in KINDS if isinstance(TABLE[state, kind], Move)}
    assert legal == {Request.RETRY, Request.REMOVE} - ({Request.RETRY} if state is State.SUCCEEDED else set())


def test_an_attempts_events_mean_something_exactly_while_one_may_live() -> None:
    of_attempts = {Sight.REPORTED, Sight.ENDED, Sight.START_FAILED, Sight.MEMORY_OVER}
    for kind in of_attempts:
        assert {state for state in State if isinstance(TABLE[state, kind], Move)} == ACTIVE


def test_refusal_speaks_of_requests_only() -> None:
    assert refusal(State.RUNNING, Request.RETRY) == "it has not ended; there is nothing to retry"
    assert refusal(State.RUNNING, Request.STOP) is None
    assert refusal(State.QUEUED, Sight.HUNG) is None


def test_a_row_that_lands_elsewhere_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row = TABLE[State.RUNNING, Sight.ENDED]
    assert isinstance(row, Move)
    monkeypatch.setitem(TABLE, (State.RUNNING, Sight.ENDED), Move(row.do, frozenset({State.PAUSED})))
    with pytest.raises(AssertionError, match="led to succeeded"):
        decide(in_state(State.RUNNING).job, OK, at(1))


# --- requests, in every state where they are granted -------------------------------------------------------

REQUESTS: list[tuple[State, AnyEvent, State, tuple[Action, ...], Goal | None]] = [
    (State.QUEUED, STOP, State.CANCELLED, (), None),
    (State.QUEUED, CANCEL, State.CANCELLED, (), None),
    (State.QUEUED, PAUSE, State.PAUSED, (), None),
    (State.QUEUED, REMOVE, State.QUEUED, (Remove(),), None),
    (State.RUNNING, STOP, State.STOPPING, (Signal(Ask.STOP),), Goal.CANCEL),
    (State.RUNNING, CANCEL, State.STOPPING, (Signal(Ask.KILL),), Goal.CANCEL),
    (State.RUNNING, PAUSE, State.STOPPING, (Signal(Ask.STOP),), Goal.PAUSE),
    (State.STOPPING, STOP, State.STOPPING, (Signal(Ask.STOP),), Goal.CANCEL),
    (State.STOPPING, CANCEL, State.STOPPING, (Signal(Ask.KILL),), Goal.CANCEL),
    (State.STOPPING, PAUSE, State.STOPPING, (Signal(Ask.STOP),), Goal.PAUSE),
    (State.STOPPING, RESUME, State.STOPPING, (), Goal.RUN),
    (State.BACKOFF, STOP, State.CANCELLED, (), None),
    (State.BACKOFF, CANCEL, State.CANCELLED, (), None),
    (State.BACKOFF, PAUSE, State.PAUSED, (), None),
    (State.BACKOFF, RESUME, State.QUEUED, (), None),
    (State.BACKOFF, REMOVE, State.BACKOFF, (Remove(),), None),
    *((state, Prioritize(3), state, (), None) for state in State if state not in SETTLED),
    (State.PAUSED, STOP, State.CANCELLED, (), None),
    (State.PAUSED, CANCEL, State.CANCELLED, (), None),
    (State.PAUSED, RESUME, State.QUEUED, (), None),
    (State.PAUSED, REMOVE, State.PAUSED, (Remove(),), None),
    (State.SUCCEEDED, REMOVE, State.SUCCEEDED, (Remove(),), None),
    (State.FAILED, retry(), State.QUEUED, (), Goal.RUN),
    (State.FAILED, REMOVE, State.FAILED, (Remove(),), None),
    (State.CANCELLED, retry(), State.QUEUED, (), Goal.RUN),
    (State.CANCELLED, REMOVE, State.CANCELLED, (Remove(),), None),
    (State.REJECTED, retry(), State.QUEUED, (), Goal.RUN),
    (State.REJECTED, REMOVE, State.REJECTED, (Remove(),), None),
]


@pytest.mark.parametrize(("state", "event", "to", "actions", "goal"), REQUESTS, ids=named)
def test_a_request_is_granted(
    state: State, event: AnyEvent, to: State, actions: tuple[Action, ...], goal: Goal | None
) -> None:
    before = in_state(state).job
    decision = decide(before, event, at(100))
    assert decision.job.state is to
    assert decision.actions == actions
    assert decision.job.goal is (goal or before.goal)
    assert (decision.job.finished_at == at(100).iso) == (to in SETTLED and to is not state)


def test_the_requests_above_are_all_that_can_be_granted() -> None:
    granted = {(s, k) for (s, k), row in TABLE.items() if isinstance(k, Request) and isinstance(row, Move)}
    assert {(state, event.kind) for state, event, *_ in REQUESTS} == granted


# --- how an attempt ends ----------------------------------------------------------------------------------

OOM_KILLED = replace(KILLED, reason="out-of-memory")
ENDS: list[tuple[str, list[AnyEvent], Ended, Outcome, State, int]] = [
    # what happened before, how it ended, the outcome, the job's state, charged to the budget
    ("done", [], OK, Outcome.SUCCEEDED, State.SUCCEEDED, 0),
    ("own failure", [], Ended(exit_code=1), Outcome.FAILED, State.BACKOFF, 1),
    ("some code", [], Ended(exit_code=3), Outcome.FAILED, State.BACKOFF, 1),
    ("retry, uncharged", [], Ended(exit_code=75), Outcome.PREEMPTED, State.BACKOFF, 0),
    ("bad configuration", [], Ended(exit_code=78), Outcome.FAILED, State.FAILED, 0),
    ("permanent", [], Ended(exit_code=125), Outcome.FAILED, State.FAILED, 0),
    ("on the list", [], Ended(exit_code=42), Outcome.FAILED, State.FAILED, 0),
    ("128 + 9", [], Ended(exit_code=137), Outcome.CRASHED, State.BACKOFF, 1),
    ("SIGKILL", [], KILLED, Outcome.CRASHED, State.BACKOFF, 1),
    ("SIGSEGV", [], Ended(signal="SIGSEGV"), Outcome.CRASHED, State.BACKOFF, 1),
    ("the kernel took it", [], OOM_KILLED, Outcome.OUT_OF_MEMORY, State.BACKOFF, 1),
    ("nobody saw it", [], Ended(), Outcome.ABANDONED, State.BACKOFF, 1),
    ("the machine went", [], Ended(rebooted=True), Outcome.ABANDONED, State.RUNNING, 0),
    ("hung, killed", [HUNG], asked(signal="SIGKILL"), Outcome.HUNG, State.BACKOFF, 1),
    ("hung, saved itself", [HUNG], asked(75), Outcome.HUNG, State.BACKOFF, 1),
    ("hung, was done", [HUNG], asked(0), Outcome.SUCCEEDED, State.SUCCEEDED, 0),
    ("memory", [MEMORY_OVER], asked(signal="SIGKILL"), Outcome.OUT_OF_MEMORY, State.BACKOFF, 1),
    ("memory, stopping", [STOP, MEMORY_OVER], OOM_KILLED, Outcome.OUT_OF_MEMORY, State.CANCELLED, 0),
    ("wall", [WALL_OVER], asked(75), Outcome.STOPPED, State.FAILED, 0),
    ("wall, was done", [WALL_OVER], asked(0), Outcome.SUCCEEDED, State.SUCCEEDED, 0),
    ("drained", [DRAIN], asked(75), Outcome.PREEMPTED, State.QUEUED, 0),
    ("drained hard", [DRAIN], asked(signal="SIGKILL"), Outcome.PREEMPTED, State.QUEUED, 0),
    ("drained, and failed at that", [DRAIN], asked(1), Outcome.PREEMPTED, State.QUEUED, 0),
    ("drained, 128 + 2", [DRAIN], asked(130), Outcome.PREEMPTED, State.QUEUED, 0),
    ("drained, 128 + 9", [DRAIN], asked(137), Outcome.PREEMPTED, State.QUEUED, 0),
    ("drained, bad configuration", [DRAIN], asked(78), Outcome.FAILED, State.FAILED, 0),
    ("drained, permanent", [DRAIN], asked(125), Outcome.FAILED, State.FAILED, 0),
    ("drained, on the list", [DRAIN], asked(42), Outcome.FAILED, State.FAILED, 0),
    ("drained, on the list as 128 + n", [DRAIN], asked(140), Outcome.CRASHED, State.FAILED, 0),
    ("drained while hung", [HUNG, DRAIN], asked(1), Outcome.HUNG, State.BACKOFF, 1),
    ("failed just before the drain", [DRAIN], Ended(exit_code=1), Outcome.FAILED, State.BACKOFF, 1),
    ("made room", [PREEMPT], asked(75), Outcome.PREEMPTED, State.QUEUED, 0),
    ("made room hard", [PREEMPT], asked(signal="SIGKILL"), Outcome.PREEMPTED, State.QUEUED, 0),
    ("made room, was done", [PREEMPT], asked(0), Outcome.SUCCEEDED, State.SUCCEEDED, 0),
    ("made room, and failed at that", [PREEMPT], asked(1), Outcome.PREEMPTED, State.QUEUED, 0),
    ("made room, then cancelled", [PREEMPT, CANCEL], asked(75), Outcome.STOPPED, State.CANCELLED, 0),
    ("stopped", [STOP], asked(75), Outcome.STOPPED, State.CANCELLED, 0),
    ("stopped by SIGTERM", [STOP], asked(signal="SIGTERM"), Outcome.STOPPED, State.CANCELLED, 0),
    ("stopped, 128 + 15", [STOP], asked(143), Outcome.STOPPED, State.CANCELLED, 0),
    ("stopped, but failed", [STOP], asked(1), Outcome.FAILED, State.CANCELLED, 0),
    ("stopped, but done", [STOP], asked(0), Outcome.SUCCEEDED, State.SUCCEEDED, 0),
    ("stopped, unseen", [STOP], Ended(), Outcome.ABANDONED, State.CANCELLED, 0),
    ("cancelled", [CANCEL], asked(signal="SIGKILL"), Outcome.STOPPED, State.CANCELLED, 0),
    ("stopped, cancelled", [STOP, CANCEL], asked(signal="SIGKILL"), Outcome.STOPPED, State.CANCELLED, 0),
    ("paused", [PAUSE], asked(75), Outcome.STOPPED, State.PAUSED, 0),
    ("paused, then stopped", [PAUSE, STOP], asked(75), Outcome.STOPPED, State.CANCELLED, 0),
    ("stopped, then paused", [STOP, PAUSE], asked(75), Outcome.STOPPED, State.PAUSED, 0),
    ("paused, but done", [PAUSE], asked(0), Outcome.SUCCEEDED, State.SUCCEEDED, 0),
    ("paused, then resumed", [PAUSE, RESUME], asked(75), Outcome.PREEMPTED, State.QUEUED, 0),
    ("stopped, then resumed", [STOP, RESUME], asked(75), Outcome.PREEMPTED, State.QUEUED, 0),
    ("drained, then paused", [DRAIN, PAUSE], asked(75), Outcome.STOPPED, State.PAUSED, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "ended", "outcome", "to", "charged"), [e[1:] for e in ENDS], ids=[e[0] for e in ENDS]
)
def test_an_attempt_ends(
    before: list[AnyEvent], ended: Ended, outcome: Outcome, to: State, charged: int
) -> None:
    life = in_state(State.RUNNING, spec(fatal_exit_codes=(42, 140))).all(before)
    life.on(ended)
    job = life.job
    first = job.attempts[0]
    assert first.outcome is outcome
    assert (first.exit_code, first.signal) == (ended.exit_code, ended.signal)
    assert first.ended_at == at(life.clock_s).iso
    assert job.state is to
    assert job.charged == charged
    ends = [line for line in life.published if line["event"] == "ended"]
    assert [line["outcome"] for line in ends] == [outcome.value]


@pytest.mark.parametrize("code", [0, 1, 75, 130, 143])
def test_a_command_is_drained_for_ever_and_never_fails_of_it(code: int) -> None:
    """It has no durable step, by which the budget would be filled up again."""
    life = in_state(State.QUEUED, command(budget=1))
    for _ in range(9):
        life.all([ADMITTED, DRAIN, asked(code)])
    assert (life.job.state, life.job.charged) == (State.QUEUED, 0)


@pytest.mark.parametrize(
    ("lists", "ended", "before", "to"),
    [
        ({"fatal_exit_codes": (75,)}, Ended(exit_code=75), [], State.FAILED),
        ({"fatal_exit_codes": (75,)}, asked(75), [DRAIN], State.QUEUED),  # as it was asked to
        ({"fatal_exit_codes": (75,)}, asked(75), [PAUSE], State.PAUSED),
        ({"fatal_exit_codes": (75,)}, Ended(exit_code=75, reason="no mirror"), [], State.BACKOFF),
        ({"fatal_exit_codes": (137,)}, Ended(exit_code=137), [], State.FAILED),
        ({"retry_exit_codes": (78,)}, Ended(exit_code=78), [], State.BACKOFF),
        ({"retry_exit_codes": (125,)}, Ended(exit_code=125), [], State.BACKOFF),
        ({"retry_exit_codes": (125,)}, asked(125), [DRAIN], State.QUEUED),
        ({"retry_exit_codes": (125,)}, Ended(exit_code=78), [], State.FAILED),
        ({"fatal_exit_codes": (3,), "retry_exit_codes": (3,)}, Ended(exit_code=3), [], State.FAILED),
    ],
)
def test_the_jobs_own_lists_of_exit_codes_go_first(
    lists: dict[str, Any], ended: Ended, before: list[AnyEvent], to: State
) -> None:
    life = in_state(State.RUNNING, spec(**lists)).all([*before, ended])
    assert (life.job.state, life.job.charged) == (to, 0)
    if to is State.FAILED:
        assert life.job.reason.startswith(f"exit code {ended.exit_code} ")


@pytest.mark.parametrize("request_", [STOP, CANCEL, PAUSE, DRAIN, PREEMPT, WALL_OVER], ids=named)
def test_a_command_that_was_asked_to_end_and_exits_0_has_not_succeeded(request_: AnyEvent) -> None:
    life = in_state(State.RUNNING, command()).all([request_])
    life.on(asked(0))
    assert life.job.attempts[0].outcome in {Outcome.STOPPED, Outcome.PREEMPTED}
    assert life.job.state in {State.CANCELLED, State.PAUSED, State.QUEUED, State.FAILED}
    assert life.job.exit_code != 0


def test_a_command_that_nobody_asked_and_exits_0_has_succeeded() -> None:
    assert in_state(State.RUNNING, command()).on(OK).job.state is State.SUCCEEDED


def test_a_job_that_makes_room_is_asked_to_stop_and_waits_again_with_the_reason() -> None:
    life = in_state(State.RUNNING)
    decision = life.on(PREEMPT)
    assert decision.actions == (Signal(Ask.STOP),)
    assert (life.job.state, life.job.goal, life.job.reason) == (State.STOPPING, Goal.RUN, PREEMPT.reason)
    assert life.published[-1]["reason"] == PREEMPT.reason
    life.on(asked(75))
    assert (life.job.state, life.job.reason) == (State.QUEUED, "")
    assert life.job.attempts[0].reason == PREEMPT.reason


def test_devices_are_those_of_the_turn_and_kept_by_an_attempt_that_follows_at_once() -> None:
    life = Life(queued()).all([Admitted(("GPU-1",)), saved(100), KILLED])
    assert [attempt.gpus for attempt in life.job.attempts] == [("GPU-1",)] * 2
    life.all([KILLED, BACKOFF_OVER, Admitted(())])
    assert [attempt.gpus for attempt in life.job.attempts] == [("GPU-1",), ("GPU-1",), ()]


def test_a_cancelled_job_that_could_not_even_start_is_cancelled() -> None:
    job = in_state(State.RUNNING).all([STOP, START_FAILED]).job
    assert (job.state, job.reason) == (State.CANCELLED, "stopped on request")
    assert job.attempts[0].outcome is Outcome.FAILED


def test_a_workers_fact_cannot_pass_for_a_transition() -> None:
    job = in_state(State.RUNNING).on(Reported(({"event": "succeeded"},), 10)).job
    assert job.state is State.RUNNING
    assert [event["event"] for event in job.outbox] == ["note"]


@pytest.mark.parametrize("before", [[], [PAUSE]], ids=str)
def test_an_attempt_that_cannot_start_fails_the_job_and_says_why(before: list[AnyEvent]) -> None:
    job = in_state(State.RUNNING).all(before).on(START_FAILED).job
    assert (job.state, job.reason) == (State.FAILED, "no such program: ./train.sh")
    assert job.attempts[0].outcome is Outcome.FAILED


def test_stop_after_the_hold_and_reasons_are_kept() -> None:
    assert in_state(State.RUNNING).all([WALL_OVER, asked(75)]).job.reason == "ran for 3601 s"
    assert in_state(State.RUNNING).all([STOP, asked(75)]).job.reason == "stopped on request"
    assert in_state(State.RUNNING).all([saved(300), PAUSE, asked(75)]).job.reason == "paused at step 300"


# --- starting and starting again --------------------------------------------------------------------------


def test_the_first_attempt() -> None:
    decision = decide(queued(), ADMITTED, at(5))
    assert decision.actions == (Start(1),)
    assert decision.job.attempts == (Attempt(1, at(5).iso, boot="boot", began_s=5),)
    assert (decision.job.attempt, decision.job.restarts, decision.job.started_at) == (1, 0, at(5).iso)


def test_an_attempt_that_made_progress_is_followed_at_once_by_the_next() -> None:
    life = in_state(State.RUNNING).all([saved(100)])
    decision = life.on(KILLED)
    assert decision.actions == (Start(2),)
    job = decision.job
    assert (job.state, job.attempt, job.restarts, job.charged, job.mark_step) == (State.RUNNING, 2, 1, 0, 100)
    began = {"boot": "boot", "began_s": life.clock_s}
    assert job.current == Attempt(2, at(life.clock_s).iso, start_step=100, **began)
    assert job.facts_read == 0
    assert [line["event"] for line in job.outbox] == ["ended", "running"]


def test_an_attempt_without_progress_is_followed_after_a_wait() -> None:
    life = in_state(State.RUNNING)
    decision = life.on(KILLED, jitter=0.5)
    assert decision.actions == (Wait(0.75),)
    assert (decision.job.state, decision.job.backoff_s) == (State.BACKOFF, 0.75)
    assert decision.job.reason == "crashed; next attempt in 0.8 s"
    life.all([BACKOFF_OVER, ADMITTED])
    assert (life.job.state, life.job.backoff_s, life.job.attempt) == (State.RUNNING, 0.0, 2)


def test_the_budget_is_spent_by_ends_without_progress_only() -> None:
    life = Life(queued(spec(budget=2)))
    for step in (100, 200, 300):
        life.all([saved(step), KILLED] if step > 100 else [ADMITTED, saved(step), KILLED])
    assert (life.job.state, life.job.attempt, life.job.charged) == (State.RUNNING, 4, 0)
    for charged in (1, 2):
        life.all([KILLED])
        assert (life.job.state, life.job.charged) == (State.BACKOFF, charged)
        life.all([BACKOFF_OVER, ADMITTED])
    life.all([KILLED])
    assert life.job.state is State.FAILED
    assert life.job.reason == (
        "3 attempts ended without a newer checkpoint (restart.budget = 2); the last: crashed; see the log"
    )
    life.all([retry(spec(budget=0)), ADMITTED])
    assert (life.job.state, life.job.attempt, life.job.charged, life.job.finished_at) == (
        *(State.RUNNING, 7, 0),
        None,
    )
    assert life.job.checkpoint is not None, "a retry continues from the last checkpoint"
    assert life.on(KILLED).job.state is State.FAILED, "retry takes the new budget"


def test_progress_gives_the_budget_back() -> None:
    life = Life(queued(spec(budget=1))).all([ADMITTED, KILLED, BACKOFF_OVER, ADMITTED])
    assert life.job.charged == 1
    life.all([saved(1), KILLED])
    assert (life.job.state, life.job.charged, life.job.fruitless) == (State.RUNNING, 0, 0)


def test_saving_the_same_step_again_is_no_progress() -> None:
    life = Life(queued(spec(budget=0))).all([ADMITTED, saved(50), KILLED, saved(50), saved(40)])
    assert life.on(KILLED).job.state is State.FAILED


def test_what_was_done_before_and_lost_since_is_no_progress_when_it_is_done_again() -> None:
    life = Life(queued(spec(budget=1))).all([ADMITTED, saved(100), KILLED])
    fell_back = {"event": "resumed", "path": "checkpoints/a", "step": 50, "epoch": 0}
    life.all([Reported((fell_back,), 1), KILLED, BACKOFF_OVER, ADMITTED])
    assert (life.job.mark_step, life.job.charged) == (100, 1)
    assert life.all([saved(60), KILLED]).job.state is State.FAILED


def test_preemption_is_free_however_often_but_waits_longer() -> None:
    life = Life(queued(spec(budget=0, backoff_min_s=1.0, backoff_max_s=8.0)))
    waits = []
    for _ in range(6):
        life.all([ADMITTED, Ended(exit_code=75)])
        waits.append(life.job.backoff_s)
        life.all([BACKOFF_OVER])
    assert (life.job.charged, life.job.attempt) == (0, 6)
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_drained_job_is_queued_and_keeps_its_counters() -> None:
    life = Life(queued(spec(budget=0)))
    for _ in range(5):
        life.all([ADMITTED, DRAIN, asked(75)])
    assert (life.job.state, life.job.charged, life.job.attempt) == (State.QUEUED, 0, 5)


def test_flags_of_one_attempt_do_not_reach_the_next() -> None:
    life = in_state(State.RUNNING).all([HUNG, asked(signal="SIGKILL"), BACKOFF_OVER, ADMITTED])
    assert (life.job.hung, life.job.starved) == (False, False)
    assert life.on(KILLED).job.attempts[-1].outcome is Outcome.CRASHED
    life = in_state(State.RUNNING).all([HUNG, PAUSE, asked(signal="SIGKILL"), RESUME, ADMITTED])
    assert life.on(KILLED).job.attempts[-1].outcome is Outcome.CRASHED
    life = in_state(State.RUNNING).all([MEMORY_OVER, asked(signal="SIGKILL"), BACKOFF_OVER, ADMITTED])
    assert life.on(KILLED).job.attempts[-1].outcome is Outcome.CRASHED


@pytest.mark.parametrize(
    ("event", "ask"),
    [(HUNG, Ask.HANG), (MEMORY_OVER, Ask.KILL), (WALL_OVER, Ask.STOP), (DRAIN, Ask.STOP)],
    ids=named,
)
def test_limits_ask_the_attempt_to_end(event: AnyEvent, ask: Ask) -> None:
    decision = in_state(State.RUNNING).on(event)
    assert decision.actions == (Signal(ask),)
    assert decision.job.state is State.STOPPING
    assert decision.job.reason == getattr(event, "reason", "the supervisor drains")


# --- the ledger -------------------------------------------------------------------------------------------


def test_the_ledger_accounts_for_every_second() -> None:
    life = Life()
    life.on(ADMITTED, 10)
    life.on(saved(100, stall_s=0.5), 60)
    life.on(KILLED, 20)  # 20 s are lost, and the next attempt starts at once
    life.on(saved(200, stall_s=0.5), 30)
    life.on(Ended(exit_code=1), 5)
    assert life.job.state is State.RUNNING
    life.on(KILLED, 7)  # it never got back to step 200: no work was lost, only time
    life.on(BACKOFF_OVER, 2)
    life.on(ADMITTED, 3)
    life.on(Reported(({"event": "resumed", "path": "c", "step": 200, "epoch": 0},), 99), 6)
    life.on(OK, 40)
    ledger = life.job.ledger
    assert (ledger.lost_s, ledger.down_s, ledger.checkpoint_s) == (20 + 5, 7 + 2 + 6, 1.0)
    assert (ledger.useful_s, ledger.waiting_s) == (60 + 30 + 40 - 1.0, 10 + 3)
    assert sum(asdict(ledger).values()) == life.clock_s
    assert ledger.ratio == pytest.approx(129 / 170), "what waited for a slot is no worse for that"


DAY_S = 86400.0


@pytest.mark.parametrize(
    ("end", "after_s", "parts"),
    [  # useful, lost, down; it began at 10, and saved something 60 s later
        (Ended(exit_code=0, ran_s=99, ended_s=110), DAY_S, (100 - 1, 0, DAY_S - 40 + 1)),
        (Ended(signal="SIGKILL", ran_s=99, ended_s=110), DAY_S, (60 - 1, 40, DAY_S - 40 + 1)),
        (Ended(exit_code=0, ran_s=99), DAY_S, (99, 0, DAY_S - 39)),
        (Ended(ran_s=80.0), DAY_S, (60, 20, DAY_S - 20)),
        (Ended(ran_s=20.0), DAY_S, (20, 0, DAY_S + 40)),
        (Ended(ran_s=1e9), 40, (60, 40, 0)),
        (KILLED, 40, (60, 40, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("step_s", [0.0, DAY_S, -DAY_S])
def test_an_end_is_booked_as_it_was_however_late_it_is_found(
    end: Ended, after_s: float, parts: tuple[float, ...], step_s: float
) -> None:
    """A supervisor that was away for a day is no attempt of a day, and neither is a clock that was set."""
    life = Life(queued(spec(budget=0)))
    life.on(ADMITTED, 10)
    life.on(saved(100), 60)
    life.step_s = step_s
    life.on(end, after_s)
    ledger, first = life.job.ledger, life.job.attempts[0]
    assert (ledger.useful_s, ledger.lost_s, ledger.down_s) == parts
    assert sum(asdict(ledger).values()) == life.clock_s
    assert first.spent_s == min(99.0 if end.ended_s else end.ran_s or 100.0, 60 + after_s)


def test_each_end_tells_where_all_time_went() -> None:
    life = Life()
    life.on(ADMITTED, 10)
    life.on(saved(100, stall_s=0.5), 60)
    life.on(KILLED, 20)
    life.on(OK, 5)
    told = [line["goodput"] for line in life.published if line["event"] == "ended"]
    first = {
        "useful_s": 59.5,
        "lost_s": 20,
        "down_s": 0,
        "checkpoint_s": 0.5,
        "waiting_s": 10,
        "ratio": 0.7438,
    }
    assert told == [first, {**first, "useful_s": 64.5, "ratio": 0.7588}]


def test_the_time_that_the_machine_was_off_is_down_not_trained() -> None:
    life = in_state(State.RUNNING)
    life.on(saved(100), 60)
    life.boot, life.step_s, life.clock_s = "next", 2 * DAY_S, 5.0  # its clocks began anew
    life.on(Ended(rebooted=True, ran_s=70.0), 0)
    ledger = life.job.ledger
    assert (ledger.useful_s, ledger.lost_s, ledger.down_s) == (60, 10, 2 * DAY_S + 5 - 1 - 70)
    assert life.job.attempts[0].spent_s == 70


@pytest.mark.parametrize("step_s", [DAY_S, -DAY_S, 20_000 * DAY_S])
def test_a_clock_that_is_set_is_neither_waited_nor_down(step_s: float) -> None:
    life = Life(queued(since=at(0).iso, since_boot="boot"), step_s=step_s)
    life.on(ADMITTED, 10)
    life.on(saved(100), 3600)
    life.on(KILLED, 0)  # the next attempt is started at once
    life.on(KILLED, 1)
    life.step_s = 0.0
    life.on(BACKOFF_OVER, 2)
    life.step_s = step_s
    life.on(ADMITTED, 5)
    ledger = life.job.ledger
    assert (ledger.useful_s, ledger.down_s, ledger.waiting_s) == (3600, 1 + 2, 10 + 5)


@pytest.mark.parametrize(
    ("step_s", "waited_s"), [(DAY_S, DAY_S + 9), (-DAY_S, 0), (20_000 * DAY_S, UNSEEN_S_MAX)]
)
def test_across_a_boot_there_is_the_wall_clock_alone_and_it_is_believed_up_to_a_month(
    step_s: float, waited_s: float
) -> None:
    life = in_state(State.RUNNING).all([PAUSE, asked(75), RESUME])
    before_s = life.job.ledger.waiting_s
    life.boot, life.step_s = "next", step_s
    life.on(ADMITTED, 9)
    assert life.job.ledger.waiting_s - before_s == waited_s


def test_what_is_told_after_a_late_return_cannot_make_more_useful_than_ran() -> None:
    life = Life().all([ADMITTED, saved(100), KILLED])
    before = life.job.ledger
    life.on(Reported(({"event": "resumed", "path": "c", "step": 100, "epoch": 0},), 99), DAY_S)
    life.on(Ended(exit_code=0, ran_s=50, ended_s=life.job.current.began_s + 50), 10)
    ledger = life.job.ledger
    assert (ledger.useful_s, ledger.down_s) == (before.useful_s, before.down_s + DAY_S + 10)


def test_an_attempt_of_an_older_record_is_booked_by_its_dates() -> None:
    life = in_state(State.RUNNING)
    life.on(saved(100), 60)
    life.job = replace(life.job, attempts=(Attempt(1, at(1).iso),))
    life.on(KILLED, 40)
    assert (life.job.ledger.useful_s, life.job.ledger.lost_s) == (60, 40)
    assert Attempt(1, at(1).iso, ended_at=at(31).iso).spent_s == 30


def test_all_attempts_since_a_retry_count_however_many_and_a_pause_changes_nothing() -> None:
    life = Life(queued(spec(budget=10**6)))
    for _ in range(ATTEMPTS_MAX + 50):
        life.on(ADMITTED)
        life.on(KILLED, 3600)
        life.on(BACKOFF_OVER)
    assert life.job.ran_s == 3600 * (ATTEMPTS_MAX + 50)
    life.all([PAUSE, RESUME, ADMITTED])
    life.on(WALL_OVER, 50)
    assert life.on(KILLED, 10).job.ran_s == 3600 * (ATTEMPTS_MAX + 50) + 60
    assert life.on(retry()).job.ran_s == 0


@pytest.mark.parametrize("way", [(), (PAUSE, RESUME)])
def test_what_the_attempts_of_an_older_record_ran_counts_too(way: tuple[AnyEvent, ...]) -> None:
    life = in_state(State.BACKOFF)
    life.job = replace(life.job, spent_s=None)
    life.all([*way, *(() if way else (BACKOFF_OVER,)), ADMITTED])
    assert life.on(KILLED, 30).job.ran_s == 1 + 30


def test_a_held_job_is_neither_down_nor_waiting() -> None:
    life = in_state(State.RUNNING).all([PAUSE, asked(75)])
    life.on(RESUME, 1000)
    life.on(ADMITTED, 5)
    assert (life.job.ledger.down_s, life.job.ledger.waiting_s) == (0, 1 + 5)


@pytest.mark.parametrize(
    ("way", "waited_s", "down_s"),
    [
        ((PAUSE, RESUME, ADMITTED), 2.0, 0.0),
        ((PAUSE, CANCEL), 1.0, 0.0),
        ((CANCEL, retry(), ADMITTED), 2.0, 0.0),
        ((ADMITTED, KILLED, PAUSE, RESUME, ADMITTED), 2.0, 1.0),
        ((ADMITTED, KILLED, RESUME, ADMITTED), 2.0, 1.0),
        ((ADMITTED, KILLED, CANCEL), 1.0, 1.0),
        ((ADMITTED, DRAIN, asked(75), ADMITTED), 2.0, 0.0),
        ((ADMITTED, Prioritize(3), KILLED, Prioritize(4), BACKOFF_OVER, Prioritize(5), ADMITTED), 3.0, 2.0),
    ],
)
def test_where_a_job_waits_and_where_it_is_down(
    way: tuple[AnyEvent, ...], waited_s: float, down_s: float
) -> None:
    ledger = Life().all(way).job.ledger
    assert (ledger.waiting_s, ledger.down_s) == (waited_s, down_s)


def test_restarts_have_their_causes_and_the_start_of_an_attempt_tells_them() -> None:
    life = Life(queued(spec(budget=9)))
    life.all([ADMITTED, KILLED, BACKOFF_OVER, ADMITTED, KILLED, BACKOFF_OVER, ADMITTED])
    life.all([HUNG, asked(75), BACKOFF_OVER, ADMITTED, PAUSE, asked(75), RESUME, ADMITTED])
    assert life.job.state is State.RUNNING
    assert life.job.restarts == 3, "to go on after a pause is no restart"
    assert life.job.restarts_by_cause == {Outcome.CRASHED: 2, Outcome.HUNG: 1}
    told = [line for line in life.published if line["event"] == "running"]
    assert [line["restarts_by_cause"] for line in told] == [
        {},
        {"crashed": 1},
        {"crashed": 2},
        {"crashed": 2, "hung": 1},
        {"crashed": 2, "hung": 1},
    ]
    assert [line["waiting_s"] for line in told] == [1, 2, 3, 4, 5]


def test_a_record_that_counted_no_causes_and_no_waiting_goes_on() -> None:
    life = Life().all([ADMITTED, KILLED, BACKOFF_OVER, ADMITTED, Ended(exit_code=1)])
    assert life.job.state is State.BACKOFF
    old = replace(life.job, since=None, restarts_by_cause={}, ledger=replace(life.job.ledger, waiting_s=0.0))
    life.job = old
    life.all([BACKOFF_OVER, ADMITTED])
    assert life.job.restarts_by_cause == {Outcome.CRASHED: 1, Outcome.FAILED: 1}
    assert (life.job.ledger.waiting_s, life.job.ledger.down_s) == (1, old.ledger.down_s + 1)


def test_a_clock_that_goes_backwards_takes_no_time_away() -> None:
    life = in_state(State.RUNNING)
    life.on(saved(100, stall_s=0.5), 10)
    life.on(OK, -5000)
    ledger = life.job.ledger
    assert min(ledger.lost_s, ledger.down_s, ledger.checkpoint_s) >= 0
    assert ledger.useful_s + ledger.lost_s + ledger.down_s + ledger.checkpoint_s >= 0


# --- what is published ------------------------------------------------------------------------------------


def test_events_are_numbered_without_gaps() -> None:
    life = Life().all(
        [ADMITTED, saved(1), KILLED, HUNG, asked(signal="SIGKILL"), STOP, retry(), ADMITTED, OK]
    )
    assert [line["seq"] for line in life.published] == list(range(1, life.job.revision + 1))
    assert life.states[0] == "running"
    assert life.states[-1] == "succeeded"


def test_facts_are_relayed_as_they_are_but_cannot_say_what_is_ours_to_say() -> None:
    hostile: dict[str, Any] = {
        "event": "warning",
        "seq": 9999,
        "time": "1970",
        "attempt": 77,
        "job": 1,
        "moment": 2,
    }
    decision = in_state(State.RUNNING).on(Reported((hostile, {}), 10))
    warning, note = decision.job.outbox
    assert warning == {
        "seq": 2,
        "time": at(2).iso,
        "event": "warning",
        "attempt": 1,
        "job": 1,
        "moment": 2,
    }
    assert (note["seq"], note["event"]) == (3, "note")
    assert decision.job.facts_read == 10


def test_a_flood_of_facts_is_dropped_and_said_but_changes_the_record() -> None:
    life, read, step = in_state(State.RUNNING), 0, 0
    while not life.job.facts_dropped and step < 1000:
        read, step = read + (1 << 17), step + 1
        life.on(Reported(({**saved(step).facts[0], "more": "x" * 999},), read), after_s=0.25)
    assert LOG_BYTES <= step << 17 < LOG_BYTES * 1.01
    for more in (1, 2):
        life.on(Reported((*saved(step + more).facts, {}), read + more), after_s=0.25)
        assert life.job.outbox == ()
    assert (life.job.durable_step, life.job.facts_dropped) == (step + 2, 5)
    life.on(Reported((), read + 3), after_s=3600.0)
    life.on(Reported(({"event": "warning"},), read + 4))
    assert [line["event"] for line in life.job.outbox] == ["facts-dropped", "warning"]
    assert life.job.outbox[0]["count"] == 5
    life.on(Reported(({"event": "warning"},), read + (4 << 20)))
    life.on(KILLED)
    assert [line["event"] for line in life.job.outbox][:2] == ["facts-dropped", "ended"]
    life.on(Reported(({"event": "warning"},), 9 << 20))
    assert life.job.outbox[-1]["event"] == "facts-dropping", "the next attempt has no more"


def test_a_clock_that_was_wrong_at_submission_allows_no_flood() -> None:
    life = in_state(State.RUNNING)
    years = replace(life.job, submitted_at="1970-01-01T00:00:00+00:00")
    assert is_logged(years, LOG_BYTES, at(0))
    assert is_logged(years, LOG_BYTES + 29 * 86400 * LOG_BYTES_PER_S, at(0)), (
        "a month may pass with nobody there"
    )
    assert not is_logged(years, LOG_BYTES + 31 * 86400 * LOG_BYTES_PER_S, at(0))
    assert is_logged(
        replace(years, ledger=Ledger(useful_s=86400.0)), LOG_BYTES + 31 * 86400 * LOG_BYTES_PER_S, at(0)
    )


def test_a_month_of_honest_facts_is_logged() -> None:
    life = in_state(State.RUNNING)
    for hour in range(1, 30 * 24 + 1):  # each minute a checkpoint, and one that is removed
        facts = [{**saved(hour).facts[0], "more": "x" * 250}, {"event": "pruned", "more": "x" * 250}] * 60
        life.job = decide(life.job, Reported(tuple(facts), 48_000 * hour), at(hour * 3600)).job
        life.job = replace(life.job, outbox=())
    assert life.job.facts_dropped == 0


def test_publish_counts_on() -> None:
    job: Job = publish(publish(queued(), at(1), "a", x=1), at(2), "b")
    assert [line["seq"] for line in job.outbox] == [1, 2]
    assert job.revision == 2
