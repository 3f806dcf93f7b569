"""A generator that TensorFlow's threads read ahead of training, by chance how far.

What it draws from the shared random generators is told from what the rest of the script draws by reading it
again, alone, as far as it had been read: of two threads that draw at the same time nobody can tell which did.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

#: A generator that has given nothing for so long waits for what only training can bring.
STUCK_S = 30.0
#: A snapshot waits no longer for a batch that is being made.
_STILL_S = 0.05


class ReadAhead:
    """Stands between Keras and a generator, and counts; can be read further than it has been asked."""

    def __init__(self, source: Iterator[Any]):
        """Begin.

        Args:
            source: what the script's generator gives.
        """
        self._source = iter(source)
        self._waiting: deque[tuple[Any, Exception | None]] = deque()
        self._making = threading.Lock()  # held while the generator's code runs
        self._limit = math.inf
        self._go_on = threading.Event()
        #: How many batches have been asked of the generator, the one that it may be making included.
        self.asked = 0

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Any:
        if not self._waiting and self.asked >= self._limit:
            self._go_on.wait()
        if not self._waiting:  # nobody but `reach` adds to it
            with self._making:
                if not self._waiting:
                    self._waiting.append(self._read())
        batch, error = self._waiting.popleft()
        if error is not None:
            raise error
        return batch

    @contextlib.contextmanager
    def still(self) -> Iterator[bool]:
        """Let the generator make nothing during the block; tell whether it does not: it may be long at it."""
        held = self._making.acquire(timeout=_STILL_S)
        try:
            yield held
        finally:
            if held:
                self._making.release()

    @contextlib.contextmanager
    def limited(self, asked: int) -> Iterator[None]:
        """Let TensorFlow read no further during the block than that so many batches have been asked for."""
        self._go_on.clear()
        self._limit = asked
        try:
            yield
        finally:
            self._limit = math.inf
            self._go_on.set()

    def reach(self, asked: int, stuck_s: float = STUCK_S) -> bool:
        """Read until so many batches have been asked for, or there are no more; keep what is new.

        Args:
            asked: how many.
            stuck_s: how long to wait for one batch.

        Returns:
            Whether it came so far. If not, the reading goes on in a thread.
        """
        return _patiently(lambda: self._reach(asked), lambda: self.asked, stuck_s)

    def _reach(self, asked: int) -> None:
        while True:
            with self._making:
                if self.asked >= asked or (self._waiting and self._waiting[-1][1] is not None):
                    return
                self._waiting.append(self._read())

    def _read(self) -> tuple[Any, Exception | None]:
        """Return the next batch, or None and what came instead of it (StopIteration at the end)."""
        self.asked += 1
        try:
            return next(self._source), None
        except Exception as error:  # noqa: BLE001 - it is raised where this batch is asked for
            return None, error


def consume(source: Iterator[Any], count: int | None, stuck_s: float = STUCK_S) -> bool:
    """Take batches from a generator, and forget them.

    Args:
        source: the generator.
        count: how many; None: all.
        stuck_s: how long to wait for one.

    Returns:
        Whether it came so far. If not, that goes on in a thread.
    """
    taken = 0

    def take() -> None:
        nonlocal taken
        for _ in itertools.islice(source, count):
            taken += 1

    return _patiently(take, lambda: taken, stuck_s)


def _patiently(work: Callable[[], None], done: Callable[[], int], stuck_s: float) -> bool:
    """Do work in a thread; return whether it ended before it did not get on for a while.

    Raises:
        Exception: as the work did.
    """
    failed: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is raised again where the work was asked for
            failed.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    before = -1
    while worker.is_alive() and before < done():
        before = done()
        worker.join(stuck_s)
    if failed:
        raise failed[0]
    return not worker.is_alive()
