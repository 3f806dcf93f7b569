"""The best model, written without haste: at most a thousandth of the time goes into it.

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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.core import best as rules
from runner.core.best import Best, Monitor
from runner.core.spec import CheckpointSpec
from runner.training.best import BestKeeper
from runner.training.identity import best_from, identity

if TYPE_CHECKING:
    import numpy as np

    from runner.storage.checkpoint import Snapshot
    from runner.training.saver import Layout, Saver


class _Found(NamedTuple):
    """A best model in memory."""

    best: Best
    logs: Mapping[str, Any]
    snapshot: Snapshot  #: as its file has it: saying by what it is the best


#: Share of the time that may go into writing best models.
_SHARE = 0.001
_INTERVAL_S_MIN = 1.0
_INTERVAL_S_MAX = 60.0


class Unhurried:
    """A BestKeeper that writes when there is time, in another thread where it can."""

    def __init__(
        self,
        keeper: BestKeeper,
        spec: CheckpointSpec,
        saver: Saver,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begin.

        Args:
            keeper: judges and writes; used by nobody else.
            spec: the job's.
            saver: has `flush` called by another thread, and keeps what waits where it outlives the process.
            clock: monotonic, in seconds.
        """
        self._keeper = keeper
        self._spec = spec
        self._saver = saver
        self._clock = clock
        self._disk = threading.RLock()  # held while the keeper is at work
        self._lock = threading.Lock()  # guards what waits and what is being written
        self._waiting = _left(saver)
        self._writing: _Found | None = None
        self._next_at = 0.0
        self._at_once = bool(rules.fields(spec.best)) or not spec.best.endswith(".weights.h5")

    def lend(self, layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        """Return memory for the variables of a model that is about to be considered; None: take your own."""
        return None if self._at_once else self._saver.lend_best(layout)

    def consider(
        self,
        epoch: int,
        step: int,
        logs: Mapping[str, Any],
        make_snapshot: Callable[[], Snapshot],
        save_whole: Callable[[Path], None],
    ) -> str | None:
        """Judge an epoch as `BestKeeper.consider` does; its message comes from here or from `flush`."""
        if self._at_once:
            with self._disk:
                return self._keeper.consider(epoch, step, logs, make_snapshot, save_whole)
        better = self._better(epoch, step, logs)
        if better is not None:
            snapshot = make_snapshot()
            snapshot = replace(snapshot, state={**snapshot.state, "best": identity(better)})
            with self._lock:
                self._waiting = _Found(better, dict(logs), snapshot)
                self._saver.keep_best(snapshot)
        elif self._waiting is None and self._disk.acquire(blocking=False):
            try:  # there is nothing to save: it warns where something is wrong with the monitor
                self._keeper.consider(epoch, step, logs, make_snapshot, save_whole)
            finally:
                self._disk.release()
        if self._waiting is not None and self._clock() >= self._next_at:
            self._saver.nudge()
        return None

    def flush(self) -> str | None:
        """Write what waits, now; from any thread. Where that fails, it waits on."""
        with self._disk:
            with self._lock:
                self._writing, self._waiting = self._waiting, None
                found = self._writing
            if found is None:
                return None
            began = self._clock()
            message = self._keeper.consider(
                found.best.epoch, found.best.step, found.logs, lambda: found.snapshot, _never
            )
            ended = self._clock()
            self._next_at = ended + min(_INTERVAL_S_MAX, max(_INTERVAL_S_MIN, (ended - began) / _SHARE))
            with self._lock:
                self._writing = None
                floor = self._keeper.best
                if self._waiting is None and rules.improves(found.best.monitor, found.best.value, floor):
                    self._waiting = found  # it could not be written
                elif self._waiting is None:
                    self._saver.best_written()
            return message

    def _better(self, epoch: int, step: int, logs: Mapping[str, Any]) -> Best | None:
        """Return the epoch as the best so far, where it is better than what waits and what is written."""
        with self._lock:
            newest = self._waiting or self._writing
            floor = newest.best if newest is not None else self._keeper.best
        values = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        monitor = rules.choose(self._spec.monitor, self._spec.mode, values, floor)
        if not isinstance(monitor, Monitor) or not rules.improves(monitor, values[monitor.metric], floor):
            return None
        return Best(monitor.metric, monitor.mode, values[monitor.metric], epoch, step, self._spec.best)


def _left(saver: Saver) -> _Found | None:
    """Return the best model of the attempt before, where only the memory has it."""
    snapshot = saver.left_best()
    try:
        best = None if snapshot is None else best_from(snapshot.state["best"])
    except (ValueError, TypeError, KeyError):
        return None
    return None if best is None or snapshot is None else _Found(best, {best.metric: best.value}, snapshot)


def _never(_path: Path) -> None:
    raise AssertionError("only whole models are saved by Keras")
