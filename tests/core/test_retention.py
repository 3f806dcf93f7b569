"""What goes and what stays, as a table; and what must hold whatever is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.retention import Kept, archived, evicted

STEPS = [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("keep", "kept", "gone"),
    [
        (3, Kept(), (10, 20)),
        (5, Kept(), ()),
        (9, Kept(), ()),
        (1, Kept(), (10, 20, 30, 40)),
        (0, Kept(), (10, 20, 30, 40)),  # the newest stays in any case
        (-1, Kept(), (10, 20, 30, 40)),
        (1, Kept(pinned=frozenset({10})), (20, 30, 40)),
        (1, Kept(best=frozenset({20}), sources=frozenset({30})), (10, 40)),
        (2, Kept(verified=20), (10, 30)),  # those after it may be torn: it stays
        (1, Kept(archived=frozenset({20})), (10, 30, 40)),
        (1, Kept(verified=99, pinned=frozenset({7})), (10, 20, 30, 40)),
    ],
)
def test_the_union_of_all_reasons_survives(keep: int, kept: Kept, gone: tuple[int, ...]) -> None:
    assert evicted(STEPS, keep, kept) == gone


@pytest.mark.parametrize(
    ("places", "period", "kept"),
    [
        ({10: 10, 20: 20, 30: 30, 40: 40}, 20, {20, 40}),
        ({10: 10, 25: 25, 30: 30, 44: 44}, 20, {25, 44}),  # the first after each multiple
        ({95: 9, 100: 10, 105: 10, 150: 15, 200: 20}, 10, {100, 200}),  # by epochs
        ({10: 10}, 20, set()),
        ({10: 7200.0, 20: 7300.0, 30: 10_900.0}, 3600, {10, 30}),  # by the clock
        ({10: 7200.0, 20: 3600.0, 30: 10_900.0}, 3600, {10, 30}),  # which was set back meanwhile
        ({}, 5, set()),
    ],
)
def test_the_first_of_each_period_is_archived(
    places: dict[int, float], period: float, kept: set[int]
) -> None:
    assert archived(places, period) == kept


@given(st.dictionaries(st.integers(0, 500), st.floats(0, 1e6)), st.integers(1, 50))
def test_what_is_archived_stays_so_when_the_others_are_gone(places: dict[int, float], period: int) -> None:
    kept = archived(places, period)
    assert archived({step: places[step] for step in kept}, period) == kept


steps = st.integers(0, 60)


@given(st.sets(steps), st.integers(-3, 10), st.none() | steps, st.frozensets(steps), st.frozensets(steps))
def test_nothing_with_a_reason_ever_goes(
    there: set[int], keep: int, verified: int | None, pinned: frozenset[int], best: frozenset[int]
) -> None:
    gone = set(evicted(there, keep, Kept(verified, pinned, best)))
    assert gone <= there
    assert not gone & (pinned | best | {verified})
    assert not there or max(there) not in gone
    assert len(there - gone) >= min(len(there), max(1, keep))
    assert evicted(there - gone, keep, Kept(verified, pinned, best)) == ()
