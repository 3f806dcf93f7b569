"""One call of `fit`: its safe points, its checkpoints, its exact resume.

Keras asks `EpochIterator._enumerate_iterator` for each step. Standing in there, before a step is given out,
the callbacks of the step before are done and the batch of this one is not yet drawn: that is the safe point
at which a checkpoint is taken, a stop is obeyed, and a resumed fit is put back.

A failure of this code while training is reported and ends the checkpoints, not the training; a failure while
resuming ends the attempt, because going on would be wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from runner.storage.checkpoint import Snapshot
from runner.training import capture, cursor, finished, stepcode, values
from runner.training.capture import Camera, traces_of
from runner.training.classify import flaw_of_step
from runner.training.datasets import operations_of_step
from runner.training.fitlog import FitLog
from runner.training.held import Values
from runner.training.holding import Holding
from runner.training.listeners import Listener
from runner.training.makers import Makers
from runner.training.order import Order
from runner.training.position import Position
from runner.training.rebuild import rebuild, traced_step
from runner.training.rereading import Rereading
from runner.training.tracing import Traces
from runner.training.variables import ChangedScriptError, optimizers_of
from runner.training.verdict import Verdict
from runner.training.worker import Worker


class Fit:
    """The runner's side of one call of `fit`."""

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
        self.verdict = Verdict(worker, number)
        self._rereading = Rereading(worker, number, self.makers, self.verdict)
        self._camera = Camera(model, worker.entropy, lend=lambda layout: worker.saver.lend(layout))
        self._owners: list[stepcode.Owner] = []
        self._order: Order | None = None
        self._base_step = worker.step
        self._epoch_step = worker.step
        self._epoch_drawn = 0  #: batches of the present iterator before this epoch's first
        self._trained = self._resumed = False
        self.ran_out = False  #: the training data are at their end
        self._log = FitLog(worker, number, self._camera)
        self._holding = Holding(worker, self._take_fleeting)
        self._traces = Traces(worker, model)
        self._initial_epoch: list[int | None] = []  #: of the model, where a resume changes it
        self._steps_seen: int | None = None
        self._fixed: dict[str, Any] = {}
        self._lost: Sequence[str] = ()  #: what the last resume could not put back

    # -- called as the fit begins ---------------------------------------------------------------------------

    def adopt_iterator(self, iterator: Any) -> None:
        """Take an epoch iterator that Keras has made; the fit's first is the one over the training data."""
        if self.iterator is not None:
            self.makers.adapted(getattr(iterator.data_adapter, "py_dataset", None))
            return
        self.iterator = iterator
        with self._log.surviving(unless=self.saved is not None):
            exactness = self.verdict.examine(self.model, iterator, self.makers)
            stateless = type(iterator.data_adapter).__name__ in {"ArrayDataAdapter", "PyDatasetAdapter"}
            self.position = Position(exactness.method, stateless=stateless)
            self.position.order = self._order
            self.makers.adopt_training(iterator, self.position)
            self.verdict.settle(exactness)
        self.verdict.settle_unseen()

    def shuffle_arrays(self, tensorflow: Any, *, within_batches: bool) -> Callable[..., Any]:
        """Return the stand-in for `tf.random.shuffle` while Keras makes a dataset of unseeded arrays."""
        self._order = Order(tensorflow, self.worker.launch.seed, self.number, within_batches)
        return self._order.shuffle

    def before_train_begin(self, callback_list: Any) -> list[Any]:
        """Cut the callbacks' files back; return those whose `append` was switched on for it."""
        self.listeners = callback_list
        return self._log.cut_files(self.saved, callback_list.callbacks)

    def after_train_begin(self) -> None:
        """All callbacks have begun: say what comes, and build and fill a model that is resumed."""
        worker = self.worker
        self._log.begin(self.listeners.params.get("epochs"), self.iterator.num_batches)
        with self._log.surviving(unless=self.saved is not None):
            self._fixed = self._log.fixed(
                "fit",
                self._arguments,
                base_step=self._base_step,
                initial_epoch=self.model._initial_epoch,
            )
        if self.saved is not None:
            self._fixed["initial_epoch"] = self.saved.state["initial_epoch"]
            self._initial_epoch = [self.saved.state["initial_epoch"]]
            self._approach()
        elif worker.launch.start_from is not None and self.number == 0:
            self.build()
            self.model.load_weights(str(worker.launch.start_from))
        if self.saved is None:
            worker.vigil.slow_down(optimizers_of(self.model))
        self._traces.wrap_train_function(self._first_step, lambda: self._resumed, self._trace_is_exact)

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

    def _restore(self, leave: Set[str] = frozenset()) -> None:
        assert self.saved is not None
        listening = self.listeners.callbacks
        try:
            self._lost = capture.restore(self.model, self.saved, listening, self._owners, leave=leave)
        except ChangedScriptError as reason:
            self.worker.refuse(str(reason))

    # -- the steps of an epoch ------------------------------------------------------------------------------

    def steps(self, original: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
        """Give out one epoch's steps; every turn of the loop begins at a safe point."""
        iterator, worker = self.iterator, self.worker
        stop, clock, progress, saver = worker.stop, time.monotonic, worker.progress, worker.saver
        size = iterator.steps_per_execution
        self.done, self.ran_out = 0, False
        holding = self._holding
        holding.begin_epoch()
        inner = original(iterator)
        position = self.position
        done = self._arrive(inner) if self.saved is not None else 0
        self.makers.set_out(iterator, position)
        base = self._epoch_drawn = position.drawn - done * size
        total, batches = cursor.executions(iterator)
        self._epoch_step = worker.step - (batches if done and done == total else done * size)
        iterators = position.iterators
        while True:
            self.done = done
            # The last execution of an epoch may hold fewer steps than the others.
            step = worker.step = self._epoch_step + (batches if done == total else done * size)
            position.drawn = base + done * size
            now = clock()
            if progress.wants(now):
                self._tell()
            if stop.requested or saver.due(step, iterator.num_batches, done == total or done == 0 < step):
                self._save(done)
            if done == total and self._may_save(done):
                holding.hold()
            try:
                item = next(inner)
            except StopIteration:
                self.ran_out = True
                return
            if position.iterators != iterators or self._steps_seen is not None:
                iterators = position.iterators
                base = self._epoch_drawn = position.drawn - done * size
                self._count_on(size)
                self._rereading.tell(self.position)
            if holding.held:
                holding.let_go()
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

    def _tell(self) -> None:
        progress = self.worker.progress
        self.worker.vigil.look_at_loss(self.logs)
        progress.set(
            step=self.worker.step,
            epoch=self.epoch,
            step_in_epoch=self.done * self.iterator.steps_per_execution,
            steps_per_epoch=self.iterator.num_batches,
            metrics=values.of_logs(self.logs) or progress.values["metrics"],
        )

    # -- snapshots ------------------------------------------------------------------------------------------

    def _may_save(self, done: int) -> bool:
        """Tell whether the present safe point is one that a resume can start from."""
        if self._log.broken or not self._trained or self.worker.stop.cut_short:
            return False
        with self._log.surviving():
            self.verdict.look_again(self.makers)
        return not self._log.broken and (self.verdict.within_epochs or done == 0)

    def _save(self, done: int) -> None:
        """Take a checkpoint here; where a stop is asked for, save it and end."""
        stopping = self._trained and self.worker.stop.may_leave
        began = time.monotonic()
        snapshot: Snapshot | None = None
        size = self._camera.known_size()
        hold = not stopping and size is not None and self.worker.saver.holds(size)
        self.worker.vigil.look_at_loss(self.logs)
        if (stopping or not self.worker.stop.requested) and self._may_save(done):
            with self._log.surviving():
                snapshot = self.take(Values.HELD if hold else Values.COPIED)
        if stopping:
            self.worker.leave_with(snapshot)
        elif snapshot is not None:
            with self._log.surviving():
                took_s, develop = time.monotonic() - began, self._camera.develop if hold else None
                self.worker.saver.submit(snapshot, took_s, develop)

    def take(self, how: Values = Values.COPIED) -> Snapshot:
        """Return a snapshot of this safe point; see `Camera.take`."""
        for future in self.listeners._futures:
            future.result()
        with self.makers.still():
            snapshot = self._camera.take(
                step=self.worker.step,
                epoch=self.epoch,
                callbacks=self.listeners.callbacks,
                owners=self._owners,
                logs=self.logs,
                state=self._state(),
                values=how,
            )
            snapshot.arrays.update(self._traces.arrays())
            self._camera.missed += self.makers.add_to(snapshot)
        self._log.tell_missed()
        return snapshot

    def _take_fleeting(self) -> Snapshot | None:
        with self._log.surviving():
            return self.take(Values.VIEWED)
        return None

    def _state(self) -> dict[str, Any]:
        return {
            **self._fixed,
            "cursor": cursor.describe(self.iterator, self.position, self.validation, self.epoch, self.done),
            "traces": self._traces.state(),
            "validation_flaw": self.verdict.flaw,
            **self.worker.state(),
        }

    # -- resuming -------------------------------------------------------------------------------------------

    def _arrive(self, inner: Iterator[Any]) -> int:
        """Go to the snapshot's place in the data and put everything back; return the executions done."""
        saved = self.saved
        assert saved is not None
        place = saved.state["cursor"]
        watched = [*map(Listener, self.listeners.callbacks), *self._owners]
        with self._rereading.of(saved, self.position, watched) as left:
            done = cursor.go_to(place, self.iterator, self.position, self.validation, inner)
            replayed = self.makers.train is not None and (done > 0 or self.position.reopens)
            if replayed and done == 0:
                self.position.open_early(self.iterator._distributed_dataset)
        if done == 0 and not place["fresh"]:
            self._steps_seen = self.iterator._steps_seen = int(place["steps_seen"])
        self._restore(left)
        self.worker.vigil.slow_down(optimizers_of(self.model), saved)
        capture.restore_chance(saved, self.worker.entropy, host=not replayed)
        self.logs = self.end_logs = capture.decode_logs(saved)
        self.worker.step = saved.step
        self._base_step = int(saved.state["base_step"])
        self._trained = self._resumed = True
        self.worker.metrics.restore(saved.state)
        self.worker.saved = self.saved = None
        self.verdict.look_again(self.makers)
        reasons = self.verdict.reasons(saved, self._fixed["fingerprint"], self._lost)
        self.worker.tell_resumed(saved, reasons, self._rereading.took_s(self.position))
        return done

    # -- the training function ------------------------------------------------------------------------------

    def _first_step(self, function: Any) -> None:
        """Note that the training function has been traced, and has run."""
        self._look_at_step(function)
        self._trained = True
        with self._log.surviving():
            self.worker.saver.prepare(self._camera.size)
            if self.worker.launch.keeper is None and not self.worker.launch.rehearse:
                self._camera.prepare()
        self.worker.release()
        self.worker.phase("train", tell=True)

    def _look_at_step(self, function: Any) -> None:
        """Notice Python code in the step, and that it cannot go on as it would have; it has been traced."""
        with self._log.surviving(unless=self.saved is not None):
            operations = operations_of_step(traced_step(function))
            self._owners = stepcode.owners(self.model, operations)
            self.verdict.doubt(flaw_of_step(operations))

    def _trace_is_exact(self) -> bool:
        return self.verdict.within_epochs and not self.makers

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
        self.verdict.judge_validation(iterator, maker)
        return self.validation.counted(dataset)

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
        self.worker.step = self._epoch_step + cursor.completed(self.iterator, self.done)
        if self._log.cut_short():
            return
        metrics = self._log.end_epoch(epoch, logs)
        if self._trained and not self._log.broken:
            with self._log.surviving():
                self._log.consider(epoch, metrics)

    # -- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo what was put on the model; call however the fit ended."""
        for epoch in self._initial_epoch:
            self.model._initial_epoch = epoch
        self._traces.unwrap_train_function()

    def finish(self) -> None:
        """Save what the fit left behind, so that no later attempt runs it again."""
        self.close()
        keep = self._trained and not self._log.broken and not self._log.cut_short()
        self._log.finish(self._save_finished if keep else None)

    def _save_finished(self) -> int | None:
        self.done = 0
        return finished.save(self.worker, self.number, lambda: finished.of(self, self.take()))
