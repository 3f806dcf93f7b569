"""What keeps a fit from being resumed at the beginning of an epoch; and building its model before it trains.

Only the public API of Keras is used. Each function returns the doubt in words, "" where there is none.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from runner.storage.checkpoint import Snapshot
from runner.training import variables
from runner.training.pycode import code_of
from runner.training.variables import ChangedScriptError

#: What `fit` must take.
_PARAMETERS = {"self", "x", "callbacks", "epochs", "initial_epoch", "steps_per_epoch", "validation_data"}
_CALLBACKS = ("Callback", "CallbackList", "History", "BackupAndRestore")


def lacking(keras: Any) -> list[str]:
    """Name what this Keras lacks even of the public API that a resume at an epoch's beginning needs."""
    missing = [f"callbacks.{name}" for name in _CALLBACKS if not hasattr(keras.callbacks, name)]
    try:
        found = set(inspect.signature(keras.Model.fit).parameters)
    except (AttributeError, TypeError, ValueError):
        return [*missing, "Model.fit"]
    return [*missing, *(f"Model.fit's parameter {name}" for name in sorted(_PARAMETERS - found))]


def of_fit(model: Any, arguments: Mapping[str, Any]) -> str:
    """Say why a fit can only be trained from its beginning.

    Args:
        model: that is fitted.
        arguments: of the call, by name, with the defaults.
    """
    import keras
    import tensorflow as tf

    if any(isinstance(one, keras.callbacks.BackupAndRestore) for one in listed(arguments["callbacks"]) or ()):
        return "the script resumes by itself (BackupAndRestore)"
    if getattr(model, "_distribute_strategy", None) is not None or tf.distribute.has_strategy():
        return "tf.distribute"
    kind = keras.optimizers.Optimizer
    if any(
        isinstance(one, kind) and one is not getattr(model, "optimizer", None)
        for one in list(vars(model).values())
    ):
        return "the model has an optimizer of its own"
    doubt = _of_data(arguments["x"], arguments["steps_per_epoch"])
    if not doubt and arguments["validation_data"] is not None:
        doubt = _of_data(arguments["validation_data"], None)
        return f"of the validation data: {doubt}" if doubt else ""
    return doubt


def listed(callbacks: Any) -> list[Any] | None:
    """Return what `fit` was given as a list of callbacks; None where others cannot be put beside them."""
    import keras

    if isinstance(callbacks, keras.callbacks.CallbackList):
        return None
    found = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
    return found if all(isinstance(one, keras.callbacks.Callback) for one in found) else None


def _of_data(data: Any, steps_per_epoch: int | None) -> str:
    """Say why the data of an epoch are not simply read from their beginning."""
    import keras
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        if code_of(data):
            return "the dataset runs Python code, whose state is not kept"
        spread = steps_per_epoch and int(data.cardinality()) != tf.data.INFINITE_CARDINALITY
    elif data is not None and all(
        one is None or (hasattr(one, "shape") and hasattr(one, "dtype")) or hasattr(one, "to_numpy")
        for one in keras.tree.flatten(data)
    ):
        spread = steps_per_epoch
    else:
        return f"the data come from a {type(data).__name__}, whose state is not kept"
    return "steps_per_epoch spreads the data over several epochs" if spread else ""


def of_resume(
    snapshot: Snapshot, arguments: Mapping[str, Any], callbacks: Sequence[Any], tracked: Sequence[Any]
) -> str:
    """Say why a snapshot does not fit the fit that is about to begin.

    Args:
        snapshot: of an epoch's end, or of the fit's.
        arguments: of the call.
        callbacks: of the script's, and the History.
        tracked: the variables, all built.
    """
    present = [type(one).__name__ for one in callbacks]
    saved = [one["class"] for one in snapshot.state["listeners"]["callbacks"]]
    if present != saved:
        return f"its callbacks were {', '.join(saved)}, are {', '.join(present)}"
    if snapshot.state["initial_epoch"] != arguments["initial_epoch"]:
        return "its initial_epoch has changed"
    if "finished" not in snapshot.state and snapshot.epoch >= arguments["epochs"]:
        return f"epoch {snapshot.epoch} would be next, and it is to end after {arguments['epochs']}"
    try:
        variables.check_same(snapshot.state["variables"], tracked)
    except ChangedScriptError as reason:
        return str(reason)
    return ""


def build(model: Any, data: Any) -> None:
    """Make the variables of model and optimizer, as far as that needs no step; the metrics' are left.

    Raises:
        Exception: whatever the model's own code raises when it is called with other than a batch.
    """
    if not model.built:
        model(_symbolic(data))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def _symbolic(data: Any) -> Any:
    """Return inputs of the model that stand for any batch of the data."""
    import keras

    spec = getattr(data, "element_spec", None)
    if spec is None:
        return keras.tree.map_structure(_stand_in, data)
    inputs = spec[0] if isinstance(spec, tuple) else spec
    return keras.tree.map_structure(lambda one: keras.KerasTensor(tuple(one.shape), one.dtype.name), inputs)


def _stand_in(array: Any) -> Any:
    import keras

    name = getattr(array.dtype, "name", str(array.dtype))
    dtype = keras.config.floatx() if name.startswith("float") else name
    return keras.KerasTensor((None, *array.shape[1:]), dtype)
