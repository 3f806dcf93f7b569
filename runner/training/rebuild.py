"""Making a model's variables before its first step, as that step once made them.

Keras makes variables when the training step is first traced. A resumed process needs them before, to fill
them; so the step is traced here, on the data's types alone and from the same state of chance, nothing built
yet. Constants that the script's own code draws while it is traced come out the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.training.capture import Trace, chance_of
from runner.training.entropy import Entropy
from runner.training.variables import optimizers_of

_UNTRACEABLE = (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)


def rebuild(model: Any, element_spec: Any, traces: Mapping[str, Trace], entropy: Entropy) -> None:
    """Build model, optimizer and metrics; the training step is traced where it was before.

    Args:
        model: compiled; its training function is there.
        element_spec: of the dataset of batches.
        traces: the state of chance before "train" was first traced.
        entropy: the job's.
    """
    import tensorflow as tf

    step = traced_step(model.train_function)
    if "train" in traces and step is not None and not model.run_eagerly:
        with chance_of(traces["train"], entropy):
            step.get_concrete_function(tf.data.IteratorSpec(element_spec))
        return  # what this has not made, a compiled optimizer that the step leaves alone say, was not made
    if "train" in traces and _keras_cannot_build(model):
        try:
            with chance_of(traces["train"], entropy):
                tf.function(model.train_step).get_concrete_function(element_spec)
        except _UNTRACEABLE:
            pass  # Keras tries, and says what is wrong
        else:
            return
    model._symbolic_build(data_batch=element_spec)


def _keras_cannot_build(model: Any) -> bool:
    """Tell whether only the script's own step, which is run eagerly, knows what is to be made."""
    from keras import Model

    own = [one for one in optimizers_of(model) if one is not model.optimizer]
    return has_own_step(model) and (type(model).call is Model.call or not all(one.built for one in own))


def has_own_step(model: Any) -> bool:
    """Tell whether the training step is the script's own, which may use less or more than Keras's."""
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    return type(model).train_step is not TensorFlowTrainer.train_step


def traced_step(train_function: Any) -> Any:
    """Return the tf.function inside Keras's training function; None where it is not where it used to be."""
    code, cells = getattr(train_function, "__code__", None), getattr(train_function, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), cells or (), strict=True):
        if name == "multi_step_on_iterator" and hasattr(cell.cell_contents, "get_concrete_function"):
            return cell.cell_contents
    return None
