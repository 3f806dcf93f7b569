"""When no progress has lasted too long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.hang import FACTOR, FLOOR_S, Pulse, hangs, limit_s, observe
from runner.core.spec import LimitsSpec

AUTO = LimitsSpec()


def watch(*looks: tuple[float, str], runnable: bool = True, stepped: bool = True) -> Pulse:
    """Look at an attempt, first seen at 0 s, at (time, mark)."""
    pulse = Pulse(0.0)
    for now, mark in looks:
        pulse = observe(pulse, now, mark, stepped=stepped, runnable=runnable)
    return pulse


def test_before_the_first_step_the_startup_limit_holds() -> None:
    limits = LimitsSpec(startup_s=10, hang_s=1)
    assert hangs(watch((10, "")), limits) is None
    assert hangs(watch((10.6, "")), limits) == "no progress for 11 s (limits.startup allows 10 s)"


def test_a_phase_before_the_first_step_is_progress() -> None:
    limits = LimitsSpec(startup_s=10)
    assert hangs(watch((9, "import"), (18, "build"), (27, "trace"), stepped=False), limits) is None
    assert hangs(watch((9, "import"), (20, "import"), stepped=False), limits) is not None


def test_after_the_first_step_the_jobs_own_limit_holds() -> None:
    limits = LimitsSpec(hang_s=5, startup_s=1000)
    assert hangs(watch((1, "1"), (6, "1")), limits) is None
    assert hangs(watch((1, "1"), (7, "1")), limits) == "no progress for 6 s (limits.hang allows 5 s)"


def test_a_learned_limit_has_a_floor() -> None:
    assert limit_s(watch((1, "1"), (2, "2")), AUTO) == FLOOR_S


def test_a_learned_limit_grows_with_the_longest_pause_that_ended_by_itself() -> None:
    pulse = watch((1, "1"), (101, "1"), (101.5, "2"), (102, "3"))
    assert limit_s(pulse, AUTO) == FACTOR * 100.5
    assert hangs(watch((1, "1"), (101, "1"), (101.5, "2"), (102, "2"), (2000, "2")), AUTO) is None


def test_the_time_to_the_first_step_teaches_nothing() -> None:
    assert limit_s(watch((500, ""), (501, "1"), (502, "2")), AUTO) == FLOOR_S


def test_time_in_which_it_could_not_run_does_not_count() -> None:
    assert hangs(watch((1, "1"), (1e9, "1"), runnable=False), LimitsSpec(hang_s=5)) is None


@pytest.mark.parametrize("field", ["hang_s", "startup_s"])
def test_never_is_never(field: str) -> None:
    limits = LimitsSpec(**{field: math.inf})
    assert hangs(watch((1, "1"), (1e12, "1"), stepped=field == "hang_s"), limits) is None


@given(st.lists(st.tuples(st.floats(0, 1e3), st.booleans(), st.booleans()), max_size=30), st.floats(1, 1e3))
def test_idle_time_is_exactly_what_was_seen_idle(
    looks: list[tuple[float, bool, bool]], hang_s: float
) -> None:
    pulse, now, idle_s, mark = Pulse(0.0, "0", stepped=True), 0.0, 0.0, 0
    for passed_s, works, runnable in looks:
        now += passed_s
        mark += works
        idle_s = 0.0 if works else idle_s + (passed_s if runnable else 0.0)
        pulse = observe(pulse, now, str(mark), stepped=True, runnable=runnable)
        assert pulse.idle_s == pytest.approx(idle_s, abs=1e-6)
    assert (hangs(pulse, LimitsSpec(hang_s=hang_s)) is not None) == (pulse.idle_s > hang_s)


def test_a_clock_that_goes_backwards_is_no_progress_and_no_idleness() -> None:
    assert watch((10, "1"), (5, "1")).idle_s == 0.0


def test_what_follows_training_has_as_long_as_a_start():
    limits = LimitsSpec(startup_s=2 * FLOOR_S)
    pulse = watch((1, "a"), (2, "b"), (2 + 1.5 * FLOOR_S, "b"))
    assert hangs(pulse, limits) is not None
    assert hangs(pulse, limits, after=True) is None
    assert limit_s(pulse, LimitsSpec(hang_s=5.0), after=True) == 5.0
