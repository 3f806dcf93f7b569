"""Data that a resumed fit reads again to come to its place: what else that changes, and how long it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from runner.storage.checkpoint import Snapshot
from runner.training.entangled import Entangled
from runner.training.makers import Makers
from runner.training.position import Position
from runner.training.verdict import Verdict
from runner.training.worker import Worker


class Rereading:
    """Of one call of `fit`."""

    def __init__(self, worker: Worker, number: int, makers: Makers, verdict: Verdict):
        """Begin.

        Args:
            worker: this process's.
            number: which call of `fit`, from 0.
            makers: the Python code that makes the fit's data.
            verdict: how the fit can be resumed.
        """
        self._worker = worker
        self._number = number
        self._makers = makers
        self._verdict = verdict

    @contextlib.contextmanager
    def of(self, saved: Snapshot, position: Position, watched: Iterable[Any]) -> Iterator[set[str]]:
        """Let the block read data again; yield what takes the names of what that leaves to the data.

        Args:
            saved: what is resumed from.
            position: in the training data.
            watched: what may have something in common with the code that makes the data.
        """
        theirs: set[str] = set()
        maker = self._makers.train
        self._makers.aim(saved, position)
        if maker is None:
            yield theirs
            return
        maker.prepare()
        entangled = Entangled([*watched])
        yield theirs
        changed = entangled.changed()
        if maker.from_start:
            names = ", ".join(sorted(changed))
            self._verdict.doubt(f"callbacks have what making the data changes: {names}" if changed else "")
        else:
            theirs |= changed

    def took_s(self, position: Position) -> float:
        """Return how many seconds it has taken since this was asked last; 0 where nothing had to be read."""
        took_s, position.replay_s = position.replay_s, 0.0
        return took_s if self._verdict.by_replay else 0.0

    def tell(self, position: Position) -> None:
        """Say how long it took, where the iterator of a resumed fit was opened after a safe point."""
        took_s = self.took_s(position)
        if took_s:
            self._worker.tell_replayed(self._number, took_s)
