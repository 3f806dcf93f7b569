"""What goes and what stays, as a table; and what must hold whatever is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.retention import Kept, evicted

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
        (1, Kept(verified=99, pinned=frozenset({7})), (10, 20, 30, 40)),
    ],
)
def test_the_union_of_all_reasons_survives(keep: int, kept: Kept, gone: tuple[int, ...]) -> None:
    assert evicted(STEPS, keep, kept) == gone


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
