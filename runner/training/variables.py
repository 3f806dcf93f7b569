"""A model's variables as arrays, and back; and where Keras's own weight file expects them.

A copy of the variables is taken into buffers that are allocated once, touched once, and used again when
nobody reads them any more: a capture then costs little more than the copying itself.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from runner.training import held

#: Keras numbers names that repeat; a number alone does not make it another variable.
_COUNTER = re.compile(r"_\d+(?=/|:|$)")
#: Attributes of a layer are looked into so deep: an attribute, what a list in it holds, and one more.
_DEPTH_MAX = 3
_KINDS: dict[type, str] = {}
#: Takes shapes and dtypes, returns arrays of these; None where there is no room.
Lend = Callable[[list[tuple[tuple[int, ...], np.dtype]]], list[np.ndarray] | None]
#: Buffers of so many bytes are worth another thread that makes them.
_LARGE_BYTES = 16 * 1024 * 1024
#: What a layer keeps for Keras, and holds no variables that are not counted.
_KERAS_OWN = {
    *("_layers", "_functional", "_operations", "_operations_by_depth", "_nodes", "_nodes_by_depth"),
    *("_inbound_nodes", "_outbound_nodes", "_trainable_variables", "_non_trainable_variables", "_metrics"),
    *("_seed_generators", "_obj_reference_counts_dict", "_self_unconditional_checkpoint_dependencies"),
}


class ChangedScriptError(Exception):
    """The script's variables are not those of the checkpoint."""


def all_variables(model: Any) -> list[Any]:
    """List what training changes: the model's variables, the optimizer's, the metrics', each once.

    So are those that Keras does not count: of further optimizers, the states of stateful layers, and
    TensorFlow's own, where the model or a layer holds them as attributes, or in lists and dicts.

    The order is the model's own, so it is the same in every process that runs the script.
    """
    found = list(model.variables)
    if getattr(model, "optimizer", None) is not None:
        found += model.optimizer.variables
    found += model.metrics_variables
    beneath = {id(tensor_of(variable)) for variable in found}
    for layer in model._flatten_layers():
        found += [one for one in _uncounted(layer) if id(one) not in beneath]
    return each_once(found)


def _uncounted(layer: Any) -> Iterator[Any]:
    """Yield the variables, and those of optimizers, that a layer holds."""
    for kind, part in _held(layer):
        if kind == "optimizer":
            yield from part.variables
        else:
            yield part if kind == "variable" else part.state


def optimizers_of(model: Any) -> list[Any]:
    """List the optimizers that a model and its layers hold."""
    held = (one for layer in model._flatten_layers() for one in _held(layer))
    return [part for kind, part in held if kind == "optimizer"]


def _held(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a layer holds that has variables, and of what kind it is."""
    kinds = _KINDS  # this is asked at each snapshot, of each attribute of each layer
    for name, value in list(vars(layer).items()):
        kind = kinds.get(type(value))
        if kind is None:
            kind = _learn_kind(type(value))
        if kind == "nested":
            if value and name not in _KERAS_OWN:
                yield from _parts(value, _DEPTH_MAX)
        elif kind:
            yield kind, value


def _parts(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    for part in list(value.values()) if isinstance(value, dict) else list(value):
        kind = _kind_of(part)
        if kind == "nested" and depth > 1:
            yield from _parts(part, depth - 1)
        elif kind and kind != "nested":
            yield kind, part


def _kind_of(value: Any) -> str:
    kind = _KINDS.get(type(value))
    return _learn_kind(type(value)) if kind is None else kind


def _learn_kind(one: type) -> str:
    """Return what to do with objects of a class; "" where that is nothing."""
    import keras
    import tensorflow as tf
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    kinds: dict[str, Any] = {
        "nested": (dict, list, tuple),
        "optimizer": BaseOptimizer,
        "variable": (keras.Variable, tf.Variable),
        "generator": tf.random.Generator,
    }
    _KINDS[one] = next((kind for kind, classes in kinds.items() if issubclass(one, classes)), "")
    return _KINDS[one]


def each_once(found: Iterable[Any]) -> list[Any]:
    """Drop repetitions, and Keras's global seed generator, which belongs to the shared generators."""
    unseen: dict[int, Any] = {}
    for variable in found:
        unseen.setdefault(id(variable), variable)
    seeds = _global_seed_state()
    return [variable for variable in unseen.values() if variable is not seeds]


def _global_seed_state() -> Any:
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def path_of(variable: Any) -> str:
    """Return the variable's path as Keras (else TensorFlow) names it."""
    return str(getattr(variable, "path", None) or variable.name)


def tensor_of(variable: Any) -> Any:
    """Return the TensorFlow variable beneath a Keras one."""
    return getattr(variable, "_value", variable)


class Reader:
    """Copies the values of certain variables into buffers, with as little between as there can be."""

    def __init__(self, tracked: Sequence[Any]):
        self.buffers = Buffers([(tuple(int(n) for n in v.shape), dtype_of(v)) for v in tracked])
        self._handles = [_handle_of(tensor_of(variable)) for variable in tracked]
        #: Returns the values as tensors, in which they stay as they are.
        self.hold = held.AtOnce(self._handles)

    @property
    def size(self) -> int:
        """Bytes of all the values."""
        return self.buffers.size

    def read(self, lend: Lend | None = None) -> list[np.ndarray]:
        """Return copies of the values that nobody else changes, in memory of `lend`'s where it has some."""
        lent = (lend(self.buffers.layout) if lend is not None else None) or self.buffers.lend()
        for value, buffer in zip(self._values(), lent, strict=True):
            np.copyto(buffer, value)
        return lent

    def view(self) -> list[np.ndarray]:
        """Return the values as they lie in memory, where that can be: nobody may write into them.

        An update while these arrays are alive costs a copy (`held`); after they are gone it is made in
        place again.
        """
        return list(self._values())

    def _values(self) -> Iterator[np.ndarray]:
        for one in self._handles:
            yield held.array_of(held.read(*one))


def _handle_of(variable: Any) -> held.Handle:
    plain = type(variable).__name__ in {"ResourceVariable", "UnliftedInitializerVariable"}
    return variable, variable.handle if plain else None


def dtype_of(variable: Any) -> np.dtype:
    """Return the NumPy dtype of a variable's value."""
    dtype: np.dtype = np.dtype(tensor_of(variable).dtype.as_numpy_dtype)
    return dtype


def describe(variables: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what identifies each variable: path, shape, dtype."""
    return [
        {"path": path_of(v), "shape": [int(n) for n in v.shape], "dtype": dtype_of(v).name} for v in variables
    ]


def check_same(saved: Sequence[dict[str, Any]], variables: Sequence[Any]) -> None:
    """Make sure that the variables are those that were saved.

    Raises:
        ChangedScriptError: they are not; the text names the first that differs.
    """
    present = describe(variables)
    for before, now in zip(saved, present, strict=False):
        if not _is_same_path(before["path"], now["path"]):
            raise ChangedScriptError(
                f"the checkpoint has the variable {before['path']} where the script has {now['path']}"
            )
        for what in ("shape", "dtype"):
            if before[what] != now[what]:
                raise ChangedScriptError(
                    f"the variable {now['path']} has {what} {now[what]}; in the checkpoint {before[what]}"
                )
    if len(saved) != len(present):
        longer, where = (saved, "checkpoint") if len(saved) > len(present) else (present, "script")
        extra = longer[min(len(saved), len(present))]["path"]
        raise ChangedScriptError(
            f"the checkpoint has {len(saved)} variables, the script {len(present)}:"
            f" only the {where} has {extra}"
        )


def _is_same_path(before: str, now: str) -> bool:
    """Compare but for counters, and for the scope around an optimizer's, which hangs on what builds it."""
    one, other = (f"/{_COUNTER.sub('', path)}" for path in (before, now))
    return one.endswith(other) or other.endswith(one)


def assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    """Give the variables their saved values."""
    for variable, array in zip(variables, arrays, strict=True):
        tensor_of(variable).assign(array)


def hold(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> bool:
    """Tell whether the variables have these very values."""
    pairs = zip(Reader(variables).view(), arrays, strict=True)
    return all(value.dtype == array.dtype and value.tobytes() == array.tobytes() for value, array in pairs)


class Buffers:
    """Sets of arrays that are lent out and come back by themselves.

    A set is free when no view of it is left anywhere; so a writer in another thread may keep what it was
    given for as long as it likes.
    """

    def __init__(self, layout: list[tuple[tuple[int, ...], np.dtype]]) -> None:
        self._sets: list[list[np.ndarray]] = []
        self._making: threading.Thread | None = None
        self.layout = layout
        self.size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)  #: bytes of a set

    def prepare(self) -> None:
        """Have a large set ready by the time that it is needed: another thread makes it."""
        if self.size >= _LARGE_BYTES and not self._sets and self._making is None:
            self._making = threading.Thread(target=self._make, name="buffers", daemon=True)
            self._making.start()

    def lend(self) -> list[np.ndarray]:
        """Return arrays of these shapes and dtypes that nobody else uses."""
        if self._making is not None:
            self._making.join()
            self._making = None
        for arrays in self._sets:
            # 3: the list, the loop's name, and the argument of getrefcount.
            if all(sys.getrefcount(array) <= 3 for array in arrays):
                break
        else:
            self._make()
            arrays = self._sets[-1]
        return [array[...] for array in arrays]

    def _make(self) -> None:
        arrays = [np.empty(shape, dtype) for shape, dtype in self.layout]
        for array in arrays:
            array.fill(0)  # the first touch of memory costs more than its copying
        self._sets.append(arrays)


@contextlib.contextmanager
def _optimizers_by_identity() -> Iterator[None]:
    """Let optimizers hand out their variables as they do the values, so that each is known again."""
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    def save_own_variables(self: Any, store: Any) -> None:
        for index, variable in enumerate(self.variables):
            store[str(index)] = variable

    original = BaseOptimizer.save_own_variables
    BaseOptimizer.save_own_variables = save_own_variables
    try:
        yield
    finally:
        BaseOptimizer.save_own_variables = original


@contextlib.contextmanager
def _name_counters_kept() -> Iterator[None]:
    """Keras's walk makes objects of its own: the names that the script's next ones get stay as they were."""
    from keras.src.backend.common import global_state

    counters = global_state.get_global_attribute("object_name_uids")
    before = dict(counters) if counters is not None else None
    yield
    if counters is not None and before is not None:
        counters.clear()
        counters.update(before)


def keras_links(
    model: Any, keys: dict[int, str], add: Callable[[str, np.ndarray], str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Find where `model.load_weights` looks for each variable, by Keras's own walk over the model.

    Args:
        model: built, its optimizer too.
        keys: id of a variable -> key of its array.
        add: called with the path and value of what Keras saves that is no variable of ours; returns its key.

    Returns:
        Keras path -> array key; group -> its attributes.
    """
    from keras.src.saving import saving_lib

    recorder = _recorder()(keys, add)
    with _optimizers_by_identity(), _name_counters_kept():
        saving_lib._save_state(model, recorder, None, "", set())
    return recorder.links, recorder.attributes


@functools.cache
def _recorder() -> Any:
    """Return the class that takes the place of Keras's file: it notes which variable goes where.

    Made once: a class that is made for each walk would keep what its functions reach, the arrays of a
    snapshot, until the garbage collector comes by.
    """
    from keras.src.saving import saving_lib

    class Recorder(saving_lib.H5IOStore):  # type: ignore[misc]
        def __init__(self, keys: dict[int, str], add: Callable[[str, np.ndarray], str]) -> None:
            self.keys, self.add = keys, add
            self.group = "vars"
            self.links: dict[str, str] = {}
            self.attributes: dict[str, dict[str, str]] = {}

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: dict[str, str] | None = None) -> Recorder:
            self.group = f"{path}/vars" if path else "vars"
            if metadata:
                self.attributes.setdefault(self.group, {}).update(metadata)
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            place = f"{self.group}/{key}"
            known = self.keys.get(id(value)) or self.keys.get(id(tensor_of(value)))
            if known is None:
                array = np.asarray(saving_lib.backend.convert_to_numpy(value))
                known = self.add(place, array)
            self.links[place] = known
            if saving_lib.backend.standardize_dtype(value.dtype) == "bfloat16":
                self.attributes.setdefault(place, {})["dtype"] = "bfloat16"

    return Recorder
