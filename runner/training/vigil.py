"""What ends an attempt is told, and what would end the next one alike is kept out of it.

An uncaught exception becomes a fact; a loss that is not finite ends the attempt where the job wants that; the
next one goes back further or learns more slowly, as the supervisor has decided (`core.restart`).

Nothing here imports NumPy or h5py before the script has imported Keras.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.failure import NOT_FINITE
from runner.core.spec import Nan
from runner.errors import StorageError
from runner.training.raised import describe
from runner.training.stopping import leave

if TYPE_CHECKING:
    from runner.storage.checkpoint import Snapshot
    from runner.training.worker import Worker

#: The exit code of an attempt that ends itself for a reason that it has reported.
FAILED = 1


class Vigil:
    """Looks after how an attempt begins and ends."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._pid = os.getpid()
        self._slowed = False

    def step_back(self) -> None:
        """Leave what was saved last, where the supervisor has found that it leads nowhere.

        What is damaged does not count: the saver puts it aside for that. Nor is anything left twice: not what
        was saved, or kept in memory only, by an attempt that had gone back already.

        Raises:
            StorageError: there are checkpoints, and none can be read.
        """
        worker, retreat = self._worker, self._worker.launch.retreat
        if retreat is None or retreat.before is None:
            return
        from runner.training.retreat import step_back

        found = worker.saver.latest()
        if found is None or found[1].step < retreat.before or retreat.is_behind(found[1].state):
            return
        if step_back(worker.launch.paths, retreat, found[1], worker.facts.append):
            worker.saver.outdate()

    def newest(self) -> tuple[Path | None, Snapshot] | None:
        """Return the newest checkpoint, or what memory has; of finite numbers, where the job cares for that.

        Raises:
            StorageError: there are checkpoints, and none can be read, or a bad one cannot be put aside.
        """
        worker, launch = self._worker, self._worker.launch
        while (found := worker.saver.latest()) is not None and launch.nan is not Nan.IGNORE:
            from runner.training.finite import has_nan
            from runner.training.quarantine import set_aside

            if not has_nan(found[1]):
                break
            worker.saver.outdate()
            if found[0] is not None:
                reason = f'it holds weights that are no numbers (limits.nan = "{launch.nan.value}")'
                set_aside(launch.paths, found[0], reason, worker.facts.append, rejected=True)
                if found[0].exists():
                    raise StorageError(f"{found[0]}: {reason}, and cannot be put aside; repair the disk")
        return found

    def recognize(self, saved: Snapshot) -> None:
        """Learn what training goes on from: after the retreat, its learning rates are lower already."""
        retreat = self._worker.launch.retreat
        self._slowed = self._slowed or (retreat is not None and retreat.is_behind(saved.state))

    def slow_down(self, optimizers: Iterable[Any], saved: Snapshot | None = None) -> None:
        """Lower the learning rates once, where the supervisor wants that.

        Args:
            optimizers: of what is about to be trained.
            saved: what they were just restored from.
        """
        retreat = self._worker.launch.retreat
        if saved is not None:
            self.recognize(saved)
        if retreat is not None and retreat.learning_rate != 1.0 and not self._slowed:
            from runner.training.retreat import slow_down

            for complaint in slow_down(optimizers, retreat.learning_rate):
                self._worker.facts.warn(complaint)
        self._slowed = True

    def look_at_loss(self, logs: Any) -> None:
        """End the attempt where the loss is not finite, or beyond its bound, if the job wants that."""
        worker, launch = self._worker, self._worker.launch
        if launch.nan is Nan.IGNORE:
            return
        from runner.training.finite import trouble

        found = trouble(logs, launch.loss_max)
        if found:
            message = f"{found} at step {worker.step}"
            sys.stderr.write(f'runner: {message}: the attempt ends (limits.nan = "{launch.nan.value}")\n')
            with worker.stop.leaving:
                worker.save_now(None)
                self._tell(kind=NOT_FINITE, message=message, where=[], step=worker.step, started=True)
                leave(FAILED)

    def tell_raised(self, error: BaseException) -> None:
        """Report the exception that ends the script."""
        self._tell(**describe(error, self._worker))

    def _tell(self, **failure: Any) -> None:
        if os.getpid() == self._pid:  # not a forked child's
            self._worker.facts("raised", **failure)
