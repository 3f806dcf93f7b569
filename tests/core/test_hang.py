"""When no progress has lasted too long."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.events import Ended, Limit, Sight
from runner.core.hang import (
    CONDITIONS,
    FACTOR,
    PACED,
    PATIENCE,
    SILENCE,
    STARTUP,
    STARTUP_LIMIT,
    Ability,
    Condition,
    Look,
    Pulse,
    hangs,
    lengthened,
    limit_s,
    merged,
    observe,
    teaches,
)
from runner.core.spec import LimitsSpec
from tests.core.life import ADMITTED, BACKOFF_OVER, CANCEL, KILLED, Life, retry

AUTO = LimitsSpec()
FLOOR_S = PATIENCE["train"].floor_s
#: Past that, for a learned limit's upper bound.
HOURS_S = 2 * 3600.0


@pytest.mark.parametrize(
    ("known", "seen", "expected"),
    [
        ({}, {"train": 2.9}, False),
        ({}, {"train": 3.0}, True),
        ({"train": 3.0}, {"train": 5.9, "validate": 1.0}, False),
        ({"train": 3.0}, {"train": 6.0}, True),
        ({"train": 600.0}, {"train": 3.0, "validate": 40.0}, True),
        ({"train": 600.0}, {"train": 900.0}, False),
        ({}, {"of a script's own": 1e6}, False),
        ({}, {}, False),
    ],
)
def test_what_is_worth_keeping_at_once(
    known: dict[str, float], seen: dict[str, float], expected: bool
) -> None:
    assert teaches(known, seen) is expected
    assert not teaches(merged(known, seen), seen), "once"


def seen(phase: str, idle_s: float, **fields: float) -> Pulse:
    """An attempt that has shown no work in a phase for so long, its Python running."""
    return Pulse(0.0, "1", phase, "beat", idle_s, **fields)


def go(pulse: Pulse, seconds: float, **look: object) -> Pulse:
    """Look at an attempt once a second for so long; nothing changes but what `look` says."""
    as_before = {"mark": pulse.mark, "phase": pulse.phase, "beat": pulse.beat}
    for _ in range(int(seconds)):
        pulse = observe(pulse, Look(pulse.seen_at + 1.0, **{**as_before, **look}))  # type: ignore[arg-type]
    return pulse


# --- the table --------------------------------------------------------------------------------------------


def test_the_table_is_total() -> None:
    assert set(CONDITIONS) == set(itertools.product(Ability, (True, False), (True, False)))


@pytest.mark.parametrize(("ability", "works", "beats"), list(CONDITIONS))
def test_what_the_signals_mean(ability: Ability, works: bool, beats: bool) -> None:
    """Work is work, however it could come about; without it, who cannot run is not idle."""
    before = Pulse(0.0, "1", "train", "1", idle_s=5.0, silent_s=5.0, starved_s=5.0)
    after = observe(before, Look(1.0, "2" if works else "1", "train", "2" if beats else "1", ability=ability))
    able_s = 1.0 if ability is Ability.RUNS else 0.0
    assert (CONDITIONS[ability, works, beats] is Condition.WORKING) == works
    assert after.idle_s == (0.0 if works else 5.0 + able_s)
    assert after.silent_s == (0.0 if works or beats else 5.0 + able_s)
    assert after.starved_s == (0.0 if works else 5.0 + (ability is Ability.STARVED))


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "limits", "longest_s", "expected_s"),
    [
        # Before the first step: limits.startup; history can lengthen it where it is not of the job's own.
        *[(phase, AUTO, None, 600.0) for phase in sorted(STARTUP)],
        ("trace", AUTO, 5.0, 600.0),
        ("trace", AUTO, 60.0, 6000.0),
        ("trace", LimitsSpec(startup_s=90.0), 60.0, 90.0),
        ("import", LimitsSpec(hang_s=5.0), None, 600.0),
        ("", LimitsSpec(hang_s=5.0), None, 600.0),
        ("", LimitsSpec(hang_s=9000.0), None, 9000.0),  # a command that never reports anything
        # After it: limits.hang where that is set, whatever is known.
        *[(phase, LimitsSpec(hang_s=5.0), 60.0, 5.0) for phase in ("train", "validate", "after", "own", "x")],
        # Learned: generous before anything is known, then by the longest pause, with a floor.
        ("train", AUTO, None, 1800.0),
        ("train", AUTO, 0.5, 300.0),
        ("train", AUTO, 10.0, 1000.0),
        ("validate", AUTO, None, 7200.0),
        ("validate", AUTO, 1.0, 600.0),
        ("validate", AUTO, 1800.0, 5 * 1800.0 + HOURS_S),
        ("callbacks", AUTO, 0.1, 1800.0),
        ("save", AUTO, 0.1, 600.0),
        ("after", AUTO, 0.1, 7200.0),
        ("made up by a script", AUTO, None, 1800.0),
    ],
)
def test_limits(phase: str, limits: LimitsSpec, longest_s: float | None, expected_s: float) -> None:
    pace = {} if longest_s is None else {phase: longest_s}
    assert limit_s(phase, limits, pace) == expected_s
    assert hangs(seen(phase, expected_s), limits, pace) is None
    assert hangs(seen(phase, expected_s + 1), limits, pace) is not None


def test_a_job_whose_start_takes_longer_than_is_usual_gets_there_in_the_end() -> None:
    """One that tokenises for 100 minutes, say; one that never comes to an end does not grow for ever."""
    pace: dict[str, float] = {}
    allowed = []
    for _ in range(6):
        allowed.append(limit_s("import", AUTO, pace))
        pace = merged(pace, lengthened(seen("import", allowed[-1] + 0.5), AUTO, pace))
    assert allowed == [600, 1200, 2400, 4800, 7200, 7200]
    longer = {STARTUP_LIMIT: 1200.0}
    assert {limit_s(phase, AUTO, longer) for phase in STARTUP} == {1200}
    assert limit_s("train", AUTO, longer) == limit_s("train", AUTO, {})
    assert limit_s("build", LimitsSpec(startup_s=90.0), longer) == 90


@pytest.mark.parametrize(
    ("pulse", "limits", "pace", "expected_s"),
    [
        (seen("build", 601.5), AUTO, {}, 1202),
        (seen("", 601.5), AUTO, {}, 1202),
        (seen("import", 3601, silent_s=3601), AUTO, {}, 7200),  # it had longer, as not even its Python ran
        (seen("import", 7201), AUTO, {STARTUP_LIMIT: 7200.0}, None),
        (seen("build", 9201), AUTO, {"build": 400.0}, None),  # it has longer by what it has shown
        (seen("import", 91), LimitsSpec(startup_s=90.0), {}, None),
        (seen("", 601), LimitsSpec(hang_s=60.0), {}, None),
        (seen(STARTUP_LIMIT, 1801), AUTO, {}, None),
        (seen("train", 1801), AUTO, {}, None),
    ],
)
def test_a_hang_before_the_first_step_gives_the_next_attempt_twice_as_long(
    pulse: Pulse, limits: LimitsSpec, pace: dict[str, float], expected_s: float | None
) -> None:
    assert lengthened(pulse, limits, pace) == ({} if expected_s is None else {STARTUP_LIMIT: expected_s})
    told = f", the next attempt {expected_s} s)"
    assert str(hangs(pulse, limits, pace)).endswith(told) is (expected_s is not None)


def test_what_the_next_attempt_is_allowed_is_kept_until_a_retry() -> None:
    life = Life().all(
        [ADMITTED, Limit(Sight.HUNG, "no progress", {STARTUP_LIMIT: 1200.0}), KILLED, BACKOFF_OVER, ADMITTED]
    )
    assert life.job.pace == {STARTUP_LIMIT: 1200.0}
    assert life.all([CANCEL, KILLED, retry()]).job.pace == {}


def test_a_first_validation_of_half_an_hour_is_none() -> None:
    pulse = go(seen("train", 0.0), 1, mark="2", phase="validate", beat="2")
    pulse = go(pulse, 1800, beat="3")
    assert hangs(pulse, AUTO, {}) is None
    assert go(pulse, 1, mark="3", phase="train").pace["validate"] == 1801


@pytest.mark.parametrize(
    ("pulse", "limits", "line"),
    [
        (seen("trace", 11), LimitsSpec(startup_s=10), "in trace, though its Python runs (limits.startup"),
        (seen("train", 11), LimitsSpec(hang_s=10), "in train, though its Python runs (limits.hang"),
        (
            seen("train", 11, silent_s=9),
            LimitsSpec(hang_s=10),
            "in train, nor does its Python run (limits.hang",
        ),
        (replace(seen("train", 11), beat=None), LimitsSpec(hang_s=10), "in train (limits.hang"),
    ],
)
def test_the_reason(pulse: Pulse, limits: LimitsSpec, line: str) -> None:
    assert hangs(pulse, limits, {}) == f"no progress for 11 s {line} allows 10 s)"


@pytest.mark.parametrize("field", ["hang_s", "startup_s"])
def test_never_is_never(field: str) -> None:
    limits = LimitsSpec(**{field: math.inf})
    assert hangs(seen("train" if field == "hang_s" else "build", 1e12), limits, {}) is None


# --- two signals ------------------------------------------------------------------------------------------


def test_a_long_call_that_lets_no_python_run_has_longer() -> None:
    known = {"train": 1.0, SILENCE: 1.0}
    silent = seen("train", FLOOR_S + 1, silent_s=FLOOR_S + 1)
    assert hangs(silent, AUTO, known) is None
    assert hangs(replace(silent, silent_s=0.5), AUTO, known) is not None, "alive, and does not work"
    beyond_s = PATIENCE[SILENCE].floor_s + 1
    assert "nor does" in str(hangs(replace(silent, idle_s=beyond_s, silent_s=beyond_s), AUTO, known))
    assert hangs(replace(silent, idle_s=beyond_s, silent_s=beyond_s), AUTO, {"train": 1.0}) is None


def test_silence_is_learned_as_a_phase_is() -> None:
    pulse = go(go(seen("train", 0.0), 50), 1, beat="2")
    assert pulse.pace == {SILENCE: 51}
    assert limit_s(SILENCE, AUTO, pulse.pace) == FACTOR * 51


def test_a_pause_belongs_to_the_phase_it_was_spent_in() -> None:
    pulse = go(seen("validate", 0.0), 40)
    pulse = go(pulse, 1, mark="2", phase="train")
    assert pulse.pace == {"validate": 41, SILENCE: 41}
    assert (pulse.idle_s, pulse.phase) == (0.0, "train")


def test_what_was_before_the_first_report_teaches_nothing() -> None:
    assert go(go(Pulse(0.0), 500), 1, mark="1", phase="train").pace == {}


def test_how_old_the_newest_work_was_when_told_counts() -> None:
    assert go(seen("train", 9.0), 1, mark="2", idle_s=0.75).idle_s == 0.75
    assert go(seen("train", 9.0), 1, mark="2", idle_s=1e9).idle_s == 1.0, "no longer than since the last look"


# --- never a false hang -----------------------------------------------------------------------------------


@given(
    st.floats(0.01, HOURS_S / FACTOR),
    st.lists(st.floats(1, FACTOR), max_size=20),
    st.sampled_from(sorted(PATIENCE)),
)
def test_pauses_that_differ_a_hundredfold_are_none(lo_s: float, factors: list[float], phase: str) -> None:
    pulse = seen(phase, 0.0)
    for number, factor in enumerate([1.0, *factors]):
        pulse = replace(pulse, idle_s=lo_s * factor)
        assert hangs(pulse, AUTO, {}) is None
        pulse = observe(pulse, Look(0.0, f"{number}", phase, "beat"))


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.booleans(), st.booleans(), st.sampled_from(Ability)), max_size=30
    )
)
def test_idle_is_what_was_seen_idle_and_a_look_counts_a_second(
    looks: list[tuple[float, bool, bool, Ability]],
) -> None:
    """Gaps of any length (a slow or stopped supervisor, a suspended machine), a clock that goes back."""
    pulse, now, idle_s, starved_s, mark, beat = Pulse(0.0, "0", "train", "0"), 0.0, 0.0, 0.0, 0, 0
    for passed_s, works, beats, ability in looks:
        counts_s = min(max(0.0, passed_s), 1.0)
        now, mark, beat = now + passed_s, mark + works, beat + beats
        idle_s = 0.0 if works else idle_s + counts_s * (ability is Ability.RUNS)
        starved_s = 0.0 if works else starved_s + counts_s * (ability is Ability.STARVED)
        pulse = observe(pulse, Look(now, str(mark), "train", str(beat), ability=ability))
        assert pulse.idle_s == pytest.approx(idle_s, abs=1e-3)
        assert pulse.starved_s == pytest.approx(starved_s, abs=1e-3)


def test_an_hour_of_being_stopped_is_none() -> None:
    assert hangs(go(seen("train", 4.0), 3600, ability=Ability.HELD), LimitsSpec(hang_s=5), {}) is None


def test_waiting_for_a_processor_counts_after_many_limits() -> None:
    limits = LimitsSpec(hang_s=5)
    pulse = go(seen("train", 0.0), 10 * 5 + 5, ability=Ability.STARVED)
    assert hangs(pulse, limits, {}) is None
    assert hangs(go(pulse, 1, ability=Ability.STARVED), limits, {}) is not None


# --- what is kept -----------------------------------------------------------------------------------------


def test_a_job_keeps_the_longest_pause_of_each_phase() -> None:
    life = Life().all([ADMITTED, replace(KILLED, pace={"train": 3.0, "trace": 9.0}), BACKOFF_OVER, ADMITTED])
    assert life.job.pace == {"train": 3.0, "trace": 9.0}
    life.all([replace(KILLED, pace={"train": 7.0, "trace": 1.0, "validate": 2.0})])
    assert life.job.pace == {"train": 7.0, "trace": 9.0, "validate": 2.0}


def test_a_retry_runs_what_its_folder_says_now_and_forgets() -> None:
    life = Life().all([ADMITTED, Ended(exit_code=78, pace={"train": 3.0}), retry()])
    assert life.job.pace == {}


@given(
    st.dictionaries(st.text(max_size=3), st.floats(0, 1e9), max_size=3),
    st.dictionaries(st.sampled_from(sorted(PACED)), st.floats(0)),
)
def test_a_record_holds_no_more_than_the_phases(odd: dict[str, float], pace: dict[str, float]) -> None:
    found = merged(pace, odd)
    assert found.keys() <= PACED
    assert all(found[phase] >= pace[phase] for phase in pace)
