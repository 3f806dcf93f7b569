"""Fits that are over: what each left behind, saved once, so that no later attempt runs it again.

Where a script calls `fit` several times, an attempt that starts after some of them were done restores each
at its call, in order: variables, callbacks, History, random generators. What the script does in between
(evaluating, predicting, printing) it does again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import BadCheckpointError
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from runner.training import capture, fingerprint, makers, stepcode
from runner.training.capture import traces_of
from runner.training.datasets import operations_of_step
from runner.training.quarantine import set_aside
from runner.training.rebuild import has_own_step, rebuild, traced_step
from runner.training.report import now_text
from runner.training.variables import ChangedScriptError
from runner.training.worker import Worker

if TYPE_CHECKING:
    from runner.training.fitting import Fit


def path_of(worker: Worker, number: int) -> Path:
    """Return where the end of fit `number` is kept."""
    return worker.launch.paths.checkpoints / f"fit-{number:03d}.weights.h5"


def name(worker: Worker, number: int) -> str:
    """Return the same, relative to the job's state folder."""
    return str(path_of(worker, number).relative_to(worker.launch.paths.dir))


def of(fit: Fit, snapshot: Snapshot) -> Snapshot:
    """Return the end of a fit that has just trained: the snapshot with what the fit leaves."""
    left = {
        "params": dict(fit.listeners.params),
        "element_spec": _spec_node(fit.iterator._distributed_dataset.element_spec),
        "datasets": {
            "train": makers.left_behind(fit.iterator, fit.position),
            "validation": makers.left_behind(fit.validation.epochs, fit.validation),
        },
        "pulled": fit.makers.pulled(fit.iterator, fit.position, fit.validation, ran_out=fit.ran_out),
    }
    return replace(snapshot, state={**snapshot.state, "finished": left})


def save(worker: Worker, number: int, take: Callable[[], Snapshot]) -> int | None:
    """Save the end of a fit durably, all checkpoints before it being on the disk.

    Args:
        worker: this process's.
        number: of the fit.
        take: returns its end.

    Returns:
        Its size in bytes; None where it could not be saved: that is reported, and the fit will be done again.
    """
    path = path_of(worker, number)
    try:
        worker.saver.flush()
        path.parent.mkdir(parents=True, exist_ok=True)
        size = checkpoint.write(path, take(), created=now_text())
        worker.saver.outdate()
    except Exception as error:  # noqa: BLE001 - the fit is done; without this file it is done again
        worker.facts("save-failed", path=name(worker, number), reason=str(error))
        return None
    return size


def load(worker: Worker, number: int) -> Snapshot | None:
    """Return the end of fit `number`; None where it is not over. A damaged file is reported and set aside."""
    path = path_of(worker, number)
    try:
        return checkpoint.read(path)
    except FileNotFoundError:
        return None
    except BadCheckpointError as reason:
        set_aside(worker.launch.paths, path, str(reason), worker.facts.append)
        if number == 0 and worker.saved is None:
            worker.metrics.cut(0)
        return None


def still_holds(worker: Worker, number: int, snapshot: Snapshot, arguments: Mapping[str, Any]) -> bool:
    """Tell whether a fit that is over was given the same data; where not, it and all after it is put aside.

    Args:
        worker: this process's.
        number: of the fit.
        snapshot: its end.
        arguments: of the call of `fit` now, by name.
    """
    saved = snapshot.state["fingerprint"]
    if saved["data"] != fingerprint.data(arguments):
        reason = f"the data of fit {number} have changed since it was done"
        worker.facts.warn(f"{reason}: it is trained again, and all that follows it")
        put_aside_from(worker, number, int(snapshot.state["base_step"]), reason)
        return False
    if saved["source"] != fingerprint.source(worker.entry):
        worker.facts.warn(
            f"the script has changed since fit {number} was done; that fit is not run again, its end is"
            f" restored. To train it again: runner rm {worker.launch.job}, then submit it again"
        )
    return True


def put_aside_from(worker: Worker, number: int, base_step: int, reason: str) -> None:
    """Put aside the end of fit `number`, which begins after `base_step` steps, and all that follows it."""
    paths, report = worker.launch.paths, worker.facts.append
    before = load(worker, number - 1) if number else None
    worker.metrics.restore({} if before is None else before.state)
    for later in count(number):
        if not path_of(worker, later).exists():
            break
        set_aside(paths, path_of(worker, later), reason, report, rejected=True)
    for step, path in paths.list_checkpoints():
        if step > base_step:
            set_aside(paths, path, reason, report, rejected=True)
    worker.start_over()


def restore(worker: Worker, model: Any, number: int, snapshot: Snapshot, arguments: Mapping[str, Any]) -> Any:
    """Leave model, callbacks and generators as the finished fit did; return its History."""
    import keras

    done = snapshot.state["finished"]
    given = arguments.get("callbacks")
    if isinstance(given, keras.callbacks.CallbackList):
        listening = given
    else:
        listening = keras.callbacks.CallbackList(
            given,
            add_history=True,
            add_progbar=bool(done["params"].get("verbose")),
            model=model,
            **done["params"],
        )
    traces = traces_of(snapshot)
    built = all(layer.built for layer in model._flatten_layers())
    runs_python = any(one.get("of_step") for one in snapshot.state["listeners"]["callbacks"])
    known = {} if built and not has_own_step(model) and not runs_python else traces
    model.make_train_function()
    rebuild(model, _spec_value(done["element_spec"]), known, worker.entropy)
    try:
        owners = stepcode.owners(model, operations_of_step(traced_step(model.train_function)))
        capture.restore(model, snapshot, listening.callbacks, owners)
        lost = makers.finish(snapshot, arguments, worker.entropy)
        # Data that are read to where the fit left them may change what callbacks have, too.
        lost += capture.restore(model, snapshot, listening.callbacks, owners)
        capture.restore_chance(snapshot, worker.entropy)
    except ChangedScriptError as reason:
        worker.refuse(f"fit {number}: {reason}")
    worker.tell_lost(number, lost)
    worker.traces[model] = traces
    worker.untraced[model] = set(traces) - ({"train"} if known else set())
    if "test" in traces:
        model.make_test_function()
    model.stop_training = snapshot.state["stop_training"]
    model._initial_epoch = snapshot.state["initial_epoch"]
    go_on_from(worker, number, snapshot)
    return model.history


def go_on_from(worker: Worker, number: int, snapshot: Snapshot) -> None:
    """Count on from the end of fit `number`; where what comes next begins anew, what was told of it goes."""
    worker.step = snapshot.step
    worker.vigil.recognize(snapshot)
    if worker.saved is None or worker.saved.state["fit"] <= number:
        worker.saved = None
        worker.metrics.restore(snapshot.state)


def _spec_node(spec: Any) -> Any:
    """Spell a dataset's element_spec as JSON."""
    if isinstance(spec, Mapping):
        return {"t": "dict", "v": [[str(key), _spec_node(one)] for key, one in spec.items()]}
    if isinstance(spec, list | tuple) and not hasattr(spec, "dtype"):
        return {"t": type(spec).__name__, "v": [_spec_node(one) for one in spec]}
    if not hasattr(spec, "shape") or not hasattr(spec, "dtype"):
        return None
    shape = None if spec.shape.rank is None else list(spec.shape)
    node = {"t": "spec", "shape": shape, "dtype": spec.dtype.name}
    if hasattr(spec, "ragged_rank"):
        return {**node, "t": "ragged", "rank": spec.ragged_rank, "splits": spec.row_splits_dtype.name}
    return {**node, "t": "sparse"} if type(spec).__name__ == "SparseTensorSpec" else node


def _spec_value(node: Any) -> Any:
    import tensorflow as tf

    if node is None:
        return None
    if node["t"] == "dict":
        return {key: _spec_value(one) for key, one in node["v"]}
    if node["t"] == "list":
        return [_spec_value(one) for one in node["v"]]
    if node["t"] == "tuple":
        return tuple(_spec_value(one) for one in node["v"])
    if node["t"] == "ragged":
        return tf.RaggedTensorSpec(node["shape"], node["dtype"], node["rank"], tf.as_dtype(node["splits"]))
    if node["t"] == "sparse":
        return tf.SparseTensorSpec(node["shape"], node["dtype"])
    return tf.TensorSpec(node["shape"], node["dtype"])
