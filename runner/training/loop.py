"""Loops of the script's own under the runner: safe points, checkpoints, exact resume.

A safe point is where a step is about to begin: the one before is complete, and of `run.batches` this one's
element is in hand. In `run.epochs` what precedes the first step of an epoch (drawing an order, say) runs
again in a resumed epoch; so a checkpoint also holds the random state of the epoch's start, and that is
restored for it first.

A loop that is over keeps, besides its end, a moment shortly before: a later attempt runs from there to the
end, so that the names which the loop gives values exist again. While it does so, nothing is reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.exactness import Kind
from runner.core.spec import CadenceUnit, Every
from runner.errors import StorageError
from runner.storage.checkpoint import Snapshot
from runner.training import past, tracked
from runner.training.api import Run, State
from runner.training.belongings import Belongings, Start
from runner.training.codec import Uncapturable
from runner.training.report import now_text, plain
from runner.training.stopping import leave
from runner.training.tracked import Pulled, Stream, Tracked
from runner.training.variables import ChangedScriptError
from runner.training.worker import Worker

_PROMISE = "for what is attached and tracked"


@dataclass
class Part:
    """One loop: a call of `steps` or `batches`, or of `epochs` with all that is inside."""

    number: int  #: among the script's fits and loops
    base: int  #: completed steps before it
    epochs: int | None
    point: Snapshot | None  #: what to resume from, until it is restored
    epoch: int = 0
    done: int = 0  #: completed steps in this epoch, or in a loop without epochs
    passes: int = 0  #: calls of `steps` and `batches` in this epoch
    inside: bool = False  #: a step is under way
    ahead: Tracked | None = None  #: whose element is in hand
    worked: bool = False  #: this attempt has completed a step
    silent: bool = False  #: what is reported was reported before, or nothing is to be kept (`cut_short`)
    rehearsing: bool = False
    start: Start | None = None
    near_end: Snapshot | None = None

    def is_near_end(self, per_epoch: int | None) -> bool:
        """Tell whether the step that is about to begin is the last, as far as that is known."""
        last_epoch = self.epochs is None or self.epoch == self.epochs - 1
        return last_epoch and per_epoch is not None and self.done == per_epoch - 1


class Attached(Run):
    """A run under the runner."""

    state: State

    def __init__(self, here: Worker, models: list[Any], optimizers: list[Any], more: list[Any]):
        super().__init__()
        self._worker = here
        self._own = Belongings(here, self.state, models, optimizers, more)
        self._part: Part | None = None
        self._left: Part | None = None  #: a loop that was left before its end
        self._broken = False
        self.step = here.step
        if here.saved is not None and here.saved.state.get("kind") == "loop":
            self.state.update(here.saved.state["user"])
        tracked.watch_compiled_chance(self._doubt)

    # -- what the script calls ------------------------------------------------------------------------------

    @property
    def should_stop(self) -> bool:
        """Whether a stop is asked for; see `Run.should_stop`."""
        return self._worker.stop.requested

    def steps(self, total: int) -> Iterator[int]:
        """Yield the numbers of the steps still to do; see `Run.steps`."""
        return self._pass(total, None)

    def batches(self, data: Any) -> Iterator[Any]:
        """Yield the elements still to do; see `Run.batches`."""
        return self._pass(None, data)

    def epochs(self, total: int) -> Iterator[int]:
        """Yield the numbers of the epochs still to do; see `Run.epochs`."""
        part = self._begin(total)
        try:
            part.epoch = self._approach(part)
            while part.epoch < total:
                part.done = part.passes = 0
                part.start = part.start or self._own.note_start()
                yield part.epoch
                part.start = None
                self._epoch_over(part)
        except GeneratorExit:
            self._leave(part)
            raise
        self._end(part)

    def report(self, step: int, **metrics: Any) -> None:
        """Report metrics at a step; see `Run.report`."""
        here, part = self._worker, self._part
        if here.stop.cut_short or (part is not None and (part.silent or part.rehearsing)):
            return
        epoch = part.epoch if part is not None and part.epochs is not None else None
        number = part.number if part is not None else max(0, here.fits - 1)
        here.vigil.look_at_loss(metrics)
        values = {name: plain(value) for name, value in metrics.items()}
        here.note_metrics({"epoch": epoch, "step": int(step), "fit": number, "time": now_text(), **values})
        here.progress.set(metrics={**here.progress.values["metrics"], **values})
        if part is not None and not self._broken:
            completed = self.step + part.inside
            here.best.consider(epoch or 0, completed, values, lambda: self._take(part), self._save_whole)

    def checkpoint(self) -> Path | None:
        """Save a checkpoint now; see `Run.checkpoint`."""
        here, part = self._worker, self._part
        if part is None or part.silent or part.rehearsing:
            step = here.saver.verified_step
            return None if step is None else here.launch.paths.checkpoint(step)
        if part.inside:
            snapshot = self._take(part, step=self.step + 1, done=part.done + 1)
        else:
            snapshot = self._take(part, epoch=part.epoch + 1, done=0, whole=True)
        return here.saver.save_now(snapshot)

    def track(self, data: Any) -> Any:
        """Have something kept; see `Run.track`."""
        stand_in, keeper = tracked.track(data, self._doubt, seeded=self._worker.seeded)
        self._own.add(data, keeper)
        return stand_in

    # -- steps and epochs -----------------------------------------------------------------------------------

    def _pass(self, total: int | None, data: Any) -> Iterator[Any]:
        """Give out the steps of a loop, or of one epoch."""
        flat = self._part is None
        if data is not None and not isinstance(getattr(data, "stream", data), Stream | Pulled):
            data = self.track(data if hasattr(data, "element_spec") else iter(data))
        part = self._part or self._begin(None)
        if part.passes:
            raise RuntimeError("run.steps and run.batches: not inside each other, and once in an epoch")
        part.passes += 1
        try:
            yield from self._walk(part, total, data)
        except GeneratorExit:
            part.inside = False
            self._completed(part)
            part.silent |= self._worker.stop.cuts_short()
            if flat:
                self._leave(part)
            raise
        if flat:
            self._end(part)

    def _walk(self, part: Part, total: int | None, data: Any) -> Iterator[Any]:
        source = iter(data) if data is not None else None
        part.ahead = None if data is None else getattr(data, "stream", data)
        per_epoch = total if total is not None else _length(data)
        self._worker.progress.set(steps_per_epoch=per_epoch)
        if part.point is not None:
            yield from self._resume(part, part.point, source)
        while total is None or part.done < total:
            item: Any = part.done
            if source is not None:
                item = next(source, self)
                if item is self:
                    break
            self._safe_point(part, per_epoch)
            yield from self._step(part, item)
        part.ahead = None

    def _step(self, part: Part, item: Any) -> Iterator[Any]:
        part.inside = True
        yield item
        part.inside = False
        self._completed(part)

    def _completed(self, part: Part) -> None:
        """Count a step that is done."""
        here = self._worker
        self.step += 1
        part.done += 1
        here.step = self.step
        if not part.worked:
            part.worked = True
            if not part.silent:
                self._own.prepare()
                here.release()
            here.phase("train", tell=True)

    def _epoch_over(self, part: Part) -> None:
        """Go on to the next epoch; one without steps counts as one, and its end is a safe point."""
        if part.point is not None:
            self._worker.refuse("the checkpoint lies inside an epoch, and the script's epochs have no steps")
        part.epoch += 1
        if not part.passes:
            self._completed(part)
            part.done = 0
            if part.epochs is not None and part.epoch < part.epochs:
                self._safe_point(part, 1, whole=True)

    def _safe_point(self, part: Part, per_epoch: int | None, *, whole: bool = False) -> None:
        here = self._worker
        here.progress.set(step=self.step, epoch=part.epoch, step_in_epoch=part.done)
        savable = part.worked and not part.silent and not self._broken
        if here.stop.may_leave:
            here.leave_with(self._try(part, whole) if savable else None)
        if not savable:
            return
        due = here.saver.due(self.step, per_epoch, part.epochs is not None and part.done == 0)
        near_end = part.is_near_end(per_epoch)
        if due or near_end:
            began = time.monotonic()
            snapshot = self._try(part, whole)
            part.near_end = snapshot if near_end else None
            if due and snapshot is not None:
                here.saver.submit(snapshot, time.monotonic() - began)

    def _try(self, part: Part, whole: bool) -> Snapshot | None:
        """Take a snapshot; what cannot be captured ends the checkpoints, not the training."""
        try:
            return self._take(part, ahead=part.ahead, whole=whole)
        except (Uncapturable, RecursionError, TypeError) as reason:
            self._broken = True
            self._worker.facts.warn(f"no more checkpoints in loop {part.number}: {reason}")
            return None

    def _take(self, part: Part, *, ahead: Tracked | None = None, **other: Any) -> Snapshot:
        """Return a snapshot; `other`: step, epoch, done, whole, over, where they are not the loop's."""
        cursor = {
            "epoch": other.get("epoch", part.epoch),
            "done": other.get("done", part.done),
            "whole": other.get("whole", False),  #: restored where the epoch begins, not at its first step
            "over": other.get("over", False),
            "pending": ahead is not None,
        }
        return self._own.take(
            step=other.get("step", self.step),
            epoch=cursor["epoch"],
            state={
                "kind": "loop",
                "fit": part.number,
                "base_step": part.base,
                "cursor": cursor,
                **self._worker.state(),
            },
            start=None if cursor["whole"] else part.start,
            ahead=ahead,
        )

    def _save_whole(self, path: Path) -> None:
        if self._own.model is None:
            raise ValueError("a whole model can be saved only where one model is attached")
        self._own.model.save(str(path))

    def _doubt(self, reason: str) -> None:
        """Take a reason why the run cannot be called exact."""
        if reason not in self._own.doubts:
            self._own.doubts.append(reason)
            if self._part is not None:
                self._classify(self._part)

    def _classify(self, part: Part) -> None:
        doubts = self._own.doubts
        kind = Kind.NOT_EXACT if doubts else Kind.EXACT
        self._worker.classify(part.number, kind, "; ".join(doubts) or _PROMISE)

    # -- beginning and resuming -----------------------------------------------------------------------------

    def _begin(self, epochs: int | None) -> Part:
        """Begin a loop, and find what to resume it from."""
        here = self._worker
        if self._part is not None or here.fit is not None:
            raise RuntimeError("a loop of runner.attach inside another, or inside fit")
        if self._left is not None:
            past.keep(here, self._left.number, None)
            self._left = None
        number, here.fits, self.step = here.fits, here.fits + 1, here.step
        part = Part(number, here.step, epochs, past.point(here, number))
        part.silent = here.saved is not None or here.stop.cut_short
        self._part, here.looping = part, True
        if epochs is None and here.launch.checkpoint.every.unit is CadenceUnit.EPOCHS:
            here.facts.warn("checkpoint.every counts epochs, which this loop has none of: saved as by auto")
            here.set_cadence(Every())
        self._classify(part)
        here.facts("fit-started", fit=number, epochs=epochs, steps_per_epoch=None)
        here.progress.set(fit=number, epochs=epochs)
        if part.point is None and not part.silent:
            here.vigil.slow_down(self._own.optimizers)
            if not self.step and here.launch.start_from is not None:
                self._start_from(here.launch.start_from)
        return part

    def _start_from(self, path: Path) -> None:
        if not getattr(self._own.model, "built", False):
            self._worker.refuse(f"{path} can be started from where one model is attached, and built before")
        self._own.model.load_weights(str(path))

    def _approach(self, part: Part) -> int:
        """Return the epoch to begin with, and put back what its beginning needs."""
        point = part.point
        if point is None:
            return 0
        try:
            if point.state["cursor"]["whole"] or point.state["start"] is None:
                self._own.build(point)
                self._own.restore_data(point)
                self._arrive(part, point)
            else:
                part.start = Start.of(point)
                self._own.build(point)
                self._own.restore_start(point, part.start)
        except ChangedScriptError as reason:
            self._worker.refuse(str(reason))
        return int(point.state["cursor"]["epoch"])

    def _resume(self, part: Part, point: Snapshot, source: Iterator[Any] | None) -> Iterator[Any]:
        """Go on from a checkpoint; gives out the step that was about to begin, where its element is there."""
        cursor, item = point.state["cursor"], None
        self._own.build(point)
        if not self._own.fits(point) and not self._own.is_built():
            part.rehearsing = True
            self._own.rehearse()
            yield 0 if source is None else next(source)
            part.rehearsing = False
        try:
            self._own.restore_data(point)
            if cursor["pending"]:
                item = next(source, self) if source is not None else self
                if item is self:
                    raise ChangedScriptError("the data end before the checkpoint's place")
            self._arrive(part, point)
        except ChangedScriptError as reason:
            self._worker.refuse(str(reason))
        if cursor["pending"]:
            yield from self._step(part, item)

    def _arrive(self, part: Part, point: Snapshot) -> None:
        """Put back all but the data; the loop goes on from here."""
        here = self._worker
        self._own.restore_rest(point)
        here.vigil.slow_down(self._own.optimizers, point)
        part.base, part.done = int(point.state["base_step"]), int(point.state["cursor"]["done"])
        part.point, self.step, here.step = None, point.step, point.step
        if not part.silent:
            here.metrics.restore(point.state)
            here.tell_resumed(point, self._own.differences(point))

    # -- the end --------------------------------------------------------------------------------------------

    def _end(self, part: Part) -> None:
        """Keep the loop's end, and a moment shortly before it."""
        here = self._worker
        here.progress.set(step=self.step, epoch=part.epoch)
        here.phase("save")
        if part.worked and not part.silent and not self._broken:
            here.saver.flush()
            if past.keep(here, part.number, part.near_end):
                try:
                    here.saver.save_now(self._take(part, over=True))
                except (OSError, StorageError):
                    pass  # told by the saver; the moment before stays
                except (Uncapturable, RecursionError, TypeError) as reason:
                    here.facts.warn(f"the end of loop {part.number} is not kept: {reason}")
        here.facts("fit-finished", fit=part.number)
        self._close(part)

    def _leave(self, part: Part) -> None:
        """Take note that the script has left the loop before its end."""
        self._left = None if self._worker.stop.cuts_short() or part.silent else part
        if part.point is not None:
            self._worker.facts.warn("the loop was left before it was restored")
            leave(1)
        if self._worker.stop.may_leave:
            self._worker.leave_with(None)  # in the middle of a step: the last checkpoint stands
        self._close(part)

    def _close(self, part: Part) -> None:
        here = self._worker
        self._part, here.looping, part.near_end = None, False, None
        here.phase("after", tell=True)
        here.progress.write()  # the process may end at once
        here.keep_nothing()


def _length(data: Any) -> int | None:
    """Return how many elements a dataset gives; None where that is not known."""
    count = int(data.cardinality()) if hasattr(data, "cardinality") else -1
    return count if count >= 0 else None
