"""When to save, as tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from runner.core.cadence import (
    NO_PAST,
    Moment,
    Past,
    Saved,
    cost_s,
    due,
    interval_s,
    mtbf_s,
    quiet_until,
    retry_s,
    settled_s,
)
from runner.core.spec import CadenceUnit, Every

AUTO = Every()


@pytest.mark.parametrize(
    ("cost", "interval"),
    [(None, 1.0), (0.0, 1.0), (0.001, 1.0), (0.02, 10.0), (0.5, 250.0), (3.0, 300.0), (60.0, 300.0)],
)
def test_auto_spends_a_five_hundredth_between_a_second_and_five_minutes(
    cost: float | None, interval: float
) -> None:
    assert interval_s(cost, mtbf_s=10.0) == pytest.approx(interval)


@pytest.mark.parametrize(
    ("past", "cost", "interval"),
    [
        (Past(lived_s=3000.0), 0.02, 12.0),  # sqrt(2 * 0.02 * 3600)
        (Past(lived_s=35_400.0), 0.02, 37.95),  # ten hours without a failure: less is spent on saving
        (Past(lived_s=35_400.0, deaths=9), 0.02, 12.0),
        (NO_PAST, 0.02, 10.0),  # a five-hundredth at most ...
        (Past(lived_s=100.0, deaths=40), 0.02, 10.0),  # ... however often it fails
        (Past(lived_s=1e9), 0.02, 300.0),
    ],
)
def test_auto_weighs_what_saving_costs_against_what_failures_cost(
    past: Past, cost: float, interval: float
) -> None:
    assert interval_s(cost, mtbf_s(past)) == pytest.approx(interval, rel=1e-3)


def test_the_interval_is_the_one_at_which_least_is_lost() -> None:
    cost, mtbf = 0.03, 36_000.0

    def lost(interval: float) -> float:
        return cost / interval + interval / 2 / mtbf  # saving; on average half an interval per failure

    best = interval_s(cost, mtbf)
    assert lost(best) < min(lost(0.8 * best), lost(1.25 * best))


def test_life_adds_up() -> None:
    assert Past(5.0, 2).lived(3.0) == Past(8.0, 2)


@pytest.mark.parametrize(
    ("interval", "step", "now_s", "expected"),
    [(4.0, 5, 3.9, False), (4.0, 5, 4.0, True), (1.0, 0, 9.0, False)],  # no step since: nothing to save
)
def test_auto(interval: float, step: int, now_s: float, expected: bool) -> None:
    assert due(AUTO, Moment(step, now_s), Saved(0, 0.0), interval, None) is expected


@pytest.mark.parametrize(("now_s", "expected"), [(29.9, False), (30.0, True)])
def test_seconds(now_s: float, expected: bool) -> None:
    assert due(Every(CadenceUnit.SECONDS, 30), Moment(9, now_s), Saved(8, 0.0), 99.0, None) is expected


@pytest.mark.parametrize(
    ("count", "saved", "step", "expected"),
    [
        (500, 0, 499, False),
        (500, 0, 500, True),
        (500, 500, 500, False),
        (500, 480, 512, True),  # steps_per_execution jumps over the multiple
        (500, 730, 999, False),  # stopped and resumed in between: back to the multiples
        (500, 730, 1000, True),
        (1, 0, 1, True),
        (0.25, 3, 4, True),
    ],
)
def test_steps(count: float, saved: int, step: int, expected: bool) -> None:
    assert due(Every(CadenceUnit.STEPS, count), Moment(step, 0.0), Saved(saved, 0.0), 0.0, None) is expected


@pytest.mark.parametrize(
    ("count", "ended", "since", "expected"),
    [(1, True, 1, True), (1, False, 0, False), (2, True, 1, False), (2, True, 2, True), (2, False, 2, False)],
)
def test_epochs(count: float, ended: bool, since: int, expected: bool) -> None:
    moment, saved = Moment(10, 0.0, ended), Saved(0, 0.0, since)
    assert due(Every(CadenceUnit.EPOCHS, count), moment, saved, 0.0, 10) is expected


def test_a_part_of_an_epoch_is_counted_in_steps_where_their_number_is_known() -> None:
    half = Every(CadenceUnit.EPOCHS, 0.5)
    assert due(half, Moment(50, 0.0), Saved(0, 0.0), 0.0, 100)
    assert not due(half, Moment(49, 0.0), Saved(0, 0.0), 0.0, 100)
    assert not due(half, Moment(50, 0.0), Saved(0, 0.0), 0.0, None)
    assert due(half, Moment(100, 0.0, epoch_ended=True), Saved(0, 0.0, 1), 0.0, None)


def test_the_share_of_training_time_stays_below_a_five_hundredth() -> None:
    cost, now_s, saved, saves = 0.05, 0.0, Saved(0, 0.0), 0
    for step in range(1, 100_001):  # a thousand seconds of 10 ms steps
        now_s += 0.01
        if due(AUTO, Moment(step, now_s), saved, interval_s(cost, 10.0), None):
            saved, saves = Saved(step, now_s), saves + 1
    assert 0.0018 <= saves * cost / now_s <= 0.0021


def test_the_cost_is_the_pause_and_the_processor_time() -> None:
    assert cost_s(0.01, 0.4) == pytest.approx(0.41)
    assert settled_s(None, 0.01) == 0.01
    assert settled_s(None, 3.0) == 0.05  # the first, with all that is done once
    assert settled_s(1.0, 3.0) == 2.0
    assert settled_s(3.0, 1.0) == 1.0


@pytest.mark.parametrize(
    "every",
    [
        AUTO,
        Every(CadenceUnit.SECONDS, 0.3),
        Every(CadenceUnit.STEPS, 7),
        Every(CadenceUnit.EPOCHS, 0.25),
        Every(CadenceUnit.EPOCHS, 2),
    ],
)
def test_asking_only_after_a_quiet_time_misses_nothing(every: Every) -> None:
    """Steps of 5 ms: asked at each, and asked only when `quiet_until` says so."""
    asked, saved, quiet = 0, Saved(0, 0.0), (0.0, 0.0)
    for step in range(1, 400):
        moment = Moment(step, 0.005 * step, epoch_ended=step % 50 == 0)
        if moment.epoch_ended:
            saved = replace(saved, epochs_since=saved.epochs_since + 1)
        really = due(every, moment, saved, 1.0, 50)
        looked = step >= quiet[0] or moment.now_s >= quiet[1] or moment.epoch_ended
        assert looked or not really
        if looked:
            asked += 1
            if really:
                saved, quiet = Saved(step, moment.now_s), (0.0, 0.0)
            else:
                quiet = quiet_until(every, saved, 1.0, 50)
    assert asked < 150


@pytest.mark.parametrize(("failures", "delay"), [(0, 0), (1, 1), (2, 2), (5, 16), (50, 300), (10**9, 300)])
def test_retries_come_ever_later(failures: int, delay: float) -> None:
    assert math.isclose(retry_s(failures), delay)
