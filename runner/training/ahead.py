"""A generator that TensorFlow's threads read ahead of training, by chance how far.

What it draws from the shared random generators is told from what the rest of the script draws by reading it
again, alone, as far as it had been read: of two threads that draw at the same time nobody can tell which did.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any


class ReadAhead:
    """Stands between Keras and a generator, and counts; can be read further than it has been asked."""

    def __init__(self, source: Iterator[Any]):
        """Begin.

        Args:
            source: what the script's generator gives.
        """
        self._source = iter(source)
        self._waiting: deque[tuple[Any, Exception | None]] = deque()
        #: Held while the generator's code runs.
        self.lock = threading.RLock()
        #: How many batches have been asked of the generator, the one that it may be making included.
        self.asked = 0

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Any:
        with self.lock:
            batch, error = self._waiting.popleft() if self._waiting else self._read()
        if error is not None:
            raise error
        return batch

    def reach(self, asked: int) -> None:
        """Read until so many batches have been asked for, or there are no more; keep what is new."""
        with self.lock:
            while self.asked < asked and (not self._waiting or self._waiting[-1][1] is None):
                self._waiting.append(self._read())

    def _read(self) -> tuple[Any, Exception | None]:
        """Return the next batch, or None and what came instead of it (StopIteration at the end)."""
        self.asked += 1
        try:
            return next(self._source), None
        except Exception as error:  # noqa: BLE001 - it is raised where this batch is asked for
            return None, error
