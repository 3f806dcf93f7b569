"""The record's own words."""

from __future__ import annotations

import pytest

from runner.core.events import Ended
from runner.core.job import ACTIVE, ATTEMPTS_MAX, SETTLED, Attempt, Ledger, State, seconds_between
from tests.core.life import ADMITTED, CANCEL, KILLED, OK, STOP, Life, at, command, in_state, queued, spec


def test_no_state_is_both_active_and_settled() -> None:
    assert not ACTIVE & SETTLED


@pytest.mark.parametrize("state", State)
def test_only_success_returns_0_and_only_what_has_ended_returns(state: State) -> None:
    code = in_state(state).job.exit_code
    assert (code is None) == (state not in SETTLED)
    assert (code == 0) == (state is State.SUCCEEDED)


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        *((Ended(exit_code=78), 78), (Ended(exit_code=125), 125), (OK, 0), (KILLED, 137)),
        *(
            (Ended(signal="SIGSEGV"), 139),
            (Ended(signal="34"), 162),
            (Ended(signal="SIGWHAT"), 1),
            (Ended(), 1),
        ),
    ],
)
def test_wait_returns_the_jobs_own_code(ended: Ended, code: int) -> None:
    life = Life(queued(spec(budget=0))).all([ADMITTED, ended])
    assert life.job.exit_code == code


def test_a_command_that_ended_with_0_when_asked_to_is_cancelled_with_1() -> None:
    life = Life(queued(command())).all([ADMITTED, STOP, Ended(exit_code=0, asked=True)])
    assert (life.job.state, life.job.exit_code) == (State.CANCELLED, 1)


def test_what_never_ran_counts_as_1_and_what_was_killed_as_in_a_shell() -> None:
    assert Life().all([CANCEL]).job.exit_code == 1
    assert Life().all([ADMITTED, CANCEL, KILLED]).job.exit_code == 128 + 9


def test_the_record_keeps_the_newest_attempts() -> None:
    job = queued()
    for number in range(1, ATTEMPTS_MAX + 6):
        job = job.with_attempt(Attempt(number, at(number).iso))
    assert [a.number for a in job.attempts] == list(range(6, ATTEMPTS_MAX + 6))
    again = job.with_attempt(Attempt(ATTEMPTS_MAX + 5, at(1).iso, reason="replaced"))
    assert len(again.attempts) == ATTEMPTS_MAX
    assert again.current is not None
    assert again.current.reason == "replaced"


@pytest.mark.parametrize(
    ("earlier", "later", "seconds"),
    [
        (None, at(5).iso, 0.0),
        (at(5).iso, at(7.5).iso, 2.5),
        (at(7.5).iso, at(5).iso, 0.0),
        ("2026-01-01T01:00:00.000+01:00", at(1).iso, 1.0),
    ],
)
def test_seconds_between(earlier: str | None, later: str, seconds: float) -> None:
    assert seconds_between(earlier, later) == seconds


def test_the_share_of_useful_time() -> None:
    assert Ledger().ratio == 1.0
    assert Ledger(3, 1, 0.5, 0.5).ratio == 0.6
