"""The same failure again: one more try from further back, then an end; and losses that are not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runner.core.events import Admitted, Ended, Event, Reported, Request, Retry, Sight
from runner.core.failure import NOT_FINITE, Failure, Retreat
from runner.core.job import Outcome, State
from runner.core.restart import EXIT_RETRY
from runner.core.spec import JobSpec, LimitsSpec, Nan
from tests.core.life import CANCEL, Life, queued, spec

BUG = {"kind": "ValueError", "message": "no such class", "where": ["train.py:7 in step"], "started": True}
LATE = {**BUG, "step": 40}
NO_MODULE = {**BUG, "kind": "ImportError", "message": "no module x", "step": 0, "started": False}
NAN = {"kind": NOT_FINITE, "message": "loss is nan at step 40", "where": [], "step": 40, "started": True}


def reported(*facts: dict[str, Any]) -> Reported:
    return Reported(facts, 0)


def saved(step: int) -> dict[str, Any]:
    return {"event": "checkpoint", "path": f"checkpoints/{step}", "step": step, "epoch": 0}


def resumed(step: int) -> dict[str, Any]:
    return {"event": "resumed", "path": f"checkpoints/{step}", "step": step, "epoch": 0}


def fail(life: Life, fact: dict[str, Any], *before: dict[str, Any], code: int = 1) -> Life:
    """Let an attempt begin if none does, report what is given, and end by a failure."""
    if life.job.state is State.BACKOFF:
        life.on(Event(Sight.BACKOFF_OVER))
    if life.job.state is State.QUEUED:
        life.on(Admitted())
    life.on(reported(*before, {"event": "raised", **fact}))
    life.on(Ended(exit_code=code))
    return life


def twice_the_same() -> Life:
    life = fail(Life(), LATE, saved(10), saved(30))
    assert life.job.state is State.RUNNING, "the durable step has advanced: at once"
    assert life.job.retreat is None
    return fail(life, LATE, resumed(30))


@pytest.mark.parametrize("kind", ["MemoryError", "ResourceExhaustedError"])
def test_an_allocation_that_fails_is_out_of_memory_and_the_same_failure_if_it_is(kind: str) -> None:
    life = fail(Life(), {**LATE, "kind": kind}, saved(30))
    assert life.job.attempts[0].outcome is Outcome.OUT_OF_MEMORY
    for _ in range(2):
        fail(life, {**LATE, "kind": kind}, resumed(30))
    assert life.job.state is State.FAILED
    assert fail(Life(), {**LATE, "kind": kind}, code=78).job.attempts[0].outcome is Outcome.FAILED
    fatal = Life(queued(spec(fatal_exit_codes=(1,))))
    assert fail(fatal, {**LATE, "kind": kind}).job.state is State.FAILED


def test_the_third_try_of_the_same_failure_begins_further_back() -> None:
    life = twice_the_same()
    assert life.job.state is State.BACKOFF
    assert life.job.retreat == Retreat(
        before=30,
        reason="the same failure followed twice (ValueError: no such class (train.py:7 in step))",
        attempt=2,
    )
    assert [event["before"] for event in life.published if event["event"] == "retreat"] == [30]


def test_if_that_ends_alike_the_job_has_failed_and_says_why() -> None:
    life = fail(twice_the_same(), LATE, resumed(10), saved(20))
    assert life.job.state is State.FAILED
    assert life.job.reason == (
        "the same failure 3 times at step 40, also from an older checkpoint:"
        " ValueError: no such class (train.py:7 in step); see the log"
    )


def test_what_an_older_checkpoint_avoids_is_over() -> None:
    life = twice_the_same()
    life.all([Event(Sight.BACKOFF_OVER), Admitted(), reported(resumed(10), saved(50))])
    assert life.job.retreat is None, "what is newer now is good: the next attempt resumes from it"
    life = fail(life, {**LATE, "step": 60})
    assert life.job.state is State.RUNNING


def test_a_kill_in_between_changes_nothing() -> None:
    life = twice_the_same()
    life.all([Event(Sight.BACKOFF_OVER), Admitted(), Ended(signal="SIGKILL")])
    assert life.job.retreat is not None
    assert life.job.retreat.before == 30
    fail(life, LATE, resumed(10))
    assert life.job.state is State.FAILED


@pytest.mark.parametrize(
    "other", [{"step": 41}, {"kind": "OSError"}, {"where": ["train.py:8 in step"]}, {"started": False}]
)
def test_another_failure_is_another(other: dict[str, Any]) -> None:
    life = twice_the_same()
    fail(life, {**LATE, **other}, resumed(10))
    assert life.job.state is State.BACKOFF


def test_another_message_is_not() -> None:
    """Texts hold addresses, times and counts."""
    assert fail(twice_the_same(), {**LATE, "message": "no such class (7 of 9)"}).job.state is State.FAILED


def test_what_no_second_start_avoids_ends_the_job_at_once() -> None:
    life = fail(fail(Life(), NO_MODULE), NO_MODULE)
    assert life.job.state is State.FAILED
    assert life.job.reason == (
        "it fails as it starts, 2 times the same: ImportError: no module x (train.py:7 in step); see the log"
    )


def test_what_may_pass_is_tried_once_more() -> None:
    busy = {**NO_MODULE, "kind": "OSError", "message": "the port is taken"}
    life = fail(fail(Life(), busy), busy)
    assert life.job.state is State.BACKOFF
    assert life.job.retreat is None, "there is nothing to go back from"
    assert fail(life, busy).job.state is State.FAILED


LATE_MOUNT = {**NO_MODULE, "kind": "FileNotFoundError"}


@pytest.mark.parametrize("fact", [NO_MODULE, LATE_MOUNT])
@pytest.mark.parametrize(
    "trained", [(saved(500),), ({"event": "raised", **LATE},), (saved(500), {"event": "quarantined"})]
)
def test_where_it_has_trained_before_what_keeps_it_from_starting_is_left_to_the_budget(
    fact: dict[str, Any], trained: tuple[dict[str, Any], ...]
) -> None:
    gone = {"path": saved(500)["path"]}
    life = Life().all([Admitted(), reported(trained[0]), Ended(signal="SIGKILL")])
    if life.job.state is State.BACKOFF:
        life.all([Event(Sight.BACKOFF_OVER), Admitted()])
    life.on(reported(*({**one, **gone} for one in trained[1:])))
    ends = 0
    while life.job.state is not State.FAILED:
        fail(life, fact)
        ends += 1
    assert ends >= 5
    assert "restart.budget = 5" in life.job.reason
    assert life.job.retreat is None


def test_what_fails_before_training_puts_no_checkpoint_aside() -> None:
    down = {**BUG, "kind": "ConnectionError", "message": "refused", "step": 0, "started": False}
    life = fail(fail(Life(), LATE, saved(500)), down)
    fail(life, down)
    assert life.job.retreat is None
    assert life.job.state is State.BACKOFF


@pytest.mark.parametrize("end", [Ended(signal="SIGKILL"), Ended(exit_code=75), Ended()])
def test_failures_at_the_start_that_something_lies_between_are_not_in_a_row(end: Ended) -> None:
    busy = {**NO_MODULE, "kind": "ConnectionError"}
    life = Life(queued(spec(budget=100)))
    for _ in range(4):
        fail(life, busy)
        if life.job.state is State.BACKOFF:
            life.on(Event(Sight.BACKOFF_OVER))
        life.all([Admitted(), end])
    assert life.job.state is State.BACKOFF


def crashed(life: Life, step: int, *after: dict[str, Any], signal: str = "SIGSEGV") -> Life:
    """Let an attempt resume, report what is given, and die by a signal."""
    if life.job.state is State.BACKOFF:
        life.on(Event(Sight.BACKOFF_OVER))
    if life.job.state is State.QUEUED:
        life.on(Admitted())
    return life.all([reported(resumed(step), *after), Ended(signal=signal)])


def test_two_faults_from_the_same_checkpoint_lead_to_an_older_one_and_the_budget_ends_the_job() -> None:
    life = Life().all([Admitted(), reported(saved(10), saved(30)), Ended(signal="SIGSEGV")])
    assert crashed(life, 30).job.retreat is None, "once may be chance"
    assert crashed(life, 30).job.retreat == Retreat(
        before=30, reason="the same failure followed twice (SIGSEGV, and nothing saved)", attempt=3
    )
    crashed(life, 10, saved(40))
    assert life.job.retreat is None, "that has helped"
    for _ in range(9):
        if life.job.state is not State.FAILED:
            crashed(life, 40)
    assert (life.job.state, len(life.job.attempts)) == (State.FAILED, 10)
    assert "restart.budget = 5" in life.job.reason


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((30,), "SIGSEGV"), ((30,), "SIGABRT")),
        (((30,), "SIGKILL"), ((30,), "SIGKILL")),
        (((30, saved(40)), "SIGBUS"), ((40,), "SIGBUS")),
        (((30,), "SIGBUS"), ((30, saved(40)), "SIGBUS")),
    ],
)
def test_other_signals_and_what_has_got_on_put_no_checkpoint_aside(
    first: tuple[Any, str], second: tuple[Any, str]
) -> None:
    life = Life().all([Admitted(), reported(saved(10), saved(30)), Ended(signal="SIGKILL")])
    for facts, signal in (first, second):
        crashed(life, *facts, signal=signal)
    assert life.job.retreat is None


def test_a_fault_before_anything_was_resumed_puts_no_checkpoint_aside() -> None:
    life = Life().all([Admitted(), reported(saved(30)), Ended(signal="SIGKILL")])
    life.on(Ended(signal="SIGSEGV"))
    life.all([Event(Sight.BACKOFF_OVER), Admitted(), Ended(signal="SIGSEGV")])
    assert life.job.retreat is None


def test_a_retry_begins_a_new_count() -> None:
    life = fail(twice_the_same(), LATE, resumed(10))
    life.on(Retry(life.job.spec))
    assert life.job.retreat is None
    assert fail(life, LATE, resumed(10)).job.state is State.BACKOFF


@pytest.mark.parametrize("step_s", [-86400.0, 0.0, 86400.0])
def test_two_faults_count_since_a_retry_however_the_clock_is_set(step_s: float) -> None:
    life = Life().all([Admitted(), reported(saved(10), saved(30)), Ended(signal="SIGSEGV")])
    crashed(life, 30)
    life.step_s = step_s
    life.all([CANCEL, Retry(life.job.spec)])
    assert crashed(life, 30).job.retreat is None, "what was before counts no more"
    assert crashed(life, 30).job.retreat is not None


@pytest.mark.parametrize("step_s", [-86400.0, 0.0, 86400.0])
def test_what_counts_since_a_retry_is_the_same_however_the_clock_is_set(step_s: float) -> None:
    life = fail(twice_the_same(), LATE, resumed(10))
    life.on(Retry(life.job.spec))
    assert life.job.failures == []
    life.step_s = step_s
    for _ in range(3):
        fail(life, LATE, resumed(10))
    assert life.job.state is State.FAILED
    assert "3 times at step 40" in life.job.reason
    assert [attempt.number for attempt in life.job.since_asked] == [4, 5, 6]


def test_an_older_record_has_the_date_alone() -> None:
    job = fail(twice_the_same(), LATE, resumed(10)).job
    older = replace(job, asked_attempt=None, asked_at=job.attempts[1].started_at)
    assert [attempt.number for attempt in older.since_asked] == [2, 3]


def test_rollbacks_are_bounded_under_a_clock_that_was_set_back() -> None:
    life = fail(careful(Nan.ROLLBACK), NAN, saved(10), saved(30))
    life.all([Event(Request.PAUSE), Ended(exit_code=75, asked=True), Event(Request.RESUME)])
    life.step_s = -86400.0
    fail(fail(life, NAN, resumed(30)), NAN, resumed(30))
    assert fail(life, NAN, resumed(10)).job.state is State.FAILED


def test_codes_that_are_to_be_tried_again_are_never_charged_nor_counted() -> None:
    life = Life(queued(spec(budget=1, retry_exit_codes=(9,))))
    for _ in range(6):
        fail(life, {**BUG, "kind": "SystemExit", "message": "9", "step": 0}, code=9)
    assert (life.job.state, life.job.charged) == (State.BACKOFF, 0)
    fail(life, {**BUG, "kind": "SystemExit", "message": "1", "step": 0}, code=1)
    assert life.job.state is State.BACKOFF, "it is the first that counts"


def test_a_stop_is_no_failure() -> None:
    life = fail(fail(Life(), LATE, saved(30)), LATE, code=EXIT_RETRY)
    assert life.job.retreat is None


# --- losses -----------------------------------------------------------------------------------------------


def careful(nan: Nan, rollbacks: int = 2) -> Life:
    limits = LimitsSpec(nan=nan, nan_rollbacks=rollbacks)
    return Life(queued(JobSpec(limits=limits)))


def test_a_loss_that_is_not_finite_ends_the_job_where_it_asks_for_that() -> None:
    life = fail(careful(Nan.FAIL), NAN, saved(30))
    assert life.job.state is State.FAILED
    assert life.job.reason == 'loss is nan at step 40 (limits.nan = "fail"); see the log'


def test_it_is_rolled_back_so_many_times_each_time_further() -> None:
    life = fail(careful(Nan.ROLLBACK), NAN, saved(10), saved(30))
    assert life.job.state is State.RUNNING
    slower = "loss is nan at step 40: rolled back, learning rates times 0.5"
    assert life.job.retreat == Retreat(None, 0.5, slower, attempt=1)
    fail(life, NAN, resumed(30))
    assert life.job.retreat == Retreat(30, 0.5, slower, attempt=2), "nothing good came of that"
    assert life.job.charged == 0
    fail(life, NAN, resumed(10))
    assert life.job.state is State.FAILED
    assert "after 2 rollbacks (limits.nan_rollbacks = 2)" in life.job.reason


def test_after_a_good_checkpoint_the_newest_is_good_enough() -> None:
    life = fail(careful(Nan.ROLLBACK), NAN, saved(30))
    fail(life, {**NAN, "step": 90}, resumed(30), saved(80))
    assert life.job.retreat is not None
    assert life.job.retreat.before is None


# --- facts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"step": -1}, {"step": "x"}, {"where": None}, {"kind": None, "step": None}]
)
def test_what_a_worker_makes_up_changes_nothing(wrong: dict[str, Any]) -> None:
    life = Life().all([Admitted(), reported({"event": "raised", **LATE, **wrong})])
    assert life.job.current is not None
    assert life.job.current.failure is None


def test_its_texts_are_bounded() -> None:
    long = {"event": "raised", **LATE, "message": "x" * 10_000, "where": ["y" * 999] * 50}
    job = Life().all([Admitted(), reported(long)]).job
    assert job.current is not None
    failure = job.current.failure
    assert isinstance(failure, Failure)
    assert (len(failure.message), len(failure.where), len(failure.where[0])) == (300, 3, 300)
    assert replace(failure, message="") == failure
