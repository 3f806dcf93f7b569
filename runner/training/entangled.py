"""What both callbacks and the code that makes the data can change: globals, attributes of the same objects.

A resume puts back what the callbacks had, and lets the data be read again. To read them again the data's code
needs what it found when the fit began; what it changes thereby is its own, and is left as it is then, for it
may have been ahead of the training by chance when the snapshot was taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from runner.training import listeners
from runner.training.codec import Encoder, encode_members
from runner.training.decode import Decoder
from runner.training.holders import Holder


class Entangled:
    """Tells what reading the data again changes of what callbacks have."""

    def __init__(self, holders: Sequence[Holder]):
        """Note how things are before anything is put back.

        Args:
            holders: all of the fit's callbacks, and the owners of Python code in its step.
        """
        self._holders = holders
        self._arrays: dict[str, np.ndarray] = {}
        self._state, _ = listeners.capture(Encoder(self._arrays, "found"), holders, set())
        self._before: dict[str, Any] = {}

    def put_back(self) -> None:
        """Let the data's code find things as they were."""
        listeners.restore(Decoder(self._arrays), self._holders, self._state)

    def watch(self) -> None:
        """Note how things are before the data are read again."""
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
