"""One call of `fit`: its safe points, its checkpoints, its exact resume.

Keras asks `EpochIterator._enumerate_iterator` for each step. Standing in there, before a step is given out,
the callbacks of the step before are done and the batch of this one is not yet drawn: that is the safe point
at which a checkpoint is taken, a stop is obeyed, and a resumed fit is put back.

A failure of this code while training is reported and ends the checkpoints, not the training; a failure while
resuming ends the attempt, because going on would be wrong.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from runner.core.exactness import Kind
from runner.storage.checkpoint import Snapshot
from runner.training import capture, cursor, fingerprint, finished, stepcode, values
from runner.training.capture import Camera, traces_of
from runner.training.classify import Exactness, classify, flaw_of_step, flaw_of_validation
from runner.training.datasets import operations_of_step
from runner.training.entangled import Entangled
from runner.training.fitlog import FitLog
from runner.training.held import Values
from runner.training.holding import Holding
from runner.training.listeners import Listener
from runner.training.makers import Makers, left_behind
from runner.training.order import Order
from runner.training.position import Position
from runner.training.rebuild import rebuild, traced_step
from runner.training.tracing import Traces
from runner.training.variables import ChangedScriptError, optimizers_of
from runner.training.worker import Worker


class Fit:
    """The runner's side of one call of `fit`."""

    _lost: Sequence[str] = ()  #: what the last resume could not put back

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
        self._camera = Camera(model, worker.entropy, lend=lambda layout: worker.saver.lend(layout))
        self._owners: list[stepcode.Owner] = []
        self._order: Order | None = None
        self._base_step = worker.step
        self._epoch_step = worker.step
        self._epoch_drawn = 0  #: batches of the present iterator before this epoch's first
        self._trained = self._resumed = self._ran_out = False
        self._log = FitLog(worker, number, self._camera)
        self._holding = Holding(worker, self._take_fleeting)
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
        with self._log.surviving(unless=self.saved is not None):
            self._classify(iterator)
        if self.exactness is None:
            self._classified(Exactness(False, "its data could not be looked at", "epoch"))

    def _classify(self, iterator: Any) -> None:
        distributed = getattr(self.model, "_distribute_strategy", None) is not None
        maker = self.makers.look_into(iterator, training=True)
        dataset, flaw = iterator._distributed_dataset, self.makers.flaw()
        exactness = classify(iterator.data_adapter, dataset, distributed, maker, flaw)
        stateless = type(iterator.data_adapter).__name__ in {"ArrayDataAdapter", "PyDatasetAdapter"}
        self.position = Position(exactness.method, stateless=stateless)
        self.position.order = self._order
        self.makers.adopt_training(iterator, self.position)
        self._classified(exactness)

    def _classified(self, exactness: Exactness) -> None:
        """Tell how the fit can be resumed, from now on."""
        self.exactness = exactness
        self.worker.classify(self.number, exactness.kind, exactness.reason)

    def _doubt(self, reason: str, method: str | None = None) -> None:
        """Note that the fit cannot be resumed exactly, where `reason` says why.

        Args:
            reason: in words; "" where there is none.
            method: how to skip from now on; None: as before.
        """
        if reason and self.exactness is not None and self.exactness.exact:
            self._classified(Exactness(False, reason, method or self.exactness.method))

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
        callbacks, owners = self.listeners.callbacks, self._owners
        try:
            self._lost = capture.restore(self.model, self.saved, callbacks, owners, leave=leave)
        except ChangedScriptError as reason:
            self.worker.refuse(str(reason))

    # -- the steps of an epoch ------------------------------------------------------------------------------

    def steps(self, original: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
        """Give out one epoch's steps; every turn of the loop begins at a safe point."""
        iterator, worker = self.iterator, self.worker
        stop, clock, progress, saver = worker.stop, time.monotonic, worker.progress, worker.saver
        size = iterator.steps_per_execution
        self.done, self._ran_out = 0, False
        holding = self._holding
        holding.begin_epoch()
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
            if progress.wants(now):
                self._tell()
            if stop.requested or saver.due(step, iterator.num_batches, done == total or done == 0 < step):
                self._save(done)
            if done == total and self._may_save(done):
                holding.hold()
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

    def _executions(self) -> tuple[int | None, int]:
        """Return after how many executions and batches the epoch is over; None, 0 where nobody knows yet."""
        batches = int(self.iterator.steps_per_epoch or self.iterator._num_batches or 0)
        return (math.ceil(batches / self.iterator.steps_per_execution), batches) if batches > 0 else (None, 0)

    def _tell(self) -> None:
        worker = self.worker
        worker.vigil.look_at_loss(self.logs)
        worker.progress.set(
            step=worker.step,
            epoch=self.epoch,
            step_in_epoch=self.done * self.iterator.steps_per_execution,
            steps_per_epoch=self.iterator.num_batches,
            metrics=values.of_logs(self.logs) or worker.progress.values["metrics"],
        )

    # -- snapshots ------------------------------------------------------------------------------------------

    def _may_save(self, done: int) -> bool:
        """Tell whether the present safe point is one that a resume can start from."""
        if self._log.broken or not self._trained or self.worker.stop.cut_short:
            return False
        with self._log.surviving():
            self._look_again()
        return not self._log.broken and (self._is_exact() or done == 0)

    def _look_again(self) -> None:
        """Notice that the data are not what they were taken for."""
        assert self.exactness is not None
        if self.exactness.exact:
            self._doubt(self.makers.flaw(), "epoch")
        self._doubt("; ".join(self.worker.tell_lost(self.number, self.makers.lost())))

    def _may_leave(self) -> bool:
        return self._trained and self.worker.stop.may_leave

    def _save(self, done: int) -> None:
        """Take a checkpoint here; where a stop is asked for, save it and end."""
        stopping = self._may_leave()
        began = time.monotonic()
        snapshot: Snapshot | None = None
        size = self._camera.known_size()
        hold = not stopping and size is not None and self.worker.saver.holds(size)
        wanted = stopping or not self.worker.stop.requested
        self.worker.vigil.look_at_loss(self.logs)
        if wanted and self._may_save(done):
            with self._log.surviving():
                snapshot = self.take(Values.HELD if hold else Values.COPIED)
        if stopping:
            self.worker.leave_with(snapshot)
        elif snapshot is not None:
            with self._log.surviving():
                develop = self._camera.develop if hold else None
                self.worker.saver.submit(snapshot, time.monotonic() - began, develop)

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
            "validation_flaw": self._flaw,
            **self.worker.state(),
        }

    # -- resuming -------------------------------------------------------------------------------------------

    def _arrive(self, inner: Iterator[Any]) -> int:
        """Go to the snapshot's place in the data and put everything back; return the executions done."""
        saved = self.saved
        assert saved is not None
        place = saved.state["cursor"]
        with self._reading_again(saved) as left:
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
        self._look_again()
        self._tell_resumed(saved)
        return done

    @contextlib.contextmanager
    def _reading_again(self, saved: Snapshot) -> Iterator[set[str]]:
        """Let the block read data again; yield what takes the names of what that leaves to the data."""
        theirs: set[str] = set()
        maker = self.makers.train
        self.makers.aim(saved, self.position)
        if maker is None:
            yield theirs
            return
        maker.prepare()
        entangled = Entangled([*map(Listener, self.listeners.callbacks), *self._owners])
        yield theirs
        changed = entangled.changed()
        if maker.from_start:
            names = ", ".join(sorted(changed))
            self._doubt(f"callbacks have what making the data changes: {names}" if changed else "")
        else:
            theirs |= changed

    def _tell_resumed(self, saved: Snapshot) -> None:
        assert self.exactness is not None
        reasons = fingerprint.differences(saved.state["fingerprint"], self._fixed["fingerprint"])
        if not self.exactness.exact:
            reasons.append(self.exactness.reason)
        self._flaw = saved.state.get("validation_flaw")
        if self._flaw and saved.state["cursor"]["validation_iterators"]:
            reasons.append(self._flaw)
        reasons += self.worker.tell_lost(self.number, self._lost)
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
            self._doubt(flaw_of_step(operations))

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
        metrics = self._log.end_epoch(epoch, logs)
        if self._log.broken or not self._trained or self._log.cut_short():
            return
        with self._log.surviving():
            self._log.consider(epoch, metrics)

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
        self._traces.unwrap_train_function()

    def finish(self) -> None:
        """Save what the fit left behind, so that no later attempt runs it again."""
        self.close()
        keep = self._trained and not self._log.broken and not self._log.cut_short()
        self._log.finish(self._save_finished if keep else None)

    def _save_finished(self) -> int | None:
        worker = self.worker
        self.done = 0
        try:
            worker.saver.flush()
            size = finished.save(worker, self.number, self.take(), self.iterator)
            worker.saver.outdate()
        except Exception as error:  # noqa: BLE001 - the fit is done; without this file it is done again
            worker.facts("save-failed", path=finished.name(worker, self.number), reason=str(error))
            return None
        return size
