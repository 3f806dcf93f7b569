"""After an end: again at once, again later, or never; and how long later is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.job import CheckpointRef, Job, Outcome
from runner.core.restart import Again, GiveUp, Verdict, backoff_s, judge
from runner.core.spec import RestartSpec
from tests.core.life import queued, spec


def job(step: int = 0, mark: int = 0, charged: int = 0, fruitless: int = 0, budget: int = 5) -> Job:
    checkpoint = CheckpointRef("checkpoints/a", step, 0) if step else None
    return replace(
        queued(spec(budget=budget, fatal_exit_codes=(42,))),
        checkpoint=checkpoint,
        mark_step=mark,
        charged=charged,
        fruitless=fruitless,
    )


def verdict(
    of: Job, outcome: Outcome = Outcome.CRASHED, code: int | None = None, *, rebooted: bool = False
) -> Verdict:
    return judge(of, outcome, code, 1.0, rebooted=rebooted)


@pytest.mark.parametrize(
    ("of", "outcome", "expected"),
    [
        (job(step=10, mark=0, charged=5, fruitless=9), Outcome.CRASHED, Again(0.0, 0, 0)),
        (job(step=10, mark=-1), Outcome.CRASHED, Again(0.0, 0, 0)),
        (job(mark=-1), Outcome.CRASHED, Again(1.0, 1, 1)),
        (job(step=10, mark=10), Outcome.CRASHED, Again(1.0, 1, 1)),
        (job(step=5, mark=10), Outcome.CRASHED, Again(1.0, 1, 1)),
        (job(charged=4, fruitless=1), Outcome.HUNG, Again(2.0, 5, 2)),
        (job(charged=5, fruitless=1), Outcome.PREEMPTED, Again(2.0, 5, 2)),
        (job(charged=5, fruitless=1), Outcome.STOPPED, Again(2.0, 5, 2)),
        (job(step=10, mark=0, budget=0), Outcome.CRASHED, Again(0.0, 0, 0)),
    ],
)
def test_again(of: Job, outcome: Outcome, expected: Again) -> None:
    assert verdict(of, outcome) == expected


def test_a_reboot_is_nobodys_fault_and_nothing_is_waited_for() -> None:
    assert verdict(job(charged=5, fruitless=3), Outcome.ABANDONED, rebooted=True) == Again(0.0, 5, 0)
    assert isinstance(verdict(job(charged=5), Outcome.ABANDONED), GiveUp)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (78, "exit code 78 (bad configuration) is never retried; see the log"),
        (125, "exit code 125 (permanent failure) is never retried; see the log"),
        (42, "exit code 42 is in restart.fatal_exit_codes; see the log"),
    ],
)
def test_some_codes_end_the_job_even_with_progress(code: int, said: str) -> None:
    assert verdict(job(step=10, mark=0), Outcome.FAILED, code) == GiveUp(said)


@pytest.mark.parametrize("outcome", [Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_a_code_that_we_provoked_is_not_the_jobs_word(outcome: Outcome) -> None:
    assert isinstance(verdict(job(), outcome, 78), Again)


def test_a_spent_budget_is_explained() -> None:
    given_up = verdict(job(charged=5), Outcome.FAILED, 1)
    assert given_up == GiveUp(
        "6 attempts ended without a newer checkpoint (restart.budget = 5); the last: exit code 1; see the log"
    )
    assert "the last: hung" in str(verdict(job(charged=5), Outcome.HUNG))


def test_a_budget_of_nothing() -> None:
    assert isinstance(verdict(job(budget=0)), GiveUp)


RESTARTS = st.builds(
    lambda low, more: RestartSpec(backoff_min_s=low, backoff_max_s=low + more),
    st.floats(0.01, 1e4),
    st.floats(0, 1e6),
)


@given(RESTARTS, st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_a_delay_lies_between_half_its_step_and_the_whole(spec: RestartSpec, n: int, jitter: float) -> None:
    delay_s = backoff_s(spec, n, jitter)
    assert spec.backoff_min_s / 2 <= delay_s <= spec.backoff_max_s
    assert backoff_s(spec, n, 0.0) <= delay_s <= backoff_s(spec, n + 1, jitter)
    assert backoff_s(spec, n, 0.0) * 2 == pytest.approx(backoff_s(spec, n, 1.0))


@given(RESTARTS, st.floats(0, 1, exclude_max=True))
def test_no_fruitless_end_no_delay(spec: RestartSpec, jitter: float) -> None:
    assert backoff_s(spec, 0, jitter) == 0.0


def test_delays_double_up_to_the_bound() -> None:
    delays = [backoff_s(RestartSpec(backoff_min_s=1, backoff_max_s=10), n, 1.0) for n in range(1, 7)]
    assert delays == [1, 2, 4, 8, 10, 10]
