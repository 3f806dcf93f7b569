"""The place in the data: how a snapshot says it, and how a resumed fit gets there again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from runner.training.position import Position
from runner.training.values import listed, unlisted


def describe(
    iterator: Any, position: Position, validation: Position, epoch: int, done: int
) -> dict[str, Any]:
    """Return the cursor: epoch, executions done in it, and what was drawn from which iterators.

    Args:
        iterator: Keras's iterator over the training data.
        position: what was drawn for training.
        validation: what was drawn for validation.
        epoch: the present one, from 0.
        done: executions of the training function that are complete in it.
    """
    alive = iterator._current_iterator is not None and bool(iterator.steps_per_epoch)
    fresh = done == 0 and not alive and not position.reopens
    generators = {} if fresh else {str(i): listed(a) for i, a in enumerate(position.generators)}
    return {
        "epoch": epoch,
        "done": done,
        "steps_seen": iterator._steps_seen,
        "num_batches": iterator._num_batches,
        "iterators": position.iterators + 1 if fresh else position.iterators,
        "drawn": 0 if fresh else position.drawn,
        "fresh": fresh,
        "reads": position.past_reads() if fresh else position.reads,
        "history": position.past() if fresh else position.history,
        "generators": generators,
        "sharing": None if position.sharing is None else position.sharing.state(fresh=fresh),
        "validation_iterators": validation.iterators,
        "validation_reads": validation.past_reads(),
        "validation_history": validation.past(),
        "validation_num_batches": validation.num_batches(),
        "validation_generators": [listed(array) for array in validation.values()],
    }


def executions(iterator: Any) -> tuple[int | None, int]:
    """Return after how many executions and batches an epoch is over; None, 0 where nobody knows yet."""
    batches = int(iterator.steps_per_epoch or iterator._num_batches or 0)
    return (math.ceil(batches / iterator.steps_per_execution), batches) if batches > 0 else (None, 0)


def completed(iterator: Any, done: int) -> int:
    """Return how many batches so many executions of an epoch are; the last one may hold fewer."""
    batches: int = done * iterator.steps_per_execution
    return min(batches, int(iterator.num_batches)) if iterator.num_batches else batches


def go_to(
    cursor: Mapping[str, Any], iterator: Any, position: Position, validation: Position, inner: Iterator[Any]
) -> int:
    """Bring the resumed epoch's iterators to where the cursor stands; return the executions done.

    Args:
        cursor: as `describe` gave it.
        iterator: Keras's iterator over the training data.
        position: of the training data.
        validation: of the validation data.
        inner: Keras's own enumeration of the epoch, not yet begun.
    """
    done, size = int(cursor["done"]), iterator.steps_per_execution
    iterator._num_batches = cursor["num_batches"]
    generators = [unlisted(cursor["generators"][str(i)]) for i in range(len(cursor["generators"]))]
    position.history, position.reads = list(cursor["history"]), int(cursor.get("reads", 0))
    position.go_to(int(cursor["iterators"]), int(cursor["drawn"]), generators)
    validation.history = list(cursor["validation_history"])
    validation.reads = int(cursor.get("validation_reads", 0))
    validation.known_batches = cursor["validation_num_batches"]
    values = [unlisted(node) for node in cursor["validation_generators"]]
    validation.go_to(int(cursor["validation_iterators"]) + 1, 0, values)
    if position.sharing is not None and cursor.get("sharing") is not None:
        position.sharing.go_to(cursor["sharing"], validation)
    for index in range(done):
        next(inner)
        iterator._steps_seen = cursor["steps_seen"] - size * (done - 1 - index)
    return done
