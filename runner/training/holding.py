"""The state at an epoch's end, kept in memory: validation and callbacks, which follow, may take long.

A stop that is asked for meanwhile is served from it. The rule: only where it costs next to nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from runner.storage.checkpoint import Snapshot
from runner.training.worker import Worker

#: It may cost this part of an epoch's time.
_SHARE = 0.01


class Holding:
    """Holds one fit's state from an epoch's last step to the next one's first."""

    def __init__(self, worker: Worker, take: Callable[[], Snapshot | None]):
        """Begin.

        Args:
            worker: this process's.
            take: takes a snapshot that is good until the next step; None where it fails.
        """
        self._worker = worker
        self._take = take
        self.held = False  #: a state is kept
        self._taken = 0
        self._takes_s = math.inf  # at best
        self._epoch_at: float | None = None
        self._epoch_s = math.inf  # of the last whole one, validation and callbacks included

    def begin_epoch(self) -> None:
        """Learn how long the last epoch took: a new one begins."""
        now = time.monotonic()
        if self._epoch_at is not None:
            self._epoch_s = now - self._epoch_at
        self._epoch_at = now

    def hold(self) -> None:
        """Keep the present state, at an epoch's end."""
        if self.held:
            return
        # The first is dear: it finds out what is always the same.
        if self._taken < 2 or self._takes_s <= _SHARE * self._epoch_s:
            began = time.monotonic()
            snapshot = self._take()
            if snapshot is not None:
                self._worker.hold(snapshot)
                self.held = True
            self._taken += 1
            self._takes_s = min(self._takes_s, time.monotonic() - began)

    def let_go(self) -> None:
        """Forget it: the next step is about to be made."""
        self.held = False
        self._worker.release()
