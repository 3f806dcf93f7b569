"""One call of `fit`: its safe points, its checkpoints, its exact resume.

Keras asks `EpochIterator._enumerate_iterator` for each step. Standing in there, before a step is given out,
the callbacks of the step before are done and the batch of this one is not yet drawn: that is the safe point
at which a checkpoint is taken, a stop is obeyed, and a resumed fit is put back.

A failure of this code while training is reported and ends the checkpoints, not the training; a failure while
resuming ends the attempt, because going on would be wrong.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core.exactness import Kind
from runner.storage.checkpoint import Snapshot
from runner.training import capture, cursor, fingerprint, finished, outputs, stepcode, values
from runner.training.capture import Camera, traces_of
from runner.training.classify import Exactness, classify, flaw_of_step, flaw_of_validation
from runner.training.datasets import operations_of_step
from runner.training.makers import Makers, left_behind
from runner.training.order import Order
from runner.training.position import Position
from runner.training.rebuild import rebuild, traced_step
from runner.training.report import now_text
from runner.training.tracing import Traces
from runner.training.variables import ChangedScriptError
from runner.training.worker import Worker

#: The state at an epoch's end is held in memory when that costs at most this part of an epoch's time.
_HOLD_SHARE = 0.01


class Fit:
    """The runner's side of one call of `fit`."""

    _lost: Sequence[str] = ()  #: what the last resume could not put back
    _wrapped: Any = None  #: the training function, and what stands before it for its first call

    def __init__(
        self,
        worker: Worker,
        model: Any,
        number: int,
        saved: Snapshot | None,
        arguments: Mapping[str, Any],
    ):
        """Begin.

        Args:
            worker: this process's.
            model: that is fitted.
            number: which call of `fit`, from 0.
            saved: what to resume from.
            arguments: of the call, by name.
        """
        self.makers = Makers(arguments, worker.entropy, saved)
        self.worker = worker
        self._arguments = arguments
        self.model = model
        self.number = number
        self.saved = saved  #: what to resume from, until it is restored
        self.iterator: Any = None  #: Keras's iterator over the training data
        self.iterator_in_the_making = False  #: Keras makes one just now
        self.listeners: Any = None  #: Keras's CallbackList
        self.position = Position("epoch")
        self.validation = Position("skip", validates=True)
        self.epoch = 0
        self.done = 0  #: executions of the training function in this epoch
        self.logs: Any = None  #: what the last step returned
        self.end_logs: Any = None  #: the same, for an epoch that was resumed after its last step
        self.exactness: Exactness | None = None
        self._camera = Camera(model, worker.entropy)
        self._owners: list[stepcode.Owner] = []
        self._order: Order | None = None
        self._base_step = worker.step
        self._epoch_step = worker.step
        self._epoch_drawn = 0  #: batches of the present iterator before this epoch's first
        self._trained = self._resumed = self._broken = self._ran_out = False
        self._held: Snapshot | None = None
        self._epoch_at = 0.0
        self._epoch_s = math.inf  #: how long the last whole epoch took, validation and callbacks included
        self._holds = 0
        self._hold_s = math.inf  #: what it takes to hold an epoch's end, at best
        self._traces = Traces(worker, model)
        self._initial_epoch: list[int | None] = []  #: of the model, where a resume changes it
        self._steps_seen: int | None = None
        self._fixed: dict[str, Any] = {}
        self._flaw: str | None = None  #: of validation, once it is known

    # -- called as the fit begins ---------------------------------------------------------------------------

    def adopt_iterator(self, iterator: Any) -> None:
        """Take an epoch iterator that Keras has made; the fit's first is the one over the training data."""
        if self.iterator is not None:
            self.makers.adapted(getattr(iterator.data_adapter, "py_dataset", None))
            return
        self.iterator = iterator
        with self._surviving(unless_resumed=True):
            self._classify(iterator)
        if self.exactness is None:
            self.exactness = Exactness(False, "its data could not be looked at", "epoch")
            self.worker.classify(self.number, self.exactness.kind, self.exactness.reason)

    def _classify(self, iterator: Any) -> None:
        distributed = getattr(self.model, "_distribute_strategy", None) is not None
        maker = self.makers.look_into(iterator, training=True)
        dataset, flaw = iterator._distributed_dataset, self.makers.flaw()
        self.exactness = classify(iterator.data_adapter, dataset, distributed, maker, flaw)
        stateless = type(iterator.data_adapter).__name__ in {"ArrayDataAdapter", "PyDatasetAdapter"}
        self.position = Position(self.exactness.method, stateless=stateless)
        self.position.order = self._order
        self.makers.adopt_training(iterator, self.position)
        self.worker.classify(self.number, self.exactness.kind, self.exactness.reason)

    def shuffle_arrays(self, tensorflow: Any, *, within_batches: bool) -> Callable[..., Any]:
        """Return the stand-in for `tf.random.shuffle` while Keras makes a dataset of unseeded arrays."""
        self._order = Order(tensorflow, self.worker.launch.seed, self.number, within_batches)
        return self._order.shuffle

    def before_train_begin(self, callback_list: Any) -> list[Any]:
        """Cut the callbacks' files back; return those whose `append` was switched on for it."""
        self.listeners = callback_list
        record = self.worker.launch.paths.begun(self.number)
        switched: list[Any] = []
        if self.saved is None:
            complaints = outputs.begin(record, callback_list.callbacks)
        else:
            states = self.saved.state["listeners"]["callbacks"]
            switched, complaints = outputs.resume(record, callback_list.callbacks, states)
        for complaint in complaints:
            self.worker.facts.warn(complaint)
        return switched

    def after_train_begin(self) -> None:
        """All callbacks have begun: say what comes, and build and fill a model that is resumed."""
        worker, iterator = self.worker, self.iterator
        steps = iterator.num_batches
        epochs = self.listeners.params.get("epochs")
        worker.facts("fit-started", fit=self.number, epochs=epochs, steps_per_epoch=steps)
        worker.progress.set(fit=self.number, epochs=epochs, steps_per_epoch=steps)
        with self._surviving(unless_resumed=True):
            self._fixed = {
                "kind": "fit",
                "fit": self.number,
                "base_step": self._base_step,
                "initial_epoch": self.model._initial_epoch,
                "fingerprint": {
                    **fingerprint.machine(),
                    "source": fingerprint.source(worker.entry),
                    "data": fingerprint.data(self._arguments),
                },
            }
        if self.saved is not None:
            self._fixed["initial_epoch"] = self.saved.state["initial_epoch"]
            self._initial_epoch = [self.saved.state["initial_epoch"]]
            self._approach()
        elif worker.launch.start_from is not None and self.number == 0:
            self.build()
            self.model.load_weights(str(worker.launch.start_from))
        self._wrap_train_function()

    def build(self) -> None:
        """Make all variables of model, optimizer and metrics, as the first step would."""
        if self._traces.known:
            self.worker.phase("trace", tell=True)
        spec = self.iterator._distributed_dataset.element_spec
        rebuild(self.model, spec, self._traces.known, self.worker.entropy)

    def _approach(self) -> None:
        """Before the resumed epoch begins: the variables and callbacks as they were, near enough.

        The exact moment is restored again in `_arrive`, when the resumed epoch's own beginnings are done.
        """
        assert self.saved is not None
        self._traces.known.update(traces_of(self.saved))
        self.build()
        self._look_at_step(self.model.train_function)
        self._restore()
        self.model._initial_epoch = self.saved.state["cursor"]["epoch"]

    def _restore(self) -> None:
        assert self.saved is not None
        try:
            self._lost = capture.restore(self.model, self.saved, self._listening())
        except ChangedScriptError as reason:
            self.worker.refuse(str(reason))

    # -- the steps of an epoch ------------------------------------------------------------------------------

    def steps(self, original: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
        """Give out one epoch's steps; every turn of the loop begins at a safe point."""
        iterator, worker = self.iterator, self.worker
        stop, clock, progress, saver = worker.stop, time.monotonic, worker.progress, worker.saver
        size = iterator.steps_per_execution
        self.done, self._ran_out = 0, False
        self._time_epoch()
        inner = original(iterator)
        position = self.position
        done = self._arrive(inner) if self.saved is not None else 0
        self.makers.set_out(iterator, position)
        base = self._epoch_drawn = position.drawn - done * size
        total, batches = self._executions()
        self._epoch_step = worker.step - (batches if done and done == total else done * size)
        iterators = position.iterators
        while True:
            self.done = done
            # The last execution of an epoch may hold fewer steps than the others.
            step = worker.step = self._epoch_step + (batches if done == total else done * size)
            position.drawn = base + done * size
            now = clock()
            if now >= progress._written_at + 1.0:
                self._tell(now)
            if stop.requested or saver.due(step, iterator.num_batches, done == total or done == 0 < step):
                self._save(done)
            if done == total:
                self._hold()
            try:
                item = next(inner)
            except StopIteration:
                self._ran_out = True
                return
            if position.iterators != iterators or self._steps_seen is not None:
                iterators = position.iterators
                base = self._epoch_drawn = position.drawn - done * size
                self._count_on(size)
                self._tell_replayed()
            if self._held is not None:
                self._let_go()
            yield item
            done += 1

    def step_ended(self, logs: Any) -> None:
        """Note that the training function has been executed; callbacks follow, which may end the epoch."""
        self.logs = logs
        self.done += 1
        self.position.drawn = self._epoch_drawn + self.done * self.iterator.steps_per_execution

    def _count_on(self, size: int) -> None:
        """Let Keras count on where an iterator that lives on over epochs was opened anew by a resume."""
        if self._steps_seen is not None:
            self.iterator._steps_seen, self._steps_seen = self._steps_seen + size, None

    def _executions(self) -> tuple[int | None, int]:
        """Return after how many executions and batches the epoch is over; None, 0 where nobody knows yet."""
        batches = int(self.iterator.steps_per_epoch or self.iterator._num_batches or 0)
        return (math.ceil(batches / self.iterator.steps_per_execution), batches) if batches > 0 else (None, 0)

    def _tell(self, now: float) -> None:
        worker = self.worker
        worker.progress.set(
            step=worker.step,
            epoch=self.epoch,
            step_in_epoch=self.done * self.iterator.steps_per_execution,
            steps_per_epoch=self.iterator.num_batches,
            metrics=values.of_logs(self.logs) or worker.progress.values["metrics"],
        )
        worker.progress.write_if_due(now)

    # -- snapshots ------------------------------------------------------------------------------------------

    def _may_save(self, done: int) -> bool:
        """Tell whether the present safe point is one that a resume can start from."""
        if self._broken or not self._trained:
            return False
        self._look_again()
        return self._is_exact() or done == 0

    def _look_again(self) -> None:
        """Notice that the data are not what they were taken for."""
        assert self.exactness is not None
        flaw = self.makers.flaw() if self.exactness.exact else ""
        if flaw:
            self.exactness = Exactness(False, flaw, "epoch")
            self.worker.classify(self.number, Kind.NOT_EXACT, flaw)

    def _may_leave(self) -> bool:
        return self._trained and self.worker.stop.may_leave

    def _save(self, done: int) -> None:
        """Take a checkpoint here; where a stop is asked for, save it and end."""
        stopping = self._may_leave()
        began = time.monotonic()
        snapshot: Snapshot | None = None
        wanted = stopping or not self.worker.stop.requested
        if wanted and self._may_save(done):
            with self._surviving():
                snapshot = self.take()
        if stopping:
            self.worker.leave_with(snapshot)
        elif snapshot is not None:
            self.worker.saver.submit(snapshot, time.monotonic() - began)

    def take(self, *, fleeting: bool = False) -> Snapshot:
        """Return a snapshot of this safe point; a fleeting one is dropped before the next step."""
        for future in self.listeners._futures:
            future.result()
        snapshot = self._camera.take(
            step=self.worker.step,
            epoch=self.epoch,
            callbacks=self._listening(),
            logs=self.logs,
            state=self._state(),
            fleeting=fleeting,
        )
        snapshot.arrays.update(self._traces.arrays())
        self._camera.missed += self.makers.add_to(snapshot)
        for missed in self._camera.missed:
            message = f"cannot be captured, stays as the script makes it at a resume: {missed}"
            self.worker.facts.warn(message, fit=self.number, missed=missed)
        return snapshot

    def _listening(self) -> list[Any]:
        """Return the callbacks, and what else the script's code in the fit can change."""
        return [*self.listeners.callbacks, *self._owners]

    def _state(self) -> dict[str, Any]:
        return {
            **self._fixed,
            "cursor": cursor.describe(self.iterator, self.position, self.validation, self.epoch, self.done),
            "traces": self._traces.state(),
            "validation_flaw": self._flaw,
            "metrics_size": self.worker.metrics.size(),
        }

    @contextlib.contextmanager
    def _surviving(self, *, unless_resumed: bool = False) -> Iterator[None]:
        """Report a failure of the block, which is ours, and let the training go on without checkpoints.

        Raises:
            Exception: that failure, where the fit is to be resumed and `unless_resumed`.
        """
        try:
            yield
        except Exception as error:
            if unless_resumed and self.saved is not None:
                raise
            self._broken = True
            reason = f"{type(error).__name__}: {error}"
            self.worker.facts.warn(f"no more checkpoints in fit {self.number}, something failed: {reason}")

    def _hold(self) -> None:
        """At an epoch's end: keep the state in memory, for validation and callbacks may take long."""
        if self._held is not None or not self._may_save(self.done):
            return
        # The first is dear: it finds out what is always the same.
        if self._holds < 2 or self._hold_s <= _HOLD_SHARE * self._epoch_s:
            began = time.monotonic()
            with self._surviving():
                self._held = self.take(fleeting=True)
                self.worker.hold(self._held)
            self._holds += 1
            self._hold_s = min(self._hold_s, time.monotonic() - began)

    def _let_go(self) -> None:
        self._held = None
        self.worker.release()

    def _time_epoch(self) -> None:
        """Learn how long the last epoch took: a new one begins."""
        now = time.monotonic()
        if self._epoch_at:
            self._epoch_s = now - self._epoch_at
        self._epoch_at = now

    # -- resuming -------------------------------------------------------------------------------------------

    def _arrive(self, inner: Iterator[Any]) -> int:
        """Go to the snapshot's place in the data and put everything back; return the executions done."""
        saved = self.saved
        assert saved is not None
        place = saved.state["cursor"]
        self.makers.aim(saved, self.position)
        done = cursor.go_to(place, self.iterator, self.position, self.validation, inner)
        if done == 0 and not place["fresh"]:
            self._steps_seen = self.iterator._steps_seen = int(place["steps_seen"])
        self._restore()
        replayed = self.makers.train is not None and done > 0
        capture.restore_chance(saved, self.worker.entropy, host=not replayed)
        self.logs = self.end_logs = capture.decode_logs(saved)
        self.worker.step = saved.step
        self._base_step = int(saved.state["base_step"])
        self._trained = self._resumed = True
        self.worker.metrics.cut(int(saved.state["metrics_size"]))
        self.worker.saved = self.saved = None
        self._look_again()
        self._tell_resumed(saved)
        return done

    def _tell_resumed(self, saved: Snapshot) -> None:
        assert self.exactness is not None
        reasons = fingerprint.differences(saved.state["fingerprint"], self._fixed["fingerprint"])
        if not self.exactness.exact:
            reasons.append(self.exactness.reason)
        self._flaw = saved.state.get("validation_flaw")
        if self._flaw and saved.state["cursor"]["validation_iterators"]:
            reasons.append(self._flaw)
        reasons += [f"could not be put back: {lost}" for lost in self._lost]
        self.worker.tell_resumed(saved, reasons, self._replay_s())

    def _replay_s(self) -> float:
        """Return what reading again has taken since this was asked last; 0 where nothing had to be."""
        replay_s, self.position.replay_s = self.position.replay_s, 0.0
        return replay_s if self.exactness is not None and self.exactness.kind is Kind.BY_REPLAY else 0.0

    def _tell_replayed(self) -> None:
        """Say what reading again took, where the iterator of a resumed fit was opened after a safe point."""
        replay_s = self._replay_s()
        if replay_s:
            self.worker.tell_replayed(self.number, replay_s)

    # -- the training function ------------------------------------------------------------------------------

    def _wrap_train_function(self) -> None:
        """Put a shell around the training function for its first call: it cares for the trace."""
        function = self.model.train_function

        @functools.wraps(function)
        def first(iterator: Any) -> Any:
            if not self._resumed:
                self.worker.phase("trace", tell=True)
            exact = self._trace_is_exact()
            with self._traces.tracing("train", resumed=self._resumed, exact=exact):
                logs = function(iterator)
            self._unwrap_train_function()
            self._look_at_step(function)
            self._trained = True
            self.worker.release()
            self.worker.phase("train", tell=True)
            return logs

        self._wrapped = function, first
        self.model.train_function = first

    def _unwrap_train_function(self) -> None:
        if self._wrapped is not None and self.model.train_function is self._wrapped[1]:
            self.model.train_function = self._wrapped[0]

    def _look_at_step(self, function: Any) -> None:
        """Notice Python code in the step, and that it cannot go on as it would have; it has been traced."""
        with self._surviving(unless_resumed=True):
            operations = operations_of_step(traced_step(function))
            self._owners = stepcode.owners(self.model, operations)
            self._judge_step(flaw_of_step(operations))

    def _judge_step(self, flaw: str) -> None:
        if flaw and self.exactness is not None and self.exactness.exact:
            self.exactness = Exactness(False, flaw, self.exactness.method)
            self.worker.classify(self.number, Kind.NOT_EXACT, flaw)

    def _trace_is_exact(self) -> bool:
        return self._is_exact() and not self.makers

    def _is_exact(self) -> bool:
        return self.exactness is not None and self.exactness.method != "epoch"

    # -- epochs and validation ------------------------------------------------------------------------------

    def test_began(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        """Note that validation begins."""
        self._traces.wrap_test_function(resumed=self._resumed, exact=self._trace_is_exact)
        self.validation.begin_validation()
        self.worker.progress.set(step=self.worker.step)
        self.worker.phase("validate")

    def count_validation(self, iterator: Any, dataset: Any) -> Any:
        """Return what Keras shall iterate for validation; say where a resume is not exact."""
        maker = self.makers.look_into(iterator, training=False)
        self.makers.adopt_validation(iterator, self.validation, self.iterator)
        if maker is not None:
            dataset = iterator._distributed_dataset
        if self._flaw is None:
            self._flaw = flaw_of_validation(iterator, maker)
            if self._flaw:
                self.worker.classify(self.number, Kind.NOT_EXACT, self._flaw)
        return self.validation.counted(dataset)

    def left_behind(self) -> dict[str, Any]:
        """Return what the fit leaves of its datasets."""
        return {
            "train": left_behind(self.iterator, self.position),
            "validation": left_behind(self.validation.epochs, self.validation),
        }

    def pulled(self) -> dict[str, int | None]:
        """Return how many batches the fit has taken from its generators; None: all that one had."""
        return self.makers.pulled(self.iterator, self.position, self.validation, ran_out=self._ran_out)

    def test_ended(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        """Note that validation is over; the callbacks follow."""
        self.worker.phase("callbacks")

    def epoch_began(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        """Note that Keras begins an epoch."""
        self.epoch = epoch
        if self._trained:
            self.worker.phase("train")

    def epoch_ended(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch's metrics when all callbacks have seen its end; keep the model if it is the best."""
        worker = self.worker
        worker.step = self._epoch_step + self._completed()
        metrics = values.of_epoch(self.model, logs)
        line = {"epoch": epoch, "step": worker.step, "fit": self.number, "time": now_text(), **metrics}
        try:
            worker.metrics.append(line)
        except OSError as error:
            worker.facts.warn(f"metrics.jsonl misses lines: {error}")
        worker.progress.set(step=worker.step, epoch=epoch, metrics=metrics)
        worker.progress.write_if_due()
        if self._broken or not self._trained:
            return
        with self._surviving():
            worker.say(
                worker.fit_best.consider(epoch, worker.step, metrics, self._portrait, self._save_whole)
            )

    def _portrait(self) -> Snapshot:
        return self._camera.portrait(step=self.worker.step, epoch=self.epoch)

    def _save_whole(self, path: Path) -> None:
        self.model.save(str(path))

    def _completed(self) -> int:
        size = self.iterator.steps_per_execution
        total = self.iterator.num_batches
        done: int = self.done * size
        return min(done, int(total)) if total else done

    # -- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo what was put on the model; call however the fit ended."""
        for epoch in self._initial_epoch:
            self.model._initial_epoch = epoch
        self._unwrap_train_function()

    def finish(self) -> None:
        """Save what the fit left behind, so that no later attempt runs it again."""
        self.close()
        worker = self.worker
        self._held = None
        worker.phase("save")
        if worker.ends.allowed(self.number):
            with worker.ends.spending() as spend:
                worker.flush_best()
                if self._trained and not self._broken:
                    self._save_finished(spend)
        worker.facts("fit-finished", fit=self.number)
        worker.progress.set(step=worker.step, epoch=self.epoch)
        worker.phase("after", tell=True)
        worker.progress.write()
        worker.keep_nothing()

    def _save_finished(self, spend: Callable[[int], None]) -> None:
        worker = self.worker
        self.done = 0
        try:
            worker.saver.flush()
            spend(finished.save(worker, self.number, self.take(), self.iterator))
        except Exception as error:  # noqa: BLE001 - the fit is done; without this file it is done again
            worker.facts("save-failed", path=finished.name(worker, self.number), reason=str(error))
