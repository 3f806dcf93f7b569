"""One thing at a time that another thread does."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable


class Aside:
    """The thread, made when it is needed first, and what it is doing."""

    def __init__(self, name: str, failed: Callable[[Exception], object]):
        """Begin.

        Args:
            name: of the thread.
            failed: takes what a task raises, in that thread.
        """
        self._name = name
        self._failed = failed
        self._given: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()

    @property
    def busy(self) -> bool:
        """Whether it has not done what it was given."""
        return not self._idle.is_set()

    def begin(self, task: Callable[[], object]) -> None:
        """Have a task done; one that was given before is waited for.

        Raises:
            RuntimeError: no thread can be started.
        """
        self.settle()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._idle.clear()
        self._given.put(task)

    def settle(self) -> None:
        """Wait until it has done what it was given; in a forked process, where it is not, not at all."""
        if os.getpid() == self._owner:
            self._idle.wait()

    def _work(self) -> None:
        while True:
            self._do(self._given.get())

    def _do(self, task: Callable[[], object]) -> None:
        """Do one task; nothing of it is held while the next is waited for."""
        try:
            task()
        except Exception as error:  # noqa: BLE001 - a thread's top: it is to go on
            self._failed(error)
        finally:
            self._idle.set()
