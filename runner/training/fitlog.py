"""What every call of `fit` tells and keeps as it goes, however it can be resumed.

Facts and progress, the metrics of its epochs, its best model, what of its callbacks cannot be kept; and the
rule that a failure of ours ends a fit's checkpoints, never its training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.storage.checkpoint import Snapshot
from runner.training import fingerprint, outputs, values
from runner.training.capture import Camera
from runner.training.report import now_text
from runner.training.worker import Worker


class FitLog:
    """The record of one call of `fit`."""

    def __init__(self, worker: Worker, number: int, camera: Camera):
        """Begin.

        Args:
            worker: this process's.
            number: which call of `fit`, from 0.
            camera: of the model that is fitted.
        """
        self.broken = False  #: something of ours has failed: there are no more checkpoints
        self._worker = worker
        self._number = number
        self._camera = camera

    @contextlib.contextmanager
    def surviving(self, *, unless: bool = False) -> Iterator[None]:
        """Report a failure of the block, which is ours, and let the training go on without checkpoints.

        Raises:
            Exception: that failure, where `unless`: to go on would be wrong.
        """
        try:
            yield
        except Exception as error:
            if unless:
                raise
            self.broken = True
            reason = f"{type(error).__name__}: {error}"
            self._worker.facts.warn(f"no more checkpoints in fit {self._number}, something failed: {reason}")

    def begin(self, epochs: int | None, steps_per_epoch: int | None) -> None:
        """Say that the fit begins."""
        facts = {"fit": self._number, "epochs": epochs, "steps_per_epoch": steps_per_epoch}
        self._worker.facts("fit-started", **facts)
        self._worker.progress.set(**facts)

    def fixed(
        self, kind: str, arguments: Mapping[str, Any], *, base_step: int, initial_epoch: int
    ) -> dict[str, Any]:
        """Return what the states of all of the fit's snapshots have in common.

        Args:
            kind: of the snapshots.
            arguments: of the call, by name.
            base_step: steps completed before it.
            initial_epoch: that Keras begins with, if the fit is not resumed.
        """
        return {
            "kind": kind,
            "fit": self._number,
            "base_step": base_step,
            "initial_epoch": initial_epoch,
            "fingerprint": fingerprint.of(self._worker.entry, arguments),
        }

    def cut_files(self, saved: Snapshot | None, callbacks: Sequence[Any]) -> list[Any]:
        """Cut the callbacks' files back; return those whose `append` was switched on for it.

        Args:
            saved: what the fit is resumed from.
            callbacks: the script's and Keras's, in order; none has begun.
        """
        record = self._worker.launch.paths.begun(self._number)
        switched: list[Any] = []
        if saved is None:
            complaints = outputs.begin(record, callbacks)
        else:
            switched, complaints = outputs.resume(record, callbacks, saved.state["listeners"]["callbacks"])
        for complaint in complaints:
            self._worker.facts.warn(complaint)
        return switched

    def tell_missed(self) -> None:
        """Warn of what the last snapshot could not take."""
        for missed in self._camera.missed:
            message = f"cannot be captured, stays as the script makes it at a resume: {missed}"
            self._worker.facts.warn(message, fit=self._number, missed=missed)

    def end_epoch(self, epoch: int, logs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Note an epoch's metrics, after the worker's present step; return them."""
        worker = self._worker
        worker.vigil.look_at_loss(logs)
        metrics = values.of_epoch(self._camera.model, logs)
        line = {"epoch": epoch, "step": worker.step, "fit": self._number, "time": now_text(), **metrics}
        worker.note_metrics(line)
        worker.progress.set(step=worker.step, epoch=epoch, metrics=metrics)
        return metrics

    def consider(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Keep the model if it is the best so far."""
        worker, camera = self._worker, self._camera

        def portrait() -> Snapshot:
            return camera.portrait(step=worker.step, epoch=epoch, lend=worker.fit_best.lend)

        def save_whole(path: Path) -> None:
            camera.model.save(str(path))

        worker.say(worker.fit_best.consider(epoch, worker.step, metrics, portrait, save_whole))

    def cut_short(self) -> bool:
        """Tell whether a handler of the script's own has ended this fit early, or one before it.

        Then the next attempt goes on from what was saved before: nothing of what comes now is to be kept, nor
        told as an epoch's.
        """
        stop = self._worker.stop
        if not stop.cut_short and getattr(self._camera.model, "stop_training", False):
            stop.cut_short = stop.left_to_script
        return stop.cut_short

    def finish(self, keep: Callable[[], int | None] | None, *, needed: bool = False) -> None:
        """Say that the fit is over.

        Args:
            keep: saves the end; returns how many bytes that took, None where it could not. None where there
                is nothing to keep.
            needed: later fits can be resumed only where this one's end is kept, whatever that takes.
        """
        worker = self._worker
        worker.phase("save")
        size = None
        if needed or worker.ends.allowed(self._number):
            with worker.ends.spending() as spend:
                worker.flush_best()
                size = keep() if keep is not None else None
                if size is not None:
                    spend(size)
        kept = {"size_bytes": size} if size is not None else {}
        worker.facts("fit-finished", fit=self._number, **kept)
        worker.progress.set(step=worker.step)
        worker.phase("after", tell=True)
        worker.progress.write()
        worker.keep_nothing()
