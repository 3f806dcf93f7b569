"""The best model, written without haste: at most 0.5 % of the time goes into it.

In a short training every epoch may be the best so far, and writing a durable, verified file after each would
take a third of the time. So a best model that follows soon on the last one written is kept in memory, and
a still better one takes its place. It is written when its time has come, and always before a checkpoint that
lies after it becomes durable, when the fit ends, and when a stop is obeyed: so that nothing which a resume
will not train again can be lost.

Limits: a series (a template with fields) and whole models (`*.keras`) are written at once, each. After
a kill the best model on the disk may be an older one, until the epochs since then have been trained again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core import best as rules
from runner.core.best import Best, Monitor
from runner.core.spec import CheckpointSpec

if TYPE_CHECKING:
    from runner.storage.checkpoint import Snapshot
    from runner.training.best import BestKeeper

#: Share of the time that may go into writing best models.
_SHARE = 0.005
_INTERVAL_S_MIN = 1.0
_INTERVAL_S_MAX = 60.0


class Unhurried:
    """A BestKeeper that writes when there is time."""

    def __init__(self, keeper: BestKeeper, spec: CheckpointSpec, clock: Callable[[], float] = time.monotonic):
        self._keeper = keeper
        self._spec = spec
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: tuple[Best, Mapping[str, Any], Snapshot] | None = None
        self._next_at = 0.0
        self._at_once = bool(rules.fields(spec.best)) or not spec.best.endswith(".weights.h5")

    def consider(
        self,
        epoch: int,
        step: int,
        logs: Mapping[str, Any],
        make_snapshot: Callable[[], Snapshot],
        save_whole: Callable[[Path], None],
    ) -> str | None:
        """Judge an epoch as `BestKeeper.consider` does; its message comes when something was written."""
        with self._lock:
            if self._at_once:
                return self._keeper.consider(epoch, step, logs, make_snapshot, save_whole)
            better = self._better(epoch, step, logs)
            if self._clock() < self._next_at:
                if better is not None:
                    self._waiting = (better, dict(logs), make_snapshot())
                return None
            if better is None and self._waiting is not None:
                return self._write_waiting()
            self._waiting = None
            return self._write(epoch, step, logs, make_snapshot, save_whole)

    def flush(self) -> str | None:
        """Write what waits, now; from any thread."""
        with self._lock:
            return self._write_waiting()

    def _better(self, epoch: int, step: int, logs: Mapping[str, Any]) -> Best | None:
        """Return the epoch as the best so far, where it is better than what waits and what is written."""
        floor = self._waiting[0] if self._waiting is not None else self._keeper.best
        values = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        monitor = rules.choose(self._spec.monitor, self._spec.mode, values, floor)
        if not isinstance(monitor, Monitor) or not rules.improves(monitor, values[monitor.metric], floor):
            return None
        return Best(monitor.metric, monitor.mode, values[monitor.metric], epoch, step, self._spec.best)

    def _write_waiting(self) -> str | None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        found, logs, snapshot = waiting
        return self._write(found.epoch, found.step, logs, lambda: snapshot, _never)

    def _write(self, *order: Any) -> str | None:
        began = self._clock()
        message = self._keeper.consider(*order)
        ended = self._clock()
        if message is not None:
            wait_s = min(_INTERVAL_S_MAX, max(_INTERVAL_S_MIN, (ended - began) / _SHARE))
            self._next_at = ended + wait_s
        return message


def _never(_path: Path) -> None:
    raise AssertionError("only whole models are saved by Keras")
