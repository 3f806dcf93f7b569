"""One call of `fit` that can be resumed at the beginning of an epoch, with no more than Keras's public API.

Keras is given two more callbacks. The one behind the script's takes a snapshot when an epoch is over; in a
resumed fit, which `initial_epoch` lets begin with the epoch after that, the one before them puts it back when
that epoch begins.

Promises:

- A resumed fit goes on from the saved weights, optimizer, callbacks, History and random state. It is never
  called exact, for the data of its epochs may come in another order.
- Where there is a doubt, a fit is trained from its beginning; what was saved of it is put aside, and a
  warning says so.

Limits: data must be read anew by each epoch (`doubts`). What a fit has done since its last epoch began is
lost by any stop. Metrics are not kept: each epoch begins them anew. One copy of the state stays in memory.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from typing import Any

from runner.core.exactness import Kind
from runner.storage.checkpoint import Snapshot
from runner.training import capture, doubts, fingerprint, finished, values, variables
from runner.training.capture import Camera
from runner.training.fitlog import FitLog
from runner.training.stopping import leave
from runner.training.variables import ChangedScriptError
from runner.training.worker import BAD_CONFIGURATION, Worker

#: The kind of the snapshots: no exact resume takes them for its own.
KIND = "epoch"
_DATA = "the data of its epochs may come in another order"


def refuse(worker: Worker, saved: Snapshot) -> Any:
    """End the attempt for good: the checkpoint is one for exact resumes."""
    version = saved.state["fingerprint"]["keras"]
    message = (
        f"the checkpoint was taken with Keras {version}, within an epoch; with the present one a fit can be"
        f" resumed at the beginning of an epoch only. Install Keras {version} again, or start afresh:"
        f" runner rm {worker.launch.job}, then submit it again"
    )
    worker.facts.warn(message)
    sys.stderr.write(f"runner: {message}\n")
    leave(BAD_CONFIGURATION)


class Script:
    """What its fits share."""

    def __init__(self, worker: Worker, why: str):
        self.worker = worker
        self.why = why
        self.fitting = False
        self.lost = ""  #: which fit cannot be restored when it is over; those after it cannot be resumed


class EpochFit:
    """One call of `fit`."""

    def __init__(self, script: Script, model: Any, number: int, arguments: inspect.BoundArguments):
        """Begin.

        Args:
            script: its own.
            model: that is fitted.
            number: which call of `fit`, from 0.
            arguments: of the call.
        """
        import keras

        self.model = model
        self._script, self._worker = script, script.worker
        self._number = number
        self._call = arguments
        with_defaults = inspect.BoundArguments(arguments.signature, arguments.arguments.copy())
        with_defaults.apply_defaults()
        self._arguments = with_defaults.arguments
        self._given = doubts.listed(self._arguments["callbacks"])
        self._callbacks = list(self._given or ())
        known = [one for one in self._callbacks if isinstance(one, keras.callbacks.History)]
        self._history = known[-1] if known else keras.callbacks.History()
        if not known:
            self._callbacks.append(self._history)
        self._doubt = script.lost or doubts.of_fit(model, self._arguments)
        self._camera = Camera(model, script.worker.entropy, self._variables)
        self._saved: Snapshot | None = None  #: what to resume from, until it is put back
        self._switched: list[Any] = []
        self._base_step = self._epoch_step = script.worker.step
        self._epoch = 0
        self._batches = 0  #: that the present epoch has done
        self._last: Any = None  #: our callback behind the script's
        self._log = FitLog(script.worker, number, self._camera)
        self._trained = False
        self._fixed: dict[str, Any] = {}

    def run(self, original: Callable[..., Any]) -> Any:
        """Call Keras's `fit`, or restore what it left if it is over."""
        worker, number = self._worker, self._number
        if self._given is None:
            self._doubt = "the callbacks are given as a CallbackList"
        again = f"{self._doubt}; begun anew at a resume" if self._doubt else _DATA
        worker.classify(number, Kind.NOT_EXACT, f"{self._script.why}: {again}")
        history = self._restore_finished()
        if history is not None:
            return history
        self._approach()
        if self._given is not None:
            self._call.arguments["callbacks"] = self._surrounded()
        history = original(*self._call.args, **self._call.kwargs)
        self._finish()
        return history

    def _variables(self) -> list[Any]:
        return variables.each_once([*self.model.variables, *getattr(self._optimizer, "variables", ())])

    @property
    def _optimizer(self) -> Any:
        return getattr(self.model, "optimizer", None)

    def _surrounded(self) -> list[Any]:
        """Return the callbacks, the first and the last being ours."""
        first = _callback(on_train_begin=self._cut_files, on_epoch_begin=self._epoch_begins)
        self._last = _callback(
            on_train_begin=self._train_began,
            on_train_batch_end=self._batch_ended,
            on_test_begin=lambda *_, **__: self._worker.phase("validate"),
            on_test_end=lambda *_, **__: self._worker.phase("callbacks"),
            on_epoch_end=self._epoch_ended,
            on_train_end=lambda *_, **__: self._make_sure(),
        )
        return [first, *self._callbacks, self._last]

    # -- before Keras begins --------------------------------------------------------------------------------

    def _approach(self) -> None:
        """Decide where the fit begins, and let Keras begin there."""
        worker, saved = self._worker, self._worker.saved
        given = self._arguments["initial_epoch"]
        fixed = self._log.fixed(KIND, self._arguments, base_step=self._base_step, initial_epoch=given)
        self._fixed = {**fixed, "traces": {}}
        self._log.begin(self._arguments["epochs"], None)
        if saved is not None and saved.state["fit"] == self._number:
            doubt = self._doubt or self._doubt_of(saved)
            if doubt:
                self._start_over(doubt)
            else:
                self._saved = saved
                self._call.arguments["initial_epoch"] = saved.epoch
        elif saved is not None and saved.state["fit"] > self._number:
            self._start_over("its end is not kept")
        if worker.launch.start_from is not None and self._number == 0 and self._saved is None:
            doubts.build(self.model, self._arguments["x"])
            self.model.load_weights(str(worker.launch.start_from))
        worker.phase("trace", tell=True)

    def _doubt_of(self, saved: Snapshot) -> str:
        """Say why the fit cannot go on from a snapshot; to find out changes no random state."""
        entropy = self._worker.entropy
        if saved.state["kind"] != KIND:
            return f"the checkpoint is of another kind ({saved.state['kind']})"
        with capture.chance_of(capture.capture_chance(entropy), entropy):
            try:
                doubts.build(self.model, self._arguments["x"])
            except Exception as error:  # noqa: BLE001 - the script's own code, called in an unusual way
                return f"the model cannot be built before its first step ({type(error).__name__}: {error})"
        return doubts.of_resume(saved, self._arguments, self._callbacks, self._variables())

    def _start_over(self, doubt: str) -> None:
        """Put aside what is saved of this fit and of all that follows."""
        worker = self._worker
        message = f"fit {self._number} is trained from its beginning: {doubt}"
        worker.facts.warn(message)
        finished.put_aside_from(worker, self._number, self._base_step, message)
        worker.step = self._base_step
        self._saved = None

    # -- while Keras trains ---------------------------------------------------------------------------------

    def _cut_files(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        """Cut the callbacks' files back."""
        self._switched = self._log.cut_files(self._saved, self._callbacks)

    def _train_began(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        for callback in self._switched:
            callback.append = False
        if self._saved is None:
            self._worker.vigil.slow_down(variables.optimizers_of(self.model))
        self._worker.progress.set(steps_per_epoch=self._last.params.get("steps"))

    def _epoch_begins(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        worker = self._worker
        if self._saved is not None and epoch == self._saved.epoch:
            self._arrive(self._saved)
        elif self._saved is not None and epoch == self._fixed["initial_epoch"]:
            self._start_over(f"Keras begins with epoch {epoch} all the same")
        self._make_sure()
        self._epoch, self._epoch_step, self._batches = epoch, worker.step, 0
        worker.progress.set(step=worker.step, epoch=epoch, step_in_epoch=0)
        if self._trained:
            worker.phase("train")

    def _arrive(self, saved: Snapshot) -> None:
        """Put everything back: the epoch after the snapshot's is about to begin."""
        worker = self._worker
        lost = self._put_back(saved)
        worker.vigil.slow_down(variables.optimizers_of(self.model), saved)
        self.model.reset_metrics()
        worker.metrics.restore(saved.state)
        worker.saved = self._saved = None
        reasons = fingerprint.differences(saved.state["fingerprint"], self._fixed["fingerprint"])
        worker.tell_resumed(saved, [*reasons, f"{self._script.why}: {_DATA}", *lost])

    def _put_back(self, saved: Snapshot) -> list[str]:
        """Put everything back; return the reasons why what follows is not exact, beyond those known."""
        worker, tracked = self._worker, self._variables()
        lost: list[str] = []
        try:
            lost = capture.restore(self.model, saved, self._callbacks, tracked=tracked)
        except ChangedScriptError as reason:
            worker.refuse(f"fit {self._number}: {reason}")
        if not variables.hold(tracked, [saved.arrays[f"variables/{i:05d}"] for i in range(len(tracked))]):
            raise RuntimeError("the model's variables do not take the values of the checkpoint")
        capture.restore_chance(saved, worker.entropy)
        worker.step = saved.step
        return worker.tell_lost(self._number, lost)

    def _make_sure(self) -> None:
        """Let nothing go on that was to be resumed and was not."""
        if self._saved is not None:
            raise RuntimeError(
                f"fit {self._number} was to go on with epoch {self._saved.epoch}, and Keras begins elsewhere;"
                f" to train afresh: runner rm {self._worker.launch.job}, then submit it again"
            )

    def _batch_ended(self, batch: int, logs: Any = None) -> None:
        worker = self._worker
        # The last execution of an epoch may hold fewer steps than the others.
        self._batches = min(max(self._batches, batch + 1), self._last.params.get("steps") or batch + 1)
        worker.step = self._epoch_step + self._batches
        if not self._trained:
            self._trained = True
            worker.phase("train", tell=True)
        worker.progress.set(step=worker.step, step_in_epoch=self._batches)
        if worker.progress.wants(time.monotonic()):
            worker.vigil.look_at_loss(logs)
            worker.progress.set(metrics=values.of_logs(logs))

    def _epoch_ended(self, epoch: int, logs: Any = None) -> None:
        """Note the metrics when the script's callbacks have seen the epoch's end; take a snapshot."""
        self._make_sure()
        if self._log.cut_short():
            return
        metrics = self._log.end_epoch(epoch, logs)
        if not self._log.broken:
            with self._log.surviving():
                self._log.consider(epoch, metrics)
                self._save(epoch)

    # -- snapshots ------------------------------------------------------------------------------------------

    def _save(self, epoch: int) -> None:
        """Hold the state at an epoch's end, and save it if that is due; after the last nothing is to come."""
        worker = self._worker
        last = epoch + 1 >= self._arguments["epochs"] or self.model.stop_training
        if self._doubt or last or not self._is_whole(epoch):
            worker.release()
            return
        began = time.monotonic()
        snapshot = self._take(epoch + 1)
        if worker.stop.may_leave:
            worker.leave_with(snapshot)
        if worker.saver.due(worker.step, self._batches, True):
            worker.saver.submit(snapshot, time.monotonic() - began)
        worker.hold(snapshot)

    def _is_whole(self, epoch: int) -> bool:
        """Tell whether all is there that a resume needs: the optimizer, and the epoch in the History."""
        history, optimizer = self._history, self._optimizer
        return (
            self.model.history is history
            and history.epoch[-1:] == [epoch]
            and (optimizer is None or bool(optimizer.built))
        )

    def _take(self, epoch: int) -> Snapshot:
        state = {**self._fixed, **self._worker.state()}
        snapshot = self._camera.take(
            step=self._worker.step, epoch=epoch, callbacks=self._callbacks, logs=None, state=state
        )
        self._log.tell_missed()
        return snapshot

    # -- the end --------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Save what the fit left behind, so that no later attempt runs it again."""
        kept = not self._doubt and not self._log.broken and not self._log.cut_short()
        if not kept:
            self._lose()
        self._log.finish(self._save_finished if kept else None, needed=True)

    def _lose(self) -> None:
        self._script.lost = self._script.lost or f"fit {self._number}, before it, is not kept"

    def _save_finished(self) -> int | None:
        self._fixed["finished"] = {"params": {}}
        size = finished.save(self._worker, self._number, lambda: self._take(self._arguments["epochs"]))
        if size is None:
            self._lose()
        return size

    def _restore_finished(self) -> Any:
        """Return the History of a fit that is over, all being put back; None where it is to be trained."""
        worker, model = self._worker, self.model
        done = finished.load(worker, self._number)
        if done is None or not finished.still_holds(worker, self._number, done, self._arguments):
            return None
        if done.state["kind"] == "fit":
            refuse(worker, done)
        doubt = self._doubt or self._doubt_of(done)
        if doubt:
            self._start_over(doubt)
            return None
        params = {"verbose": self._arguments.get("verbose"), "epochs": self._arguments["epochs"]}
        for callback in self._callbacks:
            callback.set_params(params)
            callback.set_model(model)
        self._put_back(done)
        model.history = self._history
        model.stop_training = done.state["stop_training"]
        finished.go_on_from(worker, self._number, done)
        return model.history


def _callback(**methods: Callable[..., None]) -> Any:
    """Return a callback of Keras's with these methods; it does not keep Keras from its own threads."""
    import keras

    own = {name: staticmethod(method) for name, method in methods.items()}
    return type("Callback", (keras.callbacks.Callback,), {**own, "async_safe": True})()
