"""Making ready, before it is known what is resumed, all of a training step that does not depend on it.

Keras's own `fit` is begun, without callbacks, and left again where training would begin: by then there are
the data's types and the training function. That is traced, and executed once on a batch of zeros: TensorFlow
optimizes the graph and loads its kernels then. Variables and the shared random generators are put back.

Not executed is a step that changes more than variables: with an operation that has a state of its own, or
that runs Python code. Not even traced is one whose data Python code makes: Keras reads it to learn its types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from runner.training import capture, chance, reach
from runner.training.capture import Camera
from runner.training.datasets import PYTHON_OPS, operations_of_step
from runner.training.decode import Decoder
from runner.training.entropy import Entropy
from runner.training.held import Values
from runner.training.rebuild import traced_step

#: The most that variables may take for their values to be kept aside.
_BYTES_MAX = 1 << 30
_ROWS = 32  #: of the batch, where Keras does not tell
#: Of the operations with a state: those whose state is a variable or an iterator, and those that call others.
_PLAIN = frozenset(
    {
        *("ReadVariableOp", "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"),
        *("VarIsInitializedOp", "VariableShape", "ResourceGather", "ResourceGatherNd"),
        *("IteratorGetNext", "IteratorGetNextSync", "IteratorGetNextAsOptional"),
        *("PartitionedCall", "StatefulPartitionedCall", "If", "While", "Case", "Placeholder", "NoOp"),
        *("RngReadAndSkip", "StatefulUniform", "StatefulUniformFullInt", "StatefulStandardNormalV2"),
        *("StatefulTruncatedNormal", "OptionalFromValue", "OptionalGetValue", "OptionalNone"),
    }
)
#: What callbacks do before the first step is traced, which may be in what is traced.
_BEFORE = frozenset(
    {"set_model", "set_params", "on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_batch_begin"}
)
_PLAIN_STARTS = ("ResourceApply", "ResourceSparseApply", "ResourceScatter")


class _Left(BaseException):
    """Keras's `fit` is left: no exception to it."""


class Warmup:
    """One `fit` that is tried before it is wanted."""

    def __init__(self, entropy: Entropy):
        self._entropy = entropy
        self._iterator: Any = None
        self._now = False

    def saw(self, iterator: Any) -> None:
        """Take in the iterator that Keras has made over the training data."""
        if self._now:
            self._iterator = iterator

    def leave(self) -> None:
        """Leave Keras's `fit`, where it is only tried."""
        if self._now:
            raise _Left

    def run(self, fit: Callable[..., Any], model: Any, arguments: Mapping[str, Any]) -> str:
        """Make a model's step ready; return why that could not be, "" where it could.

        Args:
            fit: Keras's own.
            model: that is to be trained.
            arguments: of the call, by name, the model among them.

        Raises:
            RuntimeError: it cannot be known whether all is as before.
        """
        why = _hindrance(model, arguments)
        if why:
            return why
        trace = capture.capture_chance(self._entropy, "warmup")
        self._now = True
        try:
            fit(**{**arguments, "callbacks": None, "verbose": 0})
        except _Left:
            pass
        finally:
            self._now = False
        try:
            why = self._try(model)
        finally:
            self._iterator = None  # it has a copy of the data
        chance.restore(Decoder(trace[1]), trace[0], self._entropy)
        return why

    def _try(self, model: Any) -> str:
        import tensorflow as tf

        step, spec = traced_step(model.train_function), self._iterator._distributed_dataset.element_spec
        if step is None:
            return "its training function is not Keras's"
        before = chance.use(self._entropy)
        traced = step.get_concrete_function(tf.data.IteratorSpec(spec))
        if any(chance.used_since(before, self._entropy)):
            raise RuntimeError("it draws chance while it is traced")
        held = list(traced.graph.variables)
        if not _handles(traced.captured_inputs, tf.resource) <= {id(one.handle) for one in held}:
            return "its step has state that is no variable, and is traced only"
        own = sorted({one for one in map(_kind, operations_of_step(step)) if _has_state(one)})
        if own:
            return f"its step has {own[0]}, and is traced only"
        if sum(int(np.prod(one.shape)) * one.dtype.size for one in held) > _BYTES_MAX:
            return "its variables are large, and it is traced only"
        batch = _blank(spec, getattr(self._iterator.data_adapter, "batch_size", None) or _ROWS)
        if batch is None:
            return "its data are no plain tensors, and it is traced only"
        values = [one.numpy() for one in held]
        try:
            model.train_function(iter(batch))
            _rehearse(model, self._entropy)
        except tf.errors.OpError as error:
            return f"its step refuses a batch of zeros: {error}"
        finally:
            for one, value in zip(held, values, strict=True):
                one.assign(value)
        if len(step._list_all_concrete_functions()) != 1:
            raise RuntimeError("a batch of zeros is another kind of batch")
        return ""


def _rehearse(model: Any, entropy: Entropy) -> None:
    """Take a snapshot and put it back, so that what this needs is there."""
    camera = Camera(model, entropy)
    state: dict[str, Any] = {"traces": {}}
    snapshot = camera.take(step=0, epoch=0, callbacks=[], logs=None, state=state, values=Values.VIEWED)
    values = {name: np.array(array) for name, array in snapshot.arrays.items()}
    snapshot.arrays.update(values)
    capture.restore(model, snapshot, [])


def _hindrance(model: Any, arguments: Mapping[str, Any]) -> str:
    """Say why a model cannot be tried."""
    import tensorflow as tf
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    data = arguments.get("x")
    plain = np.ndarray | tf.Tensor | tf.data.Dataset
    if not all(isinstance(one, plain) for one in tf.nest.flatten(data)):
        return "its data are made by Python code"
    callbacks = arguments.get("callbacks") or []
    if any(map(_acts_first, tf.nest.flatten(getattr(callbacks, "callbacks", callbacks)))):
        return "a callback of the script's acts before its first step"
    if getattr(model, "_distribute_strategy", None) is not None:
        return "it is distributed"
    if type(model).make_train_function is not TensorFlowTrainer.make_train_function:
        return "its training function is not Keras's"
    if not model.compiled:
        return "it is not compiled"
    return "it runs eagerly" if model.run_eagerly else ""


def _handles(captured: Iterable[Any], resource: Any) -> set[int]:
    """Return the resources that a function has captured."""
    return {id(one) for one in captured if one.dtype == resource}


def _acts_first(callback: Any) -> bool:
    """Tell whether code that is not Keras's runs in a callback before the step would be traced."""
    given = {name for name, value in vars(callback).items() if callable(value) and name in _BEFORE}
    kinds = [kind for kind in type(callback).__mro__ if not reach.is_of_keras(kind) and kind is not object]
    return bool(given) or any(_BEFORE & vars(kind).keys() for kind in kinds)


def _kind(operation: Any) -> str:
    """Return what an operation is."""
    return str(operation.op)


def _has_state(kind: str) -> bool:
    """Tell whether operations of that kind have a state that is neither a variable nor an iterator."""
    from tensorflow.python.framework import op_def_registry

    if kind in PYTHON_OPS:
        return True
    if kind in _PLAIN or kind.startswith(_PLAIN_STARTS):
        return False
    known = op_def_registry.get(kind)
    # A function of the graph's own is no operation known: what it is made of is looked at by itself.
    return known is not None and bool(known.is_stateful)


def _blank(spec: Any, rows: int) -> Any:
    """Return a dataset of batches of zeros that looks as `spec` says; None where that cannot be."""
    import tensorflow as tf

    specs = tf.nest.flatten(spec)
    if not all(type(one) is tf.TensorSpec and one.shape.rank is not None for one in specs):
        return None

    def zeros(one: Any) -> Any:
        shape = [rows if size is None and axis == 0 else size or 1 for axis, size in enumerate(one.shape)]
        return tf.zeros(shape, one.dtype)

    def loosen(*batch: Any) -> Any:
        # The same shapes, as far as they are known of the real data.
        flat = zip(tf.nest.flatten(batch), specs, strict=True)
        loose = [tf.compat.v1.placeholder_with_default(tensor, one.shape) for tensor, one in flat]
        return tf.nest.pack_sequence_as(spec, loose)

    return tf.data.Dataset.from_tensors(tuple(map(zeros, specs))).map(loosen).repeat()
