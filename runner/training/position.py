"""Where a fit is in its data, how it gets there again, and whether that is exact.

Keras pulls batches from iterators over one dataset, a new one for each epoch (and a spare one at its end), or
one for all of them. The position is the number of iterators made and the batches drawn from the newest.
Getting there again means making that many iterators (each moves the dataset's own shuffle seeds on), and
skipping. Each source is classified before training starts; what is not exact is resumed at an epoch's start.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runner.training.datasets import (
    captured_variables,
    has_cache,
    iterate,
    make_earlier,
    opened_late,
    read_through,
)
from runner.training.maker import Maker
from runner.training.order import Order
from runner.training.sharing import Sharing


class Position:
    """How far one dataset has been consumed; stands between Keras and the dataset's `iter`."""

    def __init__(self, method: str, *, stateless: bool = False, validates: bool = False):
        """Begin at the beginning.

        Args:
            method: how to skip, see `Exactness`.
            stateless: an iterator does not depend on how many were made before it.
            validates: each validation reads the first iterator that it opens, whole, and no other.
        """
        self.method = method
        self._stateless = stateless
        self.iterators = 0
        self.drawn = 0
        self.generators: list[np.ndarray] = []
        #: For "replay": what was drawn from the iterators before the present; None: all.
        self.history: list[int | None] = []
        self.reads = 0  #: from how many of the iterators before the present anything was read
        self._validates = validates
        self._beginning = False  # a validation begins, and has not opened an iterator yet
        self._share: int | None = 0  # of validation data: what will be drawn from the present iterator
        self.epochs: Any = None  #: Keras's iterator over validation data
        self.known_batches: int | None = None  #: how many these hold, as Keras found out before a resume
        self.maker: Maker | None = None  #: the Python code that makes the data, where it does
        #: Stands around reaching the place again.
        self.replaying: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self.order: Order | None = None  #: of unseeded arrays
        self.sharing: Sharing | None = None  #: of the training data's shuffles with others
        self.caught_up = False  #: the iterators before the one that is opened again have been opened already
        self.replay_s = 0.0  #: what it took to get to the place again
        self._varying: list[Any] = []
        self._target: tuple[int, int, list[np.ndarray]] | None = None
        self._opened: Iterator[Any] | None = None  # early

    def holds(self, variables: list[Any]) -> None:
        """Let the values of these variables belong to the place, as they are between two iterators."""
        self._varying = variables

    def values(self) -> list[np.ndarray]:
        """Return the values of the variables that belong to the place."""
        pending = self._target is not None or not self._varying
        return self.generators if pending else [variable.numpy() for variable in self._varying]

    def go_to(self, iterators: int, drawn: int, generators: list[np.ndarray]) -> None:
        """Let the next `iter` give the iterator number `iterators` (from 1), `drawn` batches in."""
        self._target = (iterators, drawn, generators)
        # A snapshot may be taken before that `iter`: it must say the same again.
        self.iterators, self.drawn = (iterators, drawn) if drawn else (iterators - 1, 0)
        self.generators = generators

    @property
    def reopens(self) -> bool:
        """Whether the next `iter` gives an iterator from which batches had been drawn."""
        return self._opened is not None or (self._target is not None and self.drawn > 0)

    def counted(self, dataset: Any) -> Counted:
        """Return what Keras shall iterate in the dataset's place."""
        return Counted(self, dataset)

    def open_early(self, dataset: Any) -> None:
        """Make the next iterator now; the next `open` gives it."""
        self._opened = self.open(dataset)

    def open(self, dataset: Any) -> Iterator[Any]:
        """Make the next iterator."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            return opened
        self.history, self.reads = self.past(), self.past_reads()
        self._share, self._beginning = None if self._beginning else 0, False
        target, self._target = self._target, None
        if target is not None:
            return self._reopen(dataset, *target)
        self._count(self.iterators + 1, 0)
        if self.sharing is not None:
            self.sharing.note_opening()
        if self.method == "pull":
            self.generators = [variable.numpy() for variable in captured_variables(dataset)]
        if self.maker is not None:
            self.maker.opened()
        return iterate(dataset)

    def begin_validation(self) -> None:
        """Note that the next iterator to be opened will be read."""
        self._beginning = True

    def adopt(self, epochs: Any) -> None:
        """Take Keras's iterator over validation data; it shall know their size, as it did."""
        if self.epochs is None and self.known_batches is not None:
            epochs._num_batches = self.known_batches
        self.epochs = epochs

    def num_batches(self) -> int | None:
        """Return how many batches the validation data hold, as far as Keras knows."""
        return self.known_batches if self.epochs is None else self.epochs._num_batches

    def past(self) -> list[int | None]:
        """Return what was drawn from each iterator, as it will be told when another one is opened."""
        if self.method != "replay" or not self.iterators or self._target is not None:
            return self.history
        return [*self.history, self._share if self._validates else self.drawn]

    def past_reads(self) -> int:
        """Return from how many iterators anything was read, as it will be when another one is opened."""
        if not self.iterators or self._target is not None:
            return self.reads
        return self.reads + (self._share is None if self._validates else self.drawn > 0)

    def _count(self, iterators: int, drawn: int) -> None:
        self.iterators, self.drawn = iterators, drawn
        if self.order is not None:
            self.order.begin(iterators)

    def _reopen(
        self, dataset: Any, iterators: int, drawn: int, generators: list[np.ndarray]
    ) -> Iterator[Any]:
        """Make the iterator of that number, and read again what was drawn from it."""
        began = time.monotonic()
        try:
            iterator = self._read_again(dataset, iterators, drawn, generators)
            if self.sharing is not None:
                self.sharing.catch_up_wholly()
            return iterator
        finally:
            self.replay_s = time.monotonic() - began

    def _read_again(
        self, dataset: Any, iterators: int, drawn: int, generators: list[np.ndarray]
    ) -> Iterator[Any]:
        self._count(iterators, drawn)
        self.generators = generators
        if not self._stateless and not self.caught_up:
            with self.maker.pulling_again(drawn) if self.maker is not None else contextlib.nullcontext():
                self._make_earlier(dataset)
        if self.sharing is not None:
            self.sharing.catch_up()
        for variable, value in zip(self._varying or captured_variables(dataset), generators, strict=False):
            variable.assign(value)
        if self.drawn == 0:
            return iterate(dataset)
        if self.maker is not None:
            self.maker.opened()
        filling = self.iterators == 1 and has_cache(dataset)
        if self.method == "skip" and not filling:
            late = bool(opened_late(dataset))
            iterator = iterate(dataset.skip(self.drawn - late))
            if late:
                next(iterator)  # perhaps nobody else reads from it
            return iterator
        # The read that finds the end completes a cache; TensorFlow made it when it read ahead.
        last = filling and self.drawn == int(dataset.cardinality())
        with self.replaying():
            iterator = iterate(dataset)
            for _ in itertools.islice(iterator, self.drawn + last):
                pass
        return iterator

    def _make_earlier(self, dataset: Any) -> None:
        """Make the iterators before the present one."""
        earlier = self.iterators - 1
        if self.method == "replay":
            unknown = [None] * max(0, earlier - len(self.history))
            read_through(dataset, [*self.history[:earlier], *unknown])
            return
        make_earlier(dataset, earlier, self.reads)


def bound(iterator: Any, count: int) -> Any:
    """Let the thread that reads a generator ahead stop after `count` batches; return the dataset.

    Without this, how far it is ahead when the training ends is left to chance.

    Args:
        iterator: Keras's, over a generator's data, which Keras prefetches.
        count: how many batches will be asked for at most.
    """
    import tensorflow as tf

    dataset = iterator._distributed_dataset
    if "Prefetch" in type(dataset).__name__ and "Take" not in type(dataset._input_dataset).__name__:
        bounded = dataset._input_dataset.take(count)
        dataset = iterator._distributed_dataset = bounded.prefetch(tf.data.AUTOTUNE)
    return dataset


class Counted:
    """A dataset whose iterators are counted."""

    def __init__(self, position: Position, dataset: Any):
        self._position = position
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return self._position.open(self._dataset)
