"""The life of a job as a Mermaid diagram, printed from the table: `python -m runner.core.diagram`."""

from __future__ import annotations

import sys
from itertools import groupby

from runner.core.job import State
from runner.core.table import TABLE, Move


def edges() -> list[tuple[State, State, str]]:
    """List (from, to, kinds of events) for every change of state in the table, in the states' order."""
    order = list(State)
    found = [
        (state, target, kind.value)
        for (state, kind), row in TABLE.items()
        if isinstance(row, Move)
        for target in row.to
        if target is not state
    ]
    found.sort(key=lambda edge: (order.index(edge[0]), order.index(edge[1]), edge[2]))
    return [
        (source, target, ", ".join(kind for _, _, kind in group))
        for (source, target), group in groupby(found, key=lambda edge: edge[:2])
    ]


def mermaid() -> str:
    """Return the diagram's text."""
    lines = ["stateDiagram-v2", "    [*] --> queued: submit", "    [*] --> rejected: submit"]
    lines += [f"    {source.value} --> {target.value}: {kinds}" for source, target, kinds in edges()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(mermaid())
