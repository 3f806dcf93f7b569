"""Python code of the script's own in a training step: what it can change goes with the callbacks' state.

A step that runs eagerly is Python, and so is what `tf.py_function` and `tf.numpy_function` run within a
compiled one. Captured are the closure cells and globals that such code reaches, the attributes of plain
objects whose methods it is, and of the script's own models, layers, metrics and losses, which run eagerly,
the random generators and those attributes that are plain values, lists and dicts of them too.

Limits: an array above 1 MiB is taken for data; private attributes of a model and the like are looked at
where its own methods assign them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from runner.training import pycode, reach
from runner.training.codec import members_of
from runner.training.decode import set_attribute
from runner.training.holders import Holder

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, type(None))
_ARRAY_BYTES_MAX = 1 << 20
#: Put back by others.
_NEVER = {"stop_training"}


class Owner(Holder):
    """An object whose code runs in a step."""

    of_step = True

    def __init__(self, value: Any):
        super().__init__(value)
        self._whole = not any(reach.is_of_keras(kind) for kind in type(value).__mro__)
        self._assigned = frozenset[str]().union(*map(reach.assigned_by, type(value).__mro__))

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield what of it is captured."""
        for name, value in members_of(self.value):
            if isinstance(value, np.ndarray) and value.nbytes > _ARRAY_BYTES_MAX:
                continue
            own = name in self._assigned or not name.startswith("_")
            if self._whole or isinstance(value, _GENERATORS):
                yield name, value
            elif own and name not in _NEVER and _is_plain(value):
                yield name, _untracked(value)

    def _put(self, name: str, value: Any) -> None:
        """Give an attribute another value; Keras's stand-ins for lists and dicts are changed in place."""
        if self._whole:
            set_attribute(self.value, name, value)
            return
        present = getattr(self.value, name, None)
        if type(present) in {list, dict, set} or not isinstance(present, list | dict | set):
            setattr(self.value, name, value)
            return
        present.clear()
        present.extend(value) if isinstance(present, list) else present.update(value)


class Functions(Owner):
    """Functions that belong to no object."""

    def __init__(self, functions: list[Any]):
        super().__init__(functions)
        self.name = "functions"

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield nothing: what they reach is captured."""
        yield from ()

    def functions(self) -> Iterator[Any]:
        """Yield them."""
        yield from self.value


def owners(model: Any, operations: Iterable[Any]) -> list[Owner]:
    """Return the objects whose Python code runs in the step that a model is trained by.

    Args:
        model: that is trained.
        operations: of the step, where it is compiled.
    """
    found: list[Any] = []
    functions: list[Any] = []
    if getattr(model, "run_eagerly", False):
        loss = getattr(model, "loss", None)
        parts = [model, *model._flatten_layers(), *getattr(model, "metrics", ()), loss]
        found += [part for part in parts if part is not None and _has_own_code(part)]
        functions += reach.functions_in(loss)
    code = pycode.code_in(operations)
    found += code.owners()
    functions += code.functions()
    once = {id(one): Owner(one) for one in found if not reach.is_settled(one)}
    return [*once.values(), *([Functions(functions)] if functions else [])]


def _has_own_code(value: Any) -> bool:
    return any(reach.is_of_script(kind) for kind in type(value).__mro__)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | set | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(one) for key, one in value.items())
    return isinstance(value, _PLAIN)


def _untracked(value: Any) -> Any:
    """Return a list, dict or set as Python's own kind; Keras has its own, for those that hold variables."""
    if isinstance(value, dict):
        return {key: _untracked(one) for key, one in value.items()}
    for kind in (list, set, tuple):
        if isinstance(value, kind):
            return kind(map(_untracked, value))
    return value
