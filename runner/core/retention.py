"""What to keep: the union of all reasons to keep a checkpoint survives, the rest goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """The checkpoints, by step, that have a reason to stay whatever their age."""

    verified: int | None = None  #: the last one known to be good: it never goes
    pinned: frozenset[int] = frozenset()  #: by a person
    best: frozenset[int] = frozenset()  #: by metric
    sources: frozenset[int] = frozenset()  #: others started from them
    archived: frozenset[int] = frozenset()  #: see `archived`

    @property
    def steps(self) -> frozenset[int]:
        """All of them."""
        own = frozenset() if self.verified is None else frozenset({self.verified})
        return own | self.pinned | self.best | self.sources | self.archived


def archived(places: Mapping[int, float], period: float) -> frozenset[int]:
    """Return the steps of the checkpoints that are kept for ever: the first one of each period.

    The same ones again when the others are gone.

    Args:
        places: step -> where its checkpoint lies, counted in what the period is: steps, epochs or seconds.
        period: more than 0; the first, which begins with the training, has none.
    """
    kept, last = set(), 0
    for step in sorted(places):
        number = int(places[step] // period)
        if number > last:
            kept.add(step)
            last = number
    return frozenset(kept)


def evicted(steps: Collection[int], keep: int, kept: Kept) -> tuple[int, ...]:
    """List the steps whose checkpoints go, oldest first.

    Args:
        steps: of all checkpoints there are.
        keep: how many of the newest stay; fewer than one counts as one.
        kept: those with another reason to stay.
    """
    newest = sorted(steps)[-max(1, keep) :]
    return tuple(sorted(set(steps) - set(newest) - kept.steps))
