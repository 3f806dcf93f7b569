"""What both callbacks and the code that makes the data can change: globals, attributes of the same objects.

A resume puts back what the callbacks had, and has the data read again. What that changes of what the
callbacks have is the data's own: where its state was known, and put back before, it is left as it is then,
for the data may have been ahead of the training when the snapshot was taken. A generator's is not known: it
would need what it found when the fit began, and that may be what callbacks have changed since.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from runner.training import listeners
from runner.training.codec import Encoder, encode_members
from runner.training.holders import Holder


class Entangled:
    """Tells what reading the data again changes of what callbacks have."""

    def __init__(self, holders: Sequence[Holder]):
        """Note how things are before that.

        Args:
            holders: all of the fit's callbacks, and the owners of Python code in its step.
        """
        self._holders = holders
        self._before = self._marks()

    def changed(self) -> frozenset[str]:
        """Return the names, as `listeners.restore` takes them, of what has been changed since."""
        return frozenset(name for name, mark in self._marks().items() if self._before.get(name) != mark)

    def _marks(self) -> dict[str, Any]:
        return {name: _mark(value) for name, value in listeners.values(self._holders).items()}


def _mark(value: Any) -> Any:
    """Return something that differs when the value does, as far as it can be captured."""
    arrays: dict[str, np.ndarray] = {}
    nodes, failed = encode_members(Encoder(arrays, "mark"), [("it", value)])
    return nodes, failed, [zlib.crc32(np.ascontiguousarray(one).data.cast("B")) for one in arrays.values()]
