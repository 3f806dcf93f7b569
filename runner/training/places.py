"""What the instrumentation relies on inside Keras, and whether this Keras has it.

Looked at are the functions that are there, their parameters, and the names of attributes and functions that
their code uses. Limits: a Keras in which the same names mean something else is not noticed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_ITERATOR = "keras.src.trainers.epoch_iterator:EpochIterator"
_TF = "keras.src.backend.tensorflow.trainer"
_ADAPTERS = "keras.src.trainers.data_adapters"
_LIST = "keras.src.callbacks.callback_list:CallbackList"


@dataclass(frozen=True)
class Place:
    """A function that must be there."""

    owner: str  #: its module, or MODULE:CLASS
    name: str
    takes: str = ""  #: parameters that must be among its own
    uses: str = ""  #: names that must be among those in its code

    def missing(self) -> str | None:
        """Name what this Keras lacks of it; None where all is there."""
        module, _, kind = self.owner.partition(":")
        shown = f"{kind or module.rpartition('.')[2]}.{self.name}"
        try:
            owner: Any = importlib.import_module(module)
            found = getattr(getattr(owner, kind) if kind else owner, self.name)
            parameters = set(inspect.signature(found).parameters)
        except (ImportError, AttributeError, TypeError, ValueError):
            return shown
        if not set(self.takes.split()) <= parameters:
            return f"{shown}'s parameters"
        lacking = sorted(set(self.uses.split()) - set(_names(inspect.unwrap(found).__code__)))
        return f"{' and '.join(lacking)} in {shown}" if lacking else None


_PLACES = (
    Place(
        _ITERATOR,
        "__init__",
        "self",
        "steps_per_epoch steps_per_execution data_adapter _current_iterator _num_batches _steps_seen",
    ),
    Place(
        _ITERATOR,
        "_enumerate_iterator",
        "self",
        "steps_per_epoch steps_per_execution _current_iterator _num_batches _steps_seen _get_iterator"
        " on_epoch_begin on_epoch_end",
    ),
    Place(f"{_TF}:TFEpochIterator", "__init__", "self", "_distributed_dataset"),
    Place(f"{_TF}:TFEpochIterator", "_get_iterator", "self", "_distributed_dataset"),
    Place(
        f"{_TF}:TensorFlowTrainer",
        "fit",
        "self x callbacks epochs validation_data",
        "TFEpochIterator make_train_function train_function _initial_epoch _eval_epoch_iterator reset_metrics"
        " on_train_begin on_epoch_begin _get_metrics_result_or_logs on_epoch_end stop_training on_train_end",
    ),
    Place(f"{_TF}:TensorFlowTrainer", "make_train_function", "self", "train_function"),
    Place(f"{_TF}:TensorFlowTrainer", "make_test_function", "self", "test_function"),
    Place(
        f"{_TF}:TensorFlowTrainer",
        "evaluate",
        "self",
        "_eval_epoch_iterator make_test_function test_function on_test_begin on_test_end",
    ),
    Place("keras.src.trainers.trainer:Trainer", "_get_metrics_result_or_logs", "self logs"),
    Place("keras.src.trainers.trainer:Trainer", "_symbolic_build", "self data_batch"),
    Place(f"{_ADAPTERS}.array_data_adapter:ArrayDataAdapter", "__init__", "self", "_inputs _shuffle"),
    Place(f"{_ADAPTERS}.array_data_adapter:ArrayDataAdapter", "get_tf_dataset", "self", "_shuffle shuffle"),
    Place(f"{_ADAPTERS}.generator_data_adapter:GeneratorDataAdapter", "__init__", "self generator"),
    Place(f"{_ADAPTERS}.py_dataset_adapter:PyDatasetAdapter", "__init__", "self x", "py_dataset enqueuer"),
    Place(f"{_ADAPTERS}.py_dataset_adapter:PyDatasetAdapter", "_get_iterator", "self"),
    Place(_LIST, "__init__", "self callbacks", "callbacks _futures"),
    Place(_LIST, "set_params", "self", "params"),
    Place(_LIST, "on_train_begin", "self logs"),
    Place(_LIST, "on_train_batch_end", "self batch logs"),
    Place(_LIST, "on_epoch_begin", "self epoch logs"),
    Place(_LIST, "on_epoch_end", "self epoch logs"),
    Place(_LIST, "on_test_begin", "self logs"),
    Place(_LIST, "on_test_end", "self logs"),
    Place("keras.src.models.model:Model", "_flatten_layers", "self"),
    Place(f"{_TF}:TensorFlowTrainer", "train_on_batch", "self"),
    Place("keras.src.optimizers.base_optimizer:BaseOptimizer", "apply", "self grads"),
    Place("keras.src.optimizers.base_optimizer:BaseOptimizer", "save_own_variables", "self store"),
    Place("keras.src.saving.saving_lib", "_save_state", uses="save_own_variables"),
    Place("keras.src.saving.saving_lib:H5IOStore", "make", "self path"),
    Place("keras.src.backend.common.global_state", "get_global_attribute", "name"),
    Place("keras.src.random.seed_generator", "global_seed_generator"),
)


@functools.cache
def missing() -> list[str]:
    """Name what this Keras lacks of what the instrumentation relies on."""
    found = [place.missing() for place in _PLACES]
    return [one for one in found if one is not None]


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of attributes and globals that code uses, and the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
