"""The diagram says what the table says."""

from __future__ import annotations

from runner.core.diagram import edges, mermaid
from runner.core.job import SETTLED, State
from runner.core.table import TABLE, Move


def test_every_change_of_state_is_drawn_once() -> None:
    drawn = {(source, target, kind) for source, target, kinds in edges() for kind in kinds.split(", ")}
    assert drawn == {
        (state, target, kind.value)
        for (state, kind), row in TABLE.items()
        if isinstance(row, Move)
        for target in row.to - {state}
    }
    assert len({edge[:2] for edge in edges()}) == len(edges())


def test_every_state_can_be_reached_and_every_unsettled_one_left() -> None:
    starts = {State.QUEUED, State.REJECTED}
    assert starts | {target for _, target, _ in edges()} == set(State)
    assert {source for source, _, _ in edges()} == set(State) - {State.SUCCEEDED}
    assert all(kinds == "retry" for source, _, kinds in edges() if source in SETTLED)


def test_the_text() -> None:
    lines = mermaid().splitlines()
    assert lines[:3] == ["stateDiagram-v2", "    [*] --> queued: submit", "    [*] --> rejected: submit"]
    assert "    queued --> running: admitted" in lines
    assert mermaid().endswith("\n")
